"""One cell: quantize, draw held-out pictures, compare them with the float model's."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

import dq_deploy
from benchmarks.accuracy.drawing import Array, Drawing
from benchmarks.accuracy.models import Reference
from dq_deploy.decibels import psnr_db
from dq_deploy.quantization import Checkpoint, load_checkpoint
from dq_deploy.sources import load_source

FEW_BITS = {"w3a8": 3, "w2a8": 2}
"""No presets of the program: so many bits for weights, eight for activations."""


class Figures(BaseModel):
    """One cell. ``psnr_db`` of each picture, ``snr_db`` at each timestep on the checkpoint's held-out seeds, ``wall_s`` of everything."""

    model_config = ConfigDict(extra="forbid")

    preset: str
    rounding: str
    iterations: int
    psnr_db: list[float]
    snr_db: list[float]
    wall_s: float

    @property
    def mean(self) -> float:
        """PSNR in dB."""
        return float(np.mean(self.psnr_db))


@dataclass(frozen=True)
class Study:
    """A source, the pictures it is judged by, and what every cell is quantized with."""

    source: str
    steps: int
    pictures: int
    calibration_samples: int
    dilation: str

    @cached_property
    def _reference(self) -> Reference:
        return Reference(load_source(self.source))

    @property
    def _drawing(self) -> Drawing:
        source = self._reference.source
        return Drawing(source.scheduler, source.sample_shape, self.steps, self._reference.held_out)

    @cached_property
    def _expected(self) -> Array:
        model = self._reference.source.model

        def call(sample: torch.Tensor, timestep: torch.Tensor, **conditions: torch.Tensor) -> torch.Tensor:
            answer: torch.Tensor = model(sample, timestep, **conditions, return_dict=False)[0]
            return answer

        return self._drawing.pictures(call, range(self.pictures))

    def measure(self, preset: str, rounding: str, iterations: int) -> Figures:
        """Quantize and judge a cell."""
        options: dict[str, Any] = {"preset": "w4a8", "weight_bits": FEW_BITS[preset]} if preset in FEW_BITS else {"preset": preset}
        started = time.perf_counter()
        with self.quantized(**options, rounding=rounding, iterations=iterations) as checkpoint:
            psnr = self.psnr_db(checkpoint)
            snr = checkpoint.details.snr_db["after_distillation"]
        wall_s = round(time.perf_counter() - started, 1)
        return Figures(preset=preset, rounding=rounding, iterations=iterations, psnr_db=psnr, snr_db=snr, wall_s=wall_s)

    @contextmanager
    def quantized(self, **options: Any) -> Iterator[Checkpoint]:
        """A checkpoint of the source, in a folder that is there for so long."""
        with tempfile.TemporaryDirectory() as folder:
            made = dq_deploy.quantize(
                self.source, Path(folder) / "checkpoint", **options, steps=self.steps, dilation=self.dilation,
                calibration_samples=self.calibration_samples, final_samples=0,
            )  # fmt: skip
            yield load_checkpoint(made.path)

    def psnr_db(self, checkpoint: Checkpoint) -> list[float]:
        """PSNR in dB of each picture that a checkpoint draws."""
        names = checkpoint.details.inputs

        def call(sample: torch.Tensor, timestep: torch.Tensor, **conditions: torch.Tensor) -> torch.Tensor:
            values = {names[0]: sample, "timestep": timestep, **conditions}
            answer: torch.Tensor = checkpoint.model(*(values[name] for name in names))
            return answer

        return [round(float(x), 3) for x in psnr_db(self._expected, self._drawing.pictures(call, range(self.pictures)))]
