"""One family the whole way: quantize, export for both targets, check both graphs, build for TensorRT-RTX and OpenVINO."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import dq_deploy
from dq_deploy.artifacts import Artifact
from dq_deploy.artifacts.details import Target
from dq_deploy.engines.build.engine import load_report
from dq_deploy.engines.loading.choice import Engine
from dq_deploy.errors import DqDeployError
from tests.families.family import Family

TARGETS: tuple[Target, ...] = ("qdq", "onnxruntime")
CAPABILITY = "8.9"
_SAMPLE = "reads the model's input"
FAST: dict[str, Any] = {
    "steps": 3,
    "calibration_samples": 3,
    "reference_samples": 8,
    "iterations": 0,
    "dilation": "none",
    "max_float_share": 1.0,  # a small network is mostly first and last layer; the row says which share of it, and why
}


@dataclass
class Row:
    """What became of a family. ``stage`` is the one that ended it, "" where it went the whole way."""

    name: str
    stage: str = ""
    error: str = ""
    message: str = ""
    layers: int = 0
    float_layers: dict[str, float] = field(default_factory=dict)  # reason → share of the multiply-accumulates
    worst_snr_db: float | None = None
    failures: list[str] = field(default_factory=list)  # of check, both targets
    int8: int = 0
    planned: int = 0  # of the engine's layers, which attention in one kernel has none of
    as_planned: int = 0
    kernels: int = 0
    openvino_int8: int | None = None
    not_int8: dict[str, str] = field(default_factory=dict)  # layer → the precision that the plan has it in, and why
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def beside_the_sample(self) -> float:
        """Share of the multiply-accumulates in float beside the layers that read the sample."""
        return sum(share for reason, share in self.float_layers.items() if _SAMPLE not in reason)

    @property
    def sample_share(self) -> float:
        """Share of the multiply-accumulates of the layers that read the sample, which are kept in float."""
        return sum(self.float_layers.values()) - self.beside_the_sample


class _Stages:
    """Remembers which stage is under way, and how long each took."""

    def __init__(self, row: Row) -> None:
        self.row, self.began = row, 0.0

    def begin(self, name: str) -> None:
        self.end()
        self.row.stage, self.began = name, time.monotonic()

    def end(self) -> None:
        if self.row.stage:
            self.row.seconds[self.row.stage] = round(time.monotonic() - self.began, 1)
        self.row.stage = ""


def run_family(
    family: Family, folder: Path, *, preset: str = "w8a8", targets: Sequence[Target] = TARGETS, capability: str = CAPABILITY,
    openvino: bool = True,
) -> Row:  # fmt: skip
    """Take ``family`` through all stages below ``folder``. A refusal is in the row; any other exception is a crash and comes out."""
    row = Row(family.name)
    stages = _Stages(row)
    try:
        checkpoint, bundles = _made(family, folder, row, stages, preset, targets)
        _judged(checkpoint, bundles, row, stages, openvino=openvino)
        _built(bundles["qdq"], folder, row, stages, capability, openvino=openvino)
        stages.end()
    except DqDeployError as error:
        known = next(kind for kind in type(error).__mro__ if kind.__module__ == "dq_deploy.errors")
        row.error, row.message = known.__name__, error.message
    return row


def _made(
    family: Family, folder: Path, row: Row, stages: _Stages, preset: str, targets: Sequence[Target]
) -> tuple[Artifact, dict[Target, Artifact]]:
    stages.begin("quantize")
    model, conditions = family.model(), family.conditions()
    checkpoint = dq_deploy.quantize(
        model, folder / "checkpoint", preset=preset, scheduler=family.scheduler(), sample_shape=family.shape, conditions=conditions or None,
        **{**FAST, **family.options},
    )  # fmt: skip
    _planned(checkpoint, row)
    bundles: dict[Target, Artifact] = {}
    for target in targets:
        stages.begin(f"export {target}")
        bundles[target] = dq_deploy.export(checkpoint, folder / target, target=target, dtype="fp32")
    return checkpoint, bundles


def _planned(checkpoint: Artifact, row: Row) -> None:
    details = checkpoint.manifest.details
    row.layers = len(details["layers"])
    total = sum(layer["macs"] for layer in [*details["layers"], *details["float_layers"]])
    shares: Counter[str] = Counter()
    for layer in details["float_layers"]:
        shares[layer["reason"]] += layer["macs"] / total
    row.float_layers = {reason: round(share, 4) for reason, share in shares.items()}
    row.worst_snr_db = min(details["snr_db"]["after_distillation"])


def _judged(checkpoint: Artifact, bundles: dict[Target, Artifact], row: Row, stages: _Stages, *, openvino: bool) -> None:
    stages.begin("check")
    for target, bundle in bundles.items():
        engines: list[Engine] = ["openvino"] if openvino and target == "qdq" else []
        verdict = dq_deploy.check(bundle, checkpoint, engines=engines)
        row.failures += [f"{target}: {line}" for line in verdict.failures]


def _built(bundle: Artifact, folder: Path, row: Row, stages: _Stages, capability: str, *, openvino: bool) -> None:
    stages.begin("build")
    (report,) = load_report(dq_deploy.build_engine(bundle, folder / "engine", compute_capabilities=[capability]))
    summary = report.summary()
    row.int8, row.as_planned, row.kernels = summary["planned_int8"], summary["as_planned"], summary["kernels"]
    row.planned = summary["planned_layers"]
    row.not_int8 = {layer.name: f"{layer.precision}: {layer.reason}" for layer in [*report.not_as_planned(), *report.not_found()]}
    if openvino:
        stages.begin("build openvino")
        (report,) = load_report(dq_deploy.build_engine(bundle, folder / "openvino", backend="openvino", int8_kernels="always"))
        row.openvino_int8 = report.summary()["planned_int8"]


def write_row(row: Row, path: Path) -> None:
    """The row as JSON."""
    path.write_text(json.dumps(asdict(row), indent=1, ensure_ascii=False) + "\n")


def read_row(path: Path) -> Row:
    """The row that ``write_row`` wrote."""
    return Row(**json.loads(path.read_text()))
