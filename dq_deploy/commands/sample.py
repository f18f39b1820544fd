"""``dq-deploy sample``: the command, and what it prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..console import Output
from .headings import OUTPUT, PICTURES, HeadedCommand
from .options import PATH, EngineChoice, allows_pickles, asks_for_pictures, common, force_option

if TYPE_CHECKING:
    from ..sampling import SampleResult


_HEADINGS = {
    "What to draw": "--count --seed --steps --guidance-scale --compare-float --frames-a-second",
    "Prompts and pictures": PICTURES,
    "Sizes": "--height --width",
    "The run": "--runtime --cache --watch --allow-pickle",
    "Output": OUTPUT,
}


@click.command(cls=HeadedCommand, headings=_HEADINGS, short_help="Draw images beside the float model's.")
@click.argument("path", type=PATH)
@click.option("-o", "--output", "destination", type=PATH, required=True, help="PNG file for the grid; GIF or MP4 for videos.")
@click.option("-n", "--count", "n", default=16, show_default=True, help="Number of images.")
@click.option("--seed", default=0, show_default=True, help="Seed of the first image.")
@click.option("--steps", type=int, help="Steps of the sampler.  [default: those of the calibration]")
@asks_for_pictures
@click.option(
    "--height",
    type=click.IntRange(1),
    metavar="PIXELS",
    help="Height of the pictures, of a model whose size is free.  [default: as calibrated]",
)
@click.option("--width", type=click.IntRange(1), metavar="PIXELS", help="Width of the pictures, likewise.  [default: as calibrated]")
@click.option(
    "--runtime",
    type=EngineChoice("runtimes", "auto"),
    default="auto",
    show_default=True,
    help="Engine for a bundle; a built engine runs on its own.",
)
@click.option(
    "--compare-float/--no-compare-float",
    default=True,
    show_default=True,
    help="Draw the float model's images beside them, from the same seeds.",
)
@click.option("--watch", is_flag=True, help="Count NaN and saturated codes at every timestep (a bundle in onnxruntime; slower).")
@click.option(
    "--cache",
    type=float,
    metavar="THRESHOLD",
    help="Skip all but the first block of a bundle at steps where what that adds has changed by less, relative to the last step in full.  "
    "[default: none is skipped]",
)
@click.option("--frames-a-second", default=8.0, show_default=True, help="Of a GIF or an MP4.")
@force_option
@common
@allows_pickles
def sample(path: Path, destination: Path, force: bool, output: Output, **drawing: Any) -> None:
    """Draw images with PATH (a bundle, a checkpoint or an engine) in the diffusers pipeline and write them as one grid.

    A model that takes prompts, or works on latents, is put into the pipeline that it came from, which is loaded for it: text encoders,
    decoder and all. The scheduler is the calibration's. A PNG has a video's frames side by side, a GIF or an MP4 shows them in motion.
    """
    from ..sampling import sample as run_sample

    result = run_sample(path, destination, **drawing, force=force, progress=output.progress)
    show_sample(result, destination, output)


def show_sample(result: SampleResult, picture: Path, output: Output) -> None:
    """What was drawn, and how close it is."""
    rows: list[tuple[str, object]] = [("pictures", result.n), ("engine", result.engine)]
    if result.psnr_mean_db is not None:
        rows.append(("PSNR against float", f"mean {result.psnr_mean_db:.1f} dB, worst {result.psnr_min_db:.1f} dB"))
    if result.frame_psnr_db is not None:
        worst, frame = min((value, frame) for frames in result.frame_psnr_db for frame, value in enumerate(frames, start=1))
        rows.append(("worst frame", f"{worst:.1f} dB, frame {frame} of {len(result.frame_psnr_db[0])}"))
    if result.consistency_db is not None:
        mean = sum(result.consistency_db) / result.n
        rows.append(("PSNR of what changes between frames", f"mean {mean:.1f} dB, worst {min(result.consistency_db):.1f} dB"))
    if result.cached is not None:
        rows.append(("skipped by the cache", _skipped(result.cached)))
    output.table(str(picture), ("", ""), rows)
    if result.watched is not None:
        columns = ("timestep", "samples", "NaN or Inf", "codes at an end", "worst quantizer", "its share")
        seen = [
            (
                f"{row['timestep']:g}",
                row["samples"],
                f"{row['not_finite_share']:.2%}",
                f"{row['at_end_share']:.2%}",
                row["worst_quantizer"],
                f"{row['worst_share']:.2%}",
            )
            for row in result.watched
        ]
        output.table("watched", columns, seen)
        if bad := [row["timestep"] for row in result.watched if row["not_finite_share"]]:
            output.warn(f"NaN or Inf in the output at timestep {', '.join(f'{t:g}' for t in bad)}")
        for row in result.watched:
            if row["not_finite_inputs"]:
                count, where = row["not_finite_inputs"], row["first_not_finite"]
                output.warn(f"timestep {row['timestep']:g}: {count} NaN or Inf at the quantizers' inputs, first at {where}")
    output.data(result.to_json())


def _skipped(cached: dict[str, Any]) -> str:
    saved = "" if cached["saved_work"] is None else f", {cached['saved_work']:.0%} of the multiply-accumulates"
    return f"{cached['skipped']} of {cached['calls']} steps ({cached['skipped_share']:.0%}){saved}"
