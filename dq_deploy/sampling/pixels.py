"""Drawing with models that work on pixels: the loop and the scheduler of the calibration, with or without classes."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..artifacts import Artifact
from ..engines.dropin import DropInModel
from ..engines.loading.engine_files import largest_batch
from ..errors import UsageError
from ..quantization.calibration.view import View, view_of
from ..quantization.calibration.walk import Walk
from .classes import Conditioning
from .grid import Images
from .request import Drawing
from .schedulers import calibrated_scheduler, calibrated_steps
from .seeds import generators


@dataclass(frozen=True)
class PixelDrawing:
    """Everything that must be the same for two models whose pictures are compared."""

    scheduler: Any
    view: View
    shape: tuple[int, ...]
    n: int
    seed: int
    steps: int
    batch_size: int
    conditioning: Conditioning | None
    prompts: None = None  # models of pixels take none

    @property
    def calls(self) -> int:
        """Passes through the model that all pictures take."""
        return -(-self.n // self.batch_size) * self.steps

    @property
    def labels(self) -> list[int] | None:
        """Class of every picture."""
        return [self.conditioning.label(number) for number in range(self.n)] if self.conditioning else None

    @property
    def guidance_scale(self) -> float | None:
        """Towards the classes."""
        return self.conditioning.guidance_scale if self.conditioning else None

    def __call__(self, model: DropInModel) -> Images:
        """[n, H, W, C] in [0, 1]."""
        batches = [range(start, min(start + self.batch_size, self.n)) for start in range(0, self.n, self.batch_size)]
        return np.concatenate([self._batch(model, numbers) for numbers in batches])

    @torch.no_grad()
    def _batch(self, model: DropInModel, numbers: range) -> Images:
        denoiser = model if self.conditioning is None else self.conditioning.applied(model, numbers)
        walk = Walk(copy.deepcopy(self.scheduler), self.steps, generators(self.seed, numbers), self.view)
        x = walk.noise(self.shape)
        for position, timestep in enumerate(walk.timesteps):
            x = walk.step(position, denoiser(walk.input(position, x), torch.tensor(timestep)).sample, x)
        images: Images = (x / 2 + 0.5).clamp(0, 1).movedim(1, -1).numpy()
        return images


def pixel_drawing(artifact: Artifact, drawing: Drawing, conditioning: Conditioning | None) -> PixelDrawing:
    """The calibration's scheduler, in as many steps as it took there unless the request says otherwise.

    Raises UsageError for steps that the scheduler refuses, and for an engine whose batch is too small; else as ``calibrated_scheduler``.
    """
    scheduler, (*channels, height, width) = calibrated_scheduler(artifact), artifact.details.sample_shape
    shape = (*channels, drawing.height or height, drawing.width or width)
    steps = calibrated_steps(artifact) if drawing.steps is None else drawing.steps
    Walk(copy.deepcopy(scheduler), steps, [])
    view = view_of((artifact.details.network_config or {}).get("_class_name"))
    batch_size = _fitting(artifact, drawing.batch_size, conditioning)
    return PixelDrawing(scheduler, view, shape, drawing.n, drawing.seed, steps, batch_size, conditioning)


def _fitting(artifact: Artifact, batch_size: int, conditioning: Conditioning | None) -> int:
    """A batch size that an engine was built for; guidance puts two passes into one batch. Raises UsageError when not even one fits."""
    largest = largest_batch(artifact)
    if largest is None:
        return batch_size
    passes = 1 if conditioning is None or conditioning.null is None else 2
    if largest < passes:
        raise UsageError(
            f"{artifact.path} was built for a batch of {largest}, and guidance takes {passes}", "build it with a larger --batch"
        )
    return min(batch_size, largest // passes)
