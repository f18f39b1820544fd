"""Images and predictions of a refitted checkpoint, of one that was quantized with the LoRA in it, and of the old one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from dq_deploy.artifacts import Artifact, open_artifact
from dq_deploy.artifacts.details import CheckpointDetails
from dq_deploy.decibels import psnr_db
from dq_deploy.progress import Progress, silent
from dq_deploy.quantization import quantize
from dq_deploy.quantization.checkpoint import load_checkpoint
from dq_deploy.quantization.pipeline import per_timestep_snr
from dq_deploy.quantization.refit import refit
from dq_deploy.sampling import Drawing, draw
from dq_deploy.sampling.grid import Images

from .adapter import merged, train

SOURCE = "builtin:fashion-mnist-unet"
OPTIONS: dict[str, Any] = {"iterations": 0, "calibration_samples": 8, "dilation": "none", "final_samples": 0}
"""Of the quantization: nothing trained, no dilation."""
PRESETS = ("w8a8", "w4a8")
Way = Literal["old", "refit", "refit to nearest", "quantized again"]
WAYS: tuple[Way, ...] = ("old", "refit", "refit to nearest", "quantized again")


class Figures(BaseModel):
    """PSNR in dB of each image against the float model's with the LoRA; SNR of predictions by timestep, on samples of that model.

    ``layers`` have other codes than the old checkpoint, and ``clipped`` of their weights lie beyond the range of their scales (of a refit).
    """

    model_config = ConfigDict(extra="forbid")
    preset: str
    weight: float
    way: Way
    psnr_db: list[float]
    snr_db: list[float]
    layers: int | None = None
    clipped: float | None = None

    @property
    def name(self) -> str:
        """In a word."""
        return f"{self.preset}-{self.weight:g}-{self.way.replace(' ', '-')}"


@dataclass(frozen=True)
class Study:
    """Checkpoints in ``workspace`` (what is there is used), and ``images`` from the same seeds."""

    workspace: Path
    images: int
    data: Path | None = None

    def styled(self, weight: float, progress: Progress = silent) -> Path:
        """The pipeline with the LoRA added ``weight`` times, which is trained first where it is not there."""
        folder, file = self.workspace / f"styled-{weight:g}", self.workspace / "lora.safetensors"
        if not file.exists():
            assert self.data is not None
            train(self.data, file, progress)
        if not folder.exists():
            merged(file, folder, weight)
        return folder

    def checkpoint(self, preset: str, weight: float, way: Way, progress: Progress = silent) -> Artifact[CheckpointDetails]:
        """Made in this way."""
        path = self.workspace / f"{preset}-{'0' if way == 'old' else f'{weight:g}'}-{way.replace(' ', '-')}"
        if path.exists():
            return open_artifact(path, "checkpoint")
        if way == "old":
            return quantize(SOURCE, path, preset=preset, progress=progress, **OPTIONS)
        if way == "quantized again":
            return quantize(str(self.styled(weight)), path, preset=preset, progress=progress, **OPTIONS)
        rounding = "nearest" if way == "refit to nearest" else None
        old = self.checkpoint(preset, weight, "old")
        return refit(old, path, source=self.styled(weight), rounding=rounding, progress=progress)

    def measure(self, preset: str, weight: float, way: Way, progress: Progress = silent) -> Figures:
        """Draw, and compare predictions."""
        self.styled(weight, progress)
        made = self.checkpoint(preset, weight, way, progress)
        record = made.details.refit
        return Figures(
            preset=preset,
            weight=weight,
            way=way,
            psnr_db=psnr_db(self._expected(preset, weight), draw(made, self._drawing).quantized).round(3).tolist(),
            snr_db=self._snr(made, preset, weight, progress),
            layers=len(record.layers) if record else None,
            clipped=record.clipped_weights if record else None,
        )

    def changed_db(self, weight: float) -> float:
        """Mean PSNR of the float model's images without the LoRA against those with it."""
        without = self._float(self.checkpoint(PRESETS[0], weight, "old"), "float-0")
        return float(np.mean(psnr_db(self._expected(PRESETS[0], weight), without)))

    @torch.no_grad()
    def _snr(self, made: Artifact[CheckpointDetails], preset: str, weight: float, progress: Progress) -> list[float]:
        """On the held-out samples of the checkpoint that was quantized with the LoRA: the float model's own, and its answers."""
        reference = load_checkpoint(self.checkpoint(preset, weight, "quantized again", progress).path).reference()
        model = load_checkpoint(made.path).model
        return per_timestep_snr(lambda sample, timestep, **_: model(sample, timestep), reference)

    def _expected(self, preset: str, weight: float) -> Images:
        return self._float(self.checkpoint(preset, weight, "quantized again"), f"float-{weight:g}")

    def _float(self, artifact: Artifact[CheckpointDetails], name: str) -> Images:
        """Images of the float model that ``artifact`` was made from, kept in the workspace."""
        file = self.workspace / f"{name}-{self.images}.npy"
        if not file.exists():
            drawn = draw(artifact, Drawing(n=self.images, seed=1, batch_size=16)).expected
            assert drawn is not None
            np.save(file, drawn)
        images: Images = np.load(file)
        return images

    @cached_property
    def _drawing(self) -> Drawing:
        return Drawing(n=self.images, seed=1, batch_size=16, compare_float=False)


def row(cell: Figures) -> str:
    """A line of the table."""
    error = float(np.std(cell.psnr_db, ddof=1)) / len(cell.psnr_db) ** 0.5
    beside = "" if cell.layers is None else f"{cell.layers} layers, {cell.clipped:.2%} of their weights clipped"
    what = {"old": "as it was, without the LoRA"}.get(cell.way, cell.way)
    return f"| {what} | {np.mean(cell.psnr_db):.1f} ± {error:.1f} | {min(cell.psnr_db):.1f} | {median(cell.snr_db):.1f} | {beside} |"
