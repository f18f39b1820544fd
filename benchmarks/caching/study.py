"""Images by a bundle that skips its body at some steps, beside those of the whole bundle, and of fewer steps."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

import dq_deploy
from dq_deploy.artifacts import Artifact, open_artifact
from dq_deploy.artifacts.details import BundleDetails, CheckpointDetails
from dq_deploy.decibels import psnr_db
from dq_deploy.engines.bench.statistics import paired_ratio
from dq_deploy.engines.dropin import DropInModel
from dq_deploy.engines.loading.choice import runtime_name
from dq_deploy.exporters import export
from dq_deploy.quantization import quantize
from dq_deploy.sampling import Drawing, draw
from dq_deploy.sampling.classes import conditioning_of
from dq_deploy.sampling.grid import Images
from dq_deploy.sampling.pixels import pixel_drawing

OPTIONS: dict[str, Any] = {"preset": "w8a8", "iterations": 0, "calibration_samples": 16}
"""Of the quantization: nothing trained."""
STEPS = {20: (15, 10), 50: (38, 25)}
"""Steps that are compared, each with the fewer steps that would save about a quarter and a half of it without any cache."""
THRESHOLDS = (0.01, 0.02, 0.05, 0.1)


@dataclass(frozen=True)
class Setting:
    """``steps`` of a sampler judged against ``of`` steps in float, with a cache's threshold or without (None)."""

    of: int
    steps: int
    threshold: float | None = None

    @property
    def name(self) -> str:
        """In a word."""
        return f"{self.of}-{self.steps}" if self.threshold is None else f"{self.of}-cache-{self.threshold:g}"


class Figures(BaseModel):
    """PSNR in dB of each image against the float model's in ``of`` steps.

    ``skipped``: share of the calls that skipped the body; ``saved``: of the multiply-accumulates.
    """

    model_config = ConfigDict(extra="forbid")
    of: int
    steps: int
    threshold: float | None
    psnr_db: list[float]
    skipped: float
    saved: float
    engine: str


class Times(BaseModel):
    """Time of a trajectory with the cache over that without, in turns: median of the pairs and its 95% interval."""

    model_config = ConfigDict(extra="forbid")
    of: int
    threshold: float
    ratio: float
    low: float
    high: float
    skipped: float
    rounds: int
    engine: str


@dataclass(frozen=True)
class Study:
    """One built-in model: its checkpoint and bundle in ``workspace`` (what is there is used), ``images`` drawn one at a time."""

    model: str
    workspace: Path
    images: int

    @cached_property
    def checkpoint(self) -> Artifact[CheckpointDetails]:
        """W8A8, nothing trained."""
        path = self.workspace / f"{self.model}-w8a8"
        if not path.exists():
            quantize(f"builtin:fashion-mnist-{self.model}", path, **OPTIONS)
        return open_artifact(path, "checkpoint")

    @cached_property
    def bundle(self) -> Artifact[BundleDetails]:
        """In fp32 apart from the integers."""
        path = self.workspace / f"{self.model}-w8a8-qdq"
        return open_artifact(path, "bundle") if path.exists() else export(self.checkpoint, path, target="qdq", dtype="fp32")

    def settings(self) -> list[Setting]:
        """The whole bundle, the thresholds, and fewer steps."""
        return [
            setting
            for of, fewer in STEPS.items()
            for setting in (Setting(of, of), *(Setting(of, of, t) for t in THRESHOLDS), *(Setting(of, steps) for steps in fewer))
        ]

    def measure(self, setting: Setting) -> Figures:
        """Draw, and compare."""
        drawn = draw(self.bundle, self._drawing(setting.steps, setting.threshold))
        cached = drawn.cached
        return Figures(
            of=setting.of,
            steps=setting.steps,
            threshold=setting.threshold,
            psnr_db=psnr_db(self._expected(setting.of), drawn.quantized).round(3).tolist(),
            skipped=round(cached.skipped_share, 4) if cached else 0.0,
            saved=round(cached.saved_work or 0.0, 4) if cached else 0.0,
            engine=drawn.engine,
        )

    def timed(self, of: int, threshold: float, *, rounds: int, threads: int | None) -> Times:
        """Whole trajectories of one image, with the cache and without in turns."""
        way = pixel_drawing(self.bundle, Drawing(n=1, steps=of, batch_size=1), conditioning_of(self.bundle, None, None))
        whole, cached = (dq_deploy.load(self.bundle, cache=cache, threads=threads) for cache in (None, threshold))
        seconds = [(_seconds(way, whole), _seconds(way, cached)) for _ in range(rounds + 1)][1:]  # the first compiles
        baseline, times = (np.array(column) for column in zip(*seconds, strict=True))
        ratio = paired_ratio(times, baseline)
        skipped = round(cached.cached().skipped_share, 4)
        return Times(of=of, threshold=threshold, ratio=ratio.value, low=ratio.low, high=ratio.high, skipped=skipped, rounds=rounds,
                     engine=runtime_name(self.bundle))  # fmt: skip

    def _expected(self, steps: int) -> Images:
        """The float model's own images, kept in the workspace."""
        file = self.workspace / f"{self.model}-float-{steps}-{self.images}.npy"
        if not file.exists():
            drawn = draw(self.bundle, Drawing(n=self.images, seed=1, steps=steps, batch_size=16)).expected
            assert drawn is not None
            np.save(file, drawn)
        images: Images = np.load(file)
        return images

    def _drawing(self, steps: int, threshold: float | None) -> Drawing:
        return Drawing(n=self.images, seed=1, steps=steps, batch_size=1, cache=threshold, compare_float=False)


def _seconds(way: Callable[[DropInModel], Images], model: DropInModel) -> float:
    began = time.perf_counter()
    way(model)
    return time.perf_counter() - began
