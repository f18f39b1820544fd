"""What the scale tables of several sizes cost at each, against tables of its own, and what open sizes cost at a run."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from dq_deploy.artifacts import Artifact
from dq_deploy.engines.bench import BenchResult, bench, contenders_from
from dq_deploy.exporters import export
from dq_deploy.quantization import quantize
from dq_deploy.sources import load_source

Size = tuple[int, int]


class Figures(BaseModel):
    """SNR in dB at each timestep, on held-out seeds of one size: by the checkpoint of all sizes, and by that size's own if any."""

    model_config = ConfigDict(extra="forbid")

    size: str
    shared_db: list[float]
    own_db: list[float] | None


def options(calibration_samples: int, steps: int, preset: str) -> dict[str, Any]:
    """Nothing is trained, so that the tables are what differs; weights are rounded by GPTQ."""
    return {"preset": preset, "steps": steps, "calibration_samples": calibration_samples, "reference_samples": 8, "iterations": 0,
            "dilation": "none", "final_samples": 0}  # fmt: skip


def measure(source: str, sizes: Sequence[Size], settings: dict[str, Any]) -> list[Figures]:
    """One checkpoint of all ``sizes``, calibrated on as many samples as each size's own is; the same held-out seeds judge both."""
    channels = load_source(source).sample_shape[:-2]
    with tempfile.TemporaryDirectory() as folder:
        together = quantize(source, Path(folder) / "sizes", sizes=sizes, **settings)
        own: dict[Size | None, list[float]] = {}
        for size in sizes:
            made = quantize(source, Path(folder) / "x".join(map(str, size)), sample_shape=(*channels, *size), **settings)
            own[size] = made.details.snr_db["after_distillation"]
        return [Figures(size=str(entry), shared_db=entry.snr_db, own_db=own.get(entry.size)) for entry in together.details.calibrated_sizes]


def timed(source: str, sizes: Sequence[Size], settings: dict[str, Any], engines: Sequence[str], runs: int) -> BenchResult:
    """The bundle of all sizes against one of the first size alone, at that size."""
    channels = load_source(source).sample_shape[:-2]
    with tempfile.TemporaryDirectory() as folder:
        fixed = quantize(source, Path(folder) / "a", sample_shape=(*channels, *sizes[0]), **settings)
        free = quantize(source, Path(folder) / "b", sizes=sizes, **settings)
        bundles: list[Artifact[Any]] = [
            export(made, Path(folder) / name, target="qdq", dtype="fp32") for name, made in (("fixed", fixed), ("free", free))
        ]
        return bench(contenders_from(bundles, engines=engines), runs=runs)
