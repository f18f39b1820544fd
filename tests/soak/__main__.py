"""``make soak``: fuzzing, kills and load, as many minutes and kills as are given; figures in ``figures.json``. Exit code 1 on a finding."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

SHARES = {"quantize": 2, "export": 4, "build": 4}  # every second kill, every fourth, every fourth


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="of fuzzing, and of load on each runtime")
    parser.add_argument("--kills", type=int, default=200, help="a half of quantize, a quarter of export, a quarter of build")
    parser.add_argument("--part", choices=["fuzz", "kills", "load"], action="append", help="only these")
    parser.add_argument("-o", "--output", type=Path, default=Path("soak-output"))
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Any] = {}
    for part in given.part or ["fuzz", "kills", "load"]:
        figures[part] = PARTS[part](given)
        (given.output / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
        sys.stderr.write(json.dumps({part: figures[part]}) + "\n")
    findings = [finding for part in figures.values() for row in part for finding in row.get("failures", row.get("crashes", []))]
    return 1 if findings else 0


def _fuzz(given: argparse.Namespace) -> list[dict[str, Any]]:
    from tests.soak.fuzz import run

    return [run(given.minutes * 60, given.output / "fuzz").to_json()]


def _kills(given: argparse.Namespace) -> list[dict[str, Any]]:
    from tests.soak.kills import kill, stages

    found = []
    with tempfile.TemporaryDirectory(prefix="kills-", dir=given.output) as folder:
        for stage in stages(Path(folder)):
            found.append(asdict(kill(stage, given.kills // SHARES[stage.name], Path(folder))))
            sys.stderr.write(json.dumps(found[-1]) + "\n")
    return found


def _load(given: argparse.Namespace) -> list[dict[str, Any]]:
    from dq_deploy.exporters import export
    from dq_deploy.quantization import quantize
    from tests.flow import OPTIONS
    from tests.soak.load import under_load
    from tests.tiny import scheduler, tiny_unet

    with tempfile.TemporaryDirectory(prefix="load-", dir=given.output) as folder:
        checkpoint = quantize(tiny_unet(), Path(folder) / "c", scheduler=scheduler(), sample_shape=(1, 8, 8), **OPTIONS)
        found = []
        for runtime, target in (("onnxruntime", "onnxruntime"), ("openvino", "qdq")):
            bundle = export(checkpoint, Path(folder) / target, target=target)  # type: ignore[arg-type]
            found.append(asdict(under_load(bundle, runtime, given.minutes * 60)))  # type: ignore[arg-type]
    return found


PARTS = {"fuzz": _fuzz, "kills": _kills, "load": _load}

if __name__ == "__main__":
    sys.exit(main())
