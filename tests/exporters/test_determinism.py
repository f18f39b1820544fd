"""The same checkpoint gives the same bundle, byte for byte: again, in another process, from another working directory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from dq_deploy.exporters import export
from dq_deploy.quantization.checkpoint import Checkpoint


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_bundle_depends_on_its_checkpoint_alone(plain_checkpoint: Checkpoint, tmp_path: Path, exported_anew: None) -> None:
    first = contents(export(plain_checkpoint.artifact, tmp_path / "first", target="qdq").path)
    assert contents(export(plain_checkpoint.artifact, tmp_path / "again", target="qdq").path) == first
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    root = str(Path(__file__).parents[2])
    ended = subprocess.run(
        [sys.executable, "-m", "dq_deploy", "export", str(plain_checkpoint.artifact.path), "-o", "bundle", "--target", "qdq"],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": root, "PYTHONHASHSEED": "12345", "TZ": "Asia/Tokyo"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert contents(elsewhere / "bundle") == first
    assert set(first) == {"manifest.json", "model.onnx"}
