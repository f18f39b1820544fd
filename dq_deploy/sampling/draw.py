"""Drawing: the same seeds, subjects and steps for two models in the same pipeline of diffusers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..artifacts import Artifact, open_artifact
from ..decibels import psnr_db
from ..engines.step_cache.steps import CacheReport
from ..errors import UsageError
from ..progress import Advance, Progress, silent
from .classes import conditioning_of
from .grid import Images
from .models import IN_MEMORY, float_model, float_source, quantized_model
from .pipelines import (
    PipelineDrawing,
    conditions,
    from_picture_alone,
    needs_pipeline,
    no_pictures,
    no_prompts,
    pipeline_drawing,
    prompts_of,
    wish,
)
from .pixels import PixelDrawing, pixel_drawing
from .request import Drawing
from .videos import consistency_db, frame_psnr_db, is_video


@dataclass(frozen=True)
class DrawnPictures:
    """What was drawn: pictures [n, H, W, C] or videos [n, F, H, W, C] in [0, 1].

    ``expected`` is by the float model from the same seeds (None: not asked for).
    ``psnr_db`` compares the two, picture by picture; of videos ``frame_psnr_db`` does so frame by frame, and ``consistency_db`` what lies
    between the frames (videos.py). ``timesteps`` are those at which the model was called; ``furthest`` is the largest
    distance from one of them to its calibrated timestep. ``labels`` are the classes drawn and ``prompts`` the prompts, None for a model
    without them. ``watched`` has what was counted at each timestep, and ``cached`` what was skipped, where that was requested.
    """

    quantized: Images
    expected: Images | None
    psnr_db: list[float] | None
    engine: str
    timesteps: list[float]
    furthest: float
    labels: list[int] | None
    prompts: list[str] | None
    guidance_scale: float | None
    watched: list[dict[str, Any]] | None = None
    cached: CacheReport | None = None
    frame_psnr_db: list[list[float]] | None = None
    consistency_db: list[float] | None = None


def draw(path: str | Path | Artifact, drawing: Drawing, *, progress: Progress = silent) -> DrawnPictures:
    """Draw pictures with a bundle, a checkpoint, an engine or a schedule, and with the float model.

    The scheduler is the one that the model was calibrated with. A model that works on pixels is drawn with in the loop of the calibration;
    one that takes prompts, or works on latents, is put into the pipeline that it came from.

    Raises UsageError (no prompts, an unknown class, a pipeline that cannot be read again or refuses), ArtifactError (a damaged
    artefact, a float model other than the one quantized) and EnvironmentProblem (a missing runtime).
    """
    artifact = path if isinstance(path, Artifact) else open_artifact(path, ("bundle", "checkpoint", "engine", "schedule"))
    way, reference = _way(artifact, drawing)
    model, engine = quantized_model(artifact, drawing.runtime, watch=drawing.watch, cache=drawing.cache)
    visited: dict[float, None] = {}
    with progress("sampling", way.calls * (1 if reference is None else 2)) as advance:
        quantized = _observed(way, model, advance, visited)
        expected = None if reference is None else _observed(way, reference, advance, {})
    compared = (expected, quantized) if expected is not None and is_video(expected) else None
    return DrawnPictures(
        quantized=quantized,
        expected=expected,
        psnr_db=None if expected is None else psnr_db(expected, quantized).tolist(),
        engine=engine,
        timesteps=list(visited),
        furthest=max(min(abs(t - c) for c in artifact.manifest.timesteps) for t in visited),
        labels=way.labels,
        prompts=way.prompts,
        guidance_scale=way.guidance_scale,
        watched=[row.model_dump() for row in model.watched()] if drawing.watch else None,
        cached=None if drawing.cache is None else model.cached(),
        frame_psnr_db=frame_psnr_db(*compared) if compared else None,
        consistency_db=consistency_db(*compared) if compared else None,
    )


def _way(artifact: Artifact, drawing: Drawing) -> tuple[PixelDrawing | PipelineDrawing, torch.nn.Module | None]:
    """How to draw with any denoiser of this kind, and the float one if it is asked for."""
    if not conditions(artifact) and (drawing.prompts is not None or drawing.negative_prompt is not None):
        raise UsageError("a prompt is given, and the model takes none", "leave that out")
    if not needs_pipeline(artifact) and drawing.pictures:
        raise UsageError("a picture is given, and the model draws from noise alone", "leave --image, --mask and --strength out")
    if needs_pipeline(artifact):
        wishes = wish(artifact, drawing)
        source = float_source(artifact)
        return pipeline_drawing(artifact, source, drawing, wishes), source.model if drawing.compare_float else None
    conditioning = conditioning_of(artifact, drawing.classes, drawing.guidance_scale)
    return pixel_drawing(artifact, drawing, conditioning), float_model(artifact) if drawing.compare_float else None


def _observed(drawing: PixelDrawing | PipelineDrawing, model: torch.nn.Module, advance: Advance, visited: dict[float, None]) -> Images:
    """What ``drawing`` draws with ``model``; the timesteps at which that is called go into ``visited``."""
    left = drawing.calls

    def called(_: torch.nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], __: object) -> None:
        nonlocal left
        timestep = torch.as_tensor(named["timestep"] if "timestep" in named else inputs[1])
        visited.update(dict.fromkeys(timestep.float().flatten().tolist()))
        advance(min(1, left))  # a sampler of higher order calls more than once a step
        left -= min(1, left)

    hook = model.register_forward_hook(called, with_kwargs=True)
    try:
        return drawing(model)  # type: ignore[arg-type]
    finally:
        hook.remove()


def not_drawable(artifact: Artifact, drawing: Drawing | None = None) -> str | None:
    """Why no pictures can be drawn with an artefact here as the drawing says; None where they can."""
    reason, details = needs_pipeline(artifact), artifact.details
    if reason is None:
        return None
    reference = (details.source.reference if details.source else "") or IN_MEMORY
    if not details.pipeline_class or reference.startswith(IN_MEMORY):
        return f"{artifact.path} {reason}, which the pipeline that it came from would make; that was an object in memory"
    if details.pictures is not None and not (drawing and drawing.pictures):
        return no_pictures(artifact, details.pictures.kinds)
    prompted = conditions(artifact) and not from_picture_alone(artifact)
    return no_prompts(artifact) if prompted and prompts_of(artifact, drawing) is None else None
