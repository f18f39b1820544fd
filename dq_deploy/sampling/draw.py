"""Drawing: the same seeds, classes and steps for two models in diffusers' own DDIM pipeline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMPipeline, DDIMScheduler

from ..artifacts import Artifact, open_artifact
from ..engines.choice import Runtime
from ..engines.dropin import DropInModel
from ..engines.engine_files import details_of
from ..errors import ArtifactError, UsageError
from ..progress import Advance, Progress, silent
from ..quantization.calibration.classes import CLASS_INPUT
from ..quantization.calibration.schedules import ddim_scheduler
from ..report.grid import Images
from .classes import Conditioning, conditioning_of, input_names
from .models import float_model, quantized_model

# Equal pictures have an infinite PSNR; past this one, float rounding is all that is compared.
_PSNR_CAP_DB = 100.0


@dataclass(frozen=True)
class Pictures:
    """What was drawn: [n, H, W, C] in [0, 1] each, ``expected`` by the float model from the same seeds (None: not asked for).

    ``psnr_db`` compares the two, picture by picture. ``timesteps`` are those the scheduler visited; ``furthest`` is the largest distance
    from one of them to its calibrated timestep. ``labels`` are the classes drawn, None for an unconditional model. ``watched`` has what
    was counted at each timestep, where that was asked for.
    """

    quantized: Images
    expected: Images | None
    psnr_db: list[float] | None
    engine: str
    timesteps: list[float]
    furthest: float
    labels: list[int] | None
    guidance_scale: float | None
    watched: list[dict[str, Any]] | None = None


def draw(
    path: str | Path | Artifact,
    *,
    n: int = 16,
    seed: int = 0,
    steps: int | None = None,
    classes: str | Sequence[int] | None = None,
    guidance_scale: float | None = None,
    compare_float: bool = True,
    runtime: Runtime = "auto",
    watch: bool = False,
    batch_size: int = 16,
    progress: Progress = silent,
) -> Pictures:
    """Draw ``n`` pictures with DDIM from a bundle, a checkpoint or an engine, and from the float model.

    Each picture has a seed of its own, made of ``seed`` and its number, so it does not depend on ``batch_size``. ``steps`` defaults to the
    number of calibrated timesteps. A class-conditional model draws ``classes`` in turn (numbers, or "0-9,3"), all of them by default, with
    the ``guidance_scale`` that it was calibrated with by default. A checkpoint runs in PyTorch; ``runtime`` is for bundles. ``watch``
    counts NaN and saturated codes of a bundle by timestep (engines/watch.py).

    Raises UsageError (settings, a class that there is not, a model that needs other conditions or a decoder), ArtifactError (a damaged
    artefact, a float model other than the one quantized) and EnvironmentProblem (a missing runtime).
    """
    artifact = path if isinstance(path, Artifact) else open_artifact(path, ("bundle", "checkpoint", "engine"))
    if artifact.manifest.kind == "engine":
        details_of(artifact.path, artifact.manifest)
    scheduler = ddim_scheduler(_scheduler_config(artifact))
    steps = len(artifact.manifest.timesteps) if steps is None else steps
    _check(artifact, n, seed, steps, batch_size, scheduler.config.num_train_timesteps)
    conditioning = conditioning_of(artifact, classes, guidance_scale)
    scheduler.set_timesteps(steps)
    model, engine = quantized_model(artifact, runtime, watch=watch)
    reference = float_model(artifact) if compare_float else None
    batch_size = _fitting(artifact, batch_size, conditioning)
    passes = -(-n // batch_size) * steps * (1 if reference is None else 2)
    with progress("sampling", passes) as advance:
        drawing = _Drawing(scheduler, n, seed, steps, batch_size, conditioning, advance)
        quantized = drawing(model)
        expected = None if reference is None else drawing(reference)
    visited = [float(t) for t in scheduler.timesteps]
    return Pictures(
        quantized=quantized,
        expected=expected,
        psnr_db=None if expected is None else [_psnr(a, b) for a, b in zip(expected, quantized, strict=True)],
        engine=engine,
        timesteps=visited,
        furthest=max(min(abs(t - c) for c in artifact.manifest.timesteps) for t in visited),
        labels=[conditioning.label(number) for number in range(n)] if conditioning else None,
        guidance_scale=conditioning.guidance_scale if conditioning else None,
        watched=[row.model_dump() for row in model.watched()] if watch else None,
    )


@dataclass(frozen=True)
class _Drawing:
    """Everything that must be the same for two models whose pictures are compared."""

    scheduler: DDIMScheduler
    n: int
    seed: int
    steps: int
    batch_size: int
    conditioning: Conditioning | None
    advance: Advance

    def __call__(self, model: DropInModel) -> Images:
        """[n, H, W, C] in [0, 1]."""
        batches = [range(start, min(start + self.batch_size, self.n)) for start in range(0, self.n, self.batch_size)]
        with _reporting(model, self.advance):
            images = [self._batch(model, numbers) for numbers in batches]
        return np.concatenate(images)

    def _batch(self, model: DropInModel, numbers: range) -> Images:
        unet = model if self.conditioning is None else self.conditioning.applied(model, numbers)
        pipe: Any = DDIMPipeline(unet=unet, scheduler=self.scheduler)
        pipe.set_progress_bar_config(disable=True)
        generators = [torch.Generator().manual_seed(_picture_seed(self.seed, number)) for number in numbers]
        images: Images = pipe(len(numbers), generator=generators, num_inference_steps=self.steps, output_type="np").images
        return images


def _picture_seed(seed: int, number: int) -> int:
    """Unrelated for every pair: neighbouring seeds share no picture."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0] >> 1)


