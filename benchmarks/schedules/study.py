"""One preset and calibration seed: SNR and pictures under several schedules, with rows between the calibrated ones and without."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler
from pydantic import BaseModel, ConfigDict

from dq_deploy.progress import Advance
from dq_deploy.quantization import load_checkpoint, quantize
from dq_deploy.quantization.calibration.choice import settings
from dq_deploy.quantization.calibration.sampling_loop import SamplingLoop
from dq_deploy.quantization.calibration.trajectories import Trajectories
from dq_deploy.quantization.choices import Sampler
from dq_deploy.quantization.pipeline import per_timestep_snr
from dq_deploy.quantization.table_rows import PARTS
from dq_deploy.sources import load_source

from .table_rows import halve_rows

Model = Callable[..., torch.Tensor]
WAYS = tuple(f"{PARTS >> halvings}" for halvings in range(PARTS.bit_length()))
"""Parts that the gaps between calibrated timesteps are divided into; 1: no rows but the calibrated ones."""
OWN = "own tables"
_SNR_SEEDS = range(2_000_000, 2_000_008)
_PICTURE_SEEDS = range(3_000_000, 3_000_016)
_BATCH = 16
_PEAK_DB = 100.0


class Figures(BaseModel):
    """Tables under one schedule: SNR [T] in dB by ascending timestep, and PSNR [n] of final pictures."""

    model_config = ConfigDict(extra="forbid")

    timesteps: list[float]
    snr_db: list[float]
    psnr_db: list[float]


class Cell(BaseModel):
    """One preset and calibration seed: schedule → number of parts, or own tables → figures."""

    model_config = ConfigDict(extra="forbid")

    preset: str
    seed: int
    schedules: dict[str, dict[str, Figures]]


@dataclass(frozen=True)
class Schedule:
    """A scheduler that samples with ``steps`` steps."""

    name: str
    scheduler: Any
    steps: int
    sampler: Sampler


@dataclass(frozen=True)
class Study:
    """A source, and the schedules that its tables (DDIM, ``steps`` steps) are used with."""

    source: str
    steps: int

    @cached_property
    def loaded(self) -> Any:
        """The float model."""
        return load_source(self.source)

    @cached_property
    def schedules(self) -> list[Schedule]:
        """Other schedules over the same noise schedule."""
        own, config = self.loaded.scheduler, settings(self.loaded.scheduler)
        return [
            Schedule("DDIM 50", own, 50, Sampler.DDIM),
            Schedule("DPM-Solver++ 15", DPMSolverMultistepScheduler.from_config(config), 15, Sampler.PIPELINE),
            Schedule("Euler 25", EulerDiscreteScheduler.from_config(config), 25, Sampler.PIPELINE),
        ]

    @cached_property
    def _expected(self) -> dict[str, tuple[Trajectories, torch.Tensor]]:
        """The float model's trajectories and pictures under each schedule."""
        model = _called(self.loaded.model)
        return {
            s.name: (
                SamplingLoop(s.scheduler, s.steps, self.loaded.sample_shape, sampler=s.sampler).collect(
                    model, _SNR_SEEDS, batch_size=_BATCH
                ),
                pictures(model, s, self.loaded.sample_shape),
            )
            for s in self.schedules
        }

    def measure(self, preset: str, seed: int, *, own: bool, advance: Advance) -> Cell:
        """Quantize once for DDIM, and with ``own`` once more for each schedule itself, and judge under each schedule."""
        cell = Cell(preset=preset, seed=seed, schedules={s.name: {} for s in self.schedules})
        model, rows = self._quantized(preset, seed, Schedule("", self.loaded.scheduler, self.steps, Sampler.DDIM))
        advance(1, "quantized")
        for way in WAYS:
            rows = halve_rows(model, rows) if way != WAYS[0] else rows
            for schedule in self.schedules:
                cell.schedules[schedule.name][way] = self._judge(model, schedule)
                advance(1, f"{way}, {schedule.name}")
        for schedule in self.schedules if own else []:
            made_for_it, _ = self._quantized(preset, seed, schedule)
            cell.schedules[schedule.name][OWN] = self._judge(made_for_it, schedule)
            advance(1, f"{OWN}, {schedule.name}")
        return cell

    def _quantized(self, preset: str, seed: int, schedule: Schedule) -> tuple[torch.nn.Module, torch.Tensor]:
        with tempfile.TemporaryDirectory() as folder:
            artifact = quantize(
                self.loaded.model, Path(folder) / "checkpoint", preset=preset, scheduler=schedule.scheduler,
                sample_shape=self.loaded.sample_shape, steps=schedule.steps, sampler=schedule.sampler, seed=seed, iterations=0,
                dilation="none", reference_samples=1, batch_size=_BATCH,
            )  # fmt: skip
            loaded = load_checkpoint(artifact.path)
        return loaded.model, loaded.table_timesteps

    @torch.inference_mode()
    def _judge(self, model: torch.nn.Module, schedule: Schedule) -> Figures:
        reference, expected = self._expected[schedule.name]
        got = pictures(model, schedule, self.loaded.sample_shape)
        error = (got - expected).double().pow(2).flatten(1).mean(dim=1).numpy()
        psnr = np.minimum(-10 * np.log10(np.maximum(error, 1e-30)), _PEAK_DB)
        return Figures(timesteps=reference.timesteps.tolist(), snr_db=per_timestep_snr(model, reference), psnr_db=psnr.tolist())


def _called(model: torch.nn.Module) -> Model:
    def call(sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = model(sample, timestep).sample
        return output

    return call


@torch.inference_mode()
def pictures(model: Model, schedule: Schedule, shape: tuple[int, ...]) -> torch.Tensor:
    """Final pictures [n, *shape] in [0, 1] from ``_PICTURE_SEEDS``."""
    parts = []
    for start in range(0, len(_PICTURE_SEEDS), _BATCH):
        generators = [torch.Generator().manual_seed(seed) for seed in _PICTURE_SEEDS[start : start + _BATCH]]
        walk = SamplingLoop(schedule.scheduler, schedule.steps, shape, sampler=schedule.sampler).walk(generators)
        x = walk.noise(shape)
        for position, timestep in enumerate(walk.timesteps):
            x = walk.step(position, model(walk.input(position, x), torch.full((len(x),), timestep)), x)
        parts.append((x / 2 + 0.5).clamp(0, 1))
    return torch.cat(parts)
