"""Makes the artefacts beside this file: ``python -m tests.golden.make``. Only for a new schema version, into a folder of its own.

A checkpoint and a bundle of ``PlainUNet`` (tests/tiny.py) at W4A8, which every later version must read.
"""

from __future__ import annotations

import sys
from pathlib import Path

from dq_deploy.artifacts import SCHEMA_VERSION
from dq_deploy.exporters import export
from tests.tiny import PlainUNet, make_checkpoint

if __name__ == "__main__":
    folder = Path(__file__).parent / f"schema-{SCHEMA_VERSION}"
    checkpoint = make_checkpoint(PlainUNet(), folder / "checkpoint", preset="w4a8", steps=3)
    export(checkpoint.artifact, folder / "bundle", target="qdq", dtype="fp32")
    sys.stderr.write(f"{folder}\n")
