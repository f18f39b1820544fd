"""Drawn pictures as one PNG, or videos as a GIF or an MP4, and what can be said of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..artifacts.output_file import check_output_file, write_whole
from ..engines.loading.choice import Runtime
from ..errors import UsageError
from ..progress import Progress, silent
from .draw import DrawnPictures, draw
from .grid import Panel, grid_png
from .request import Drawing, Prompts
from .videos import FRAMES_A_SECOND, MOST_IN_GIF, MOST_IN_MP4, grid_gif, grid_mp4, mp4_library, strips

SUFFIXES = (".png", ".gif", ".mp4")


@dataclass(frozen=True)
class SampleResult:
    """``psnr_db`` compares each quantized picture with the float one of the same seed, values in [0, 1]; None when none was made.

    Of videos ``frame_psnr_db`` [n, F] compares frame by frame, and ``consistency_db`` [n] what changes from a frame to the next.
    ``timesteps`` are those at which the model was called; ``furthest`` is the largest distance from one of them to its calibrated timestep.
    """

    output: str
    engine: str
    n: int
    seed: int
    timesteps: list[float]
    furthest: float
    psnr_db: list[float] | None = None
    psnr_mean_db: float | None = None
    psnr_min_db: float | None = None
    prompts: list[str] | None = None
    guidance_scale: float | None = None
    watched: list[dict[str, Any]] | None = None
    cached: dict[str, Any] | None = None
    frame_psnr_db: list[list[float]] | None = None
    consistency_db: list[float] | None = None

    def to_json(self) -> dict[str, Any]:
        """The result as plain JSON values."""
        return asdict(self)


def sample(
    path: str | Path,
    output_png: str | Path,
    *,
    n: int = 16,
    seed: int = 0,
    steps: int | None = None,
    prompts: Prompts | None = None,
    negative_prompt: str | None = None,
    image: Any = None,
    mask: Any = None,
    control_image: Any = None,
    ip_adapter_image: Any = None,
    strength: float | None = None,
    classes: str | Sequence[int] | None = None,
    guidance_scale: float | None = None,
    compare_float: bool = True,
    runtime: Runtime = "auto",
    watch: bool = False,
    cache: float | None = None,
    batch_size: int = 16,
    frames_a_second: float = FRAMES_A_SECOND,
    height: int | None = None,
    width: int | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> SampleResult:
    """Draw ``n`` pictures with a bundle, a checkpoint or an engine and write them as one PNG, the float model's beside them.

    Videos lie there frame by frame; an ``output_png`` that ends in .gif or .mp4 shows them in motion, at ``frames_a_second``.
    The other arguments are those of ``Drawing``. Raises as that and ``draw`` do, and UsageError for an existing output without ``force``.
    """
    output = Path(output_png)
    check_output_file(output, SUFFIXES, force=force)
    _check_motion(output.suffix.lower(), frames_a_second)
    drawing = Drawing(
        n=n, seed=seed, steps=steps, prompts=prompts, negative_prompt=negative_prompt, image=image, mask=mask,
        control_image=control_image, ip_adapter_image=ip_adapter_image, strength=strength, classes=classes, guidance_scale=guidance_scale,
        runtime=runtime, compare_float=compare_float, watch=watch, cache=cache, batch_size=batch_size, height=height, width=width,
    )  # fmt: skip
    drawn = draw(path, drawing, progress=progress)
    panels = _panels(drawn)
    write_whole(output, _written(output.suffix.lower(), panels, frames_a_second))
    psnr = drawn.psnr_db
    return SampleResult(
        output=str(output),
        engine=drawn.engine,
        n=n,
        seed=seed,
        timesteps=drawn.timesteps,
        furthest=drawn.furthest,
        psnr_db=psnr,
        psnr_mean_db=None if psnr is None else float(np.mean(psnr)),
        psnr_min_db=None if psnr is None else min(psnr),
        prompts=drawn.prompts,
        guidance_scale=drawn.guidance_scale,
        watched=drawn.watched,
        cached=None if drawn.cached is None else drawn.cached.model_dump(),
        frame_psnr_db=drawn.frame_psnr_db,
        consistency_db=drawn.consistency_db,
    )


def _check_motion(suffix: str, frames_a_second: float) -> None:
    """Before anything is drawn. Raises UsageError for a speed that such a file does not have, EnvironmentProblem without PyAV."""
    kind, most = ("an MP4", MOST_IN_MP4) if suffix == ".mp4" else ("a GIF", MOST_IN_GIF)
    if not 0 < frames_a_second <= most:
        raise UsageError(f"{frames_a_second:g} frames a second: {kind} has more than 0 and at most {most:g}")
    if suffix == ".mp4":
        mp4_library()


def _written(suffix: str, panels: list[Panel], frames_a_second: float) -> bytes:
    if suffix == ".mp4":
        return grid_mp4(panels, frames_a_second)
    return grid_gif(panels, frames_a_second) if suffix == ".gif" else grid_png(strips(panels))


def _panels(drawn: DrawnPictures) -> list[Panel]:
    if drawn.expected is None or drawn.psnr_db is None:
        return [Panel(f"quantized · {drawn.engine}", drawn.quantized)]
    title = f"quantized · PSNR {np.mean(drawn.psnr_db):.1f} dB · {drawn.engine}"
    return [Panel("float · pytorch", drawn.expected), Panel(title, drawn.quantized)]
