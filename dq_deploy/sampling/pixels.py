"""Drawing with models that work on pixels: diffusers' own DDIM pipeline around any of them, with or without classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from diffusers import DDIMPipeline, DDIMScheduler

from ..artifacts import Artifact
from ..engines.dropin import DropInModel
from ..errors import ArtifactError, UsageError
from ..quantization.calibration.schedules import ddim_scheduler
from ..report.grid import Images
from .classes import Conditioning
from .seeds import generators


@dataclass(frozen=True)
class PixelDrawing:
    """Everything that must be the same for two models whose pictures are compared."""

    scheduler: DDIMScheduler
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

    def _batch(self, model: DropInModel, numbers: range) -> Images:
        unet = model if self.conditioning is None else self.conditioning.applied(model, numbers)
        pipe: Any = DDIMPipeline(unet=unet, scheduler=self.scheduler)
        pipe.set_progress_bar_config(disable=True)
        images: Images = pipe(
            len(numbers), generator=generators(self.seed, numbers), num_inference_steps=self.steps, output_type="np"
        ).images  # fmt: skip
        return images


def pixel_drawing(artifact: Artifact, n: int, seed: int, steps: int | None, batch_size: int,
                  conditioning: Conditioning | None) -> PixelDrawing:  # fmt: skip
    """DDIM over the calibrated noise schedule, in as many steps as there are calibrated timesteps unless ``steps`` says otherwise.

    Raises UsageError for more steps than the schedule has, and for an engine whose batch is too small.
    """
    if not artifact.manifest.scheduler or not artifact.manifest.timesteps:
        raise ArtifactError(f"{artifact.path}: the manifest has no scheduler or no calibrated timesteps, and sampling needs both")
    scheduler = ddim_scheduler(artifact.manifest.scheduler["config"])
    steps, most = len(artifact.manifest.timesteps) if steps is None else steps, scheduler.config.num_train_timesteps
    if steps > most:
        raise UsageError(f"steps is {steps}, and 1 to {most} are possible")
    return PixelDrawing(scheduler, n, seed, steps, _fitting(artifact, batch_size, conditioning), conditioning)


def _fitting(artifact: Artifact, batch_size: int, conditioning: Conditioning | None) -> int:
    """A batch size that an engine was built for; guidance puts two passes into one batch. Raises UsageError when not even one fits."""
    if artifact.manifest.kind != "engine":
        return batch_size
    passes = 1 if conditioning is None or conditioning.null is None else 2
    largest: int = artifact.manifest.details["batch"][2]
    if largest < passes:
        raise UsageError(
            f"{artifact.path} was built for a batch of {largest}, and guidance takes {passes}", "build it with a larger --batch"
        )
    return min(batch_size, largest // passes)
