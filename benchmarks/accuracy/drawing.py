"""Pictures from any denoiser by DDIM, each from its own noise: a method cannot be lucky in its noises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from dq_deploy.progress import Advance
from dq_deploy.quantization.calibration.choice import choose
from dq_deploy.quantization.calibration.walk import Walk

Array = np.ndarray[Any, Any]
Denoiser = Callable[..., torch.Tensor]
"""Called as ``denoiser(sample [n, ...], timestep [n] float32, **conditions [n])``."""

PICTURE_SEED = 3_000_000
"""Noise of picture 0; far from the seeds that calibrate."""
BATCH = 16
"""Large enough for the kernels, and small enough for a CPU's caches: 32 and more were slower."""


@dataclass
class Trace:
    """Inputs and outputs of a denoiser on its way, least timestep first when complete. T steps, n samples."""

    timesteps: list[float] = field(default_factory=list)
    samples: list[torch.Tensor] = field(default_factory=list)
    outputs: list[torch.Tensor] = field(default_factory=list)

    def add(self, timestep: float, sample: torch.Tensor, output: torch.Tensor) -> None:
        """Keep one step."""
        self.timesteps.append(timestep)
        self.samples.append(sample.cpu().clone())
        self.outputs.append(output.cpu().clone())


@dataclass(frozen=True)
class Drawing:
    """All that must be the same for two methods whose pictures are compared."""

    scheduler: Any
    shape: tuple[int, ...]
    steps: int
    conditions: Callable[[range], dict[str, torch.Tensor]]
    device: str = "cpu"
    first_seed: int = PICTURE_SEED
    batch: int = BATCH

    def pictures(self, denoiser: Denoiser, numbers: range, advance: Advance | None = None) -> Array:
        """Pictures [n, C, H, W] in [0, 1], float32, of the noises with these numbers."""
        return as_pictures(self.samples(denoiser, numbers, advance))

    @torch.inference_mode()
    def samples(self, denoiser: Denoiser, numbers: range, advance: Advance | None = None) -> Array:
        """Where the noises with these numbers end [n, ...], float32."""
        parts = []
        for start in range(numbers.start, numbers.stop, self.batch):
            part = range(start, min(start + self.batch, numbers.stop))
            parts.append(self._batch(denoiser, part, None))
            if advance:
                advance(len(part))
        return np.concatenate(parts)

    @torch.inference_mode()
    def trace(self, denoiser: Denoiser, numbers: range) -> Trace:
        """What a denoiser is asked and answers on the way to these pictures."""
        whole: Trace | None = None
        for start in range(numbers.start, numbers.stop, self.batch):
            part = Trace()
            self._batch(denoiser, range(start, min(start + self.batch, numbers.stop)), part)
            if whole is None:
                whole = part
            else:
                whole.samples = [torch.cat(pair) for pair in zip(whole.samples, part.samples, strict=True)]
                whole.outputs = [torch.cat(pair) for pair in zip(whole.outputs, part.outputs, strict=True)]
        assert whole is not None
        order = np.argsort(whole.timesteps)
        return Trace(
            [whole.timesteps[i] for i in order], [whole.samples[i] for i in order], [whole.outputs[i] for i in order]
        )  # fmt: skip

    def _batch(self, denoiser: Denoiser, numbers: range, trace: Trace | None) -> Array:
        generators = [torch.Generator().manual_seed(self.first_seed + number) for number in numbers]
        walk = Walk(choose(self.scheduler).scheduler, self.steps, generators)
        conditions = {name: value.to(self.device) for name, value in self.conditions(numbers).items()}
        x = walk.noise(self.shape).to(self.device)
        for position, t in enumerate(walk.timesteps):
            sample = walk.input(position, x)
            output = denoiser(sample, torch.full((len(x),), t, device=self.device), **conditions)
            if trace is not None:
                trace.add(t, sample, output)
            x = walk.step(position, output, x)
        ended: Array = x.cpu().numpy()
        return ended


def as_pictures(samples: Array) -> Array:
    """Samples in [-1, 1] as pictures in [0, 1]."""
    pictures: Array = np.clip(samples / 2 + 0.5, 0, 1)
    return pictures