@contextmanager
def _reporting(model: torch.nn.Module, advance: Advance) -> Iterator[None]:
    hook = model.register_forward_hook(lambda *_: advance(1))
    try:
        yield
    finally:
        hook.remove()


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


def _scheduler_config(artifact: Artifact) -> dict[str, Any]:
    scheduler = artifact.manifest.scheduler
    if not scheduler or not artifact.manifest.timesteps:
        raise ArtifactError(f"{artifact.path}: the manifest has no scheduler or no calibrated timesteps, and sampling needs both")
    config: dict[str, Any] = scheduler["config"]
    return config


def not_drawable(artifact: Artifact) -> str | None:
    """Why no pictures can be drawn with an artefact here; None where they can."""
    shape = artifact.manifest.details["sample_shape"]
    others = [name for name in input_names(artifact)[2:] if name != CLASS_INPUT]
    problems = []
    if others:
        problems.append(f"{artifact.path} takes {', '.join(others)}: only unconditional and class-conditional models can be sampled here")
    if len(shape) != 3 or shape[0] not in (1, 3):
        problems.append(f"{artifact.path} works on samples of shape {shape}: only pictures of 1 or 3 channels can be drawn")
    return "; ".join(problems) or None


def _check(artifact: Artifact, n: int, seed: int, steps: int, batch_size: int, most_steps: int) -> None:
    problems = [f"n is {n}, and at least 1 is needed"] if n < 1 else []
    problems += [f"seed is {seed}, and cannot be negative"] if seed < 0 else []
    problems += [] if 1 <= steps <= most_steps else [f"steps is {steps}, and 1 to {most_steps} are possible"]
    problems += [f"batch size is {batch_size}, and at least 1 is needed"] if batch_size < 1 else []
    impossible = not_drawable(artifact)
    if problems or impossible:
        hint = "for other pipelines: pipe.unet = dq_deploy.load(bundle)" if impossible else None
        raise UsageError("; ".join([*problems, *([impossible] if impossible else [])]), hint)


def _psnr(expected: Images, image: Images) -> float:
    """PSNR in dB of a picture against another, values in [0, 1], at most 100."""
    error = float(np.mean((expected.astype(np.float64) - image) ** 2))
    return _PSNR_CAP_DB if error == 0 else min(_PSNR_CAP_DB, float(-10 * np.log10(error)))
