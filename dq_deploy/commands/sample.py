"""``dq-deploy sample``: the command, and what it prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..console import Output
from .options import common, force_option

if TYPE_CHECKING:
    from ..sampling import SampleResult


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("-o", "--output", "destination", type=click.Path(path_type=Path), required=True, help="PNG file for the grid.")
@click.option("-n", "--count", default=16, show_default=True, help="Number of pictures.")
@click.option("--seed", default=0, show_default=True, help="Seed of the first picture.")
@click.option("--steps", type=int, help="DDIM steps.  [default: the number of calibrated timesteps]")
@click.option("--classes", metavar="LIST", help="Classes to draw in turn with a class-conditional model, such as 0-9,3.  [default: all]")
@click.option("--guidance-scale", type=float, help="Classifier-free guidance of a class-conditional model.  [default: as calibrated]")
@click.option(
    "--runtime",
    type=click.Choice(["auto", "onnxruntime", "openvino"]),
    default="auto",
    show_default=True,
    help="Engine for a bundle; a built engine runs on its own.",
)
@click.option(
    "--compare-float/--no-compare-float",
    default=True,
    show_default=True,
    help="Draw the float model's pictures beside them, from the same seeds.",
)
@force_option
@common
def sample(path: Path, destination: Path, count: int, seed: int, steps: int | None, classes: str | None, guidance_scale: float | None,
           runtime: Any, compare_float: bool, force: bool, output: Output) -> None:  # fmt: skip
    """Draw pictures with PATH (a bundle, a checkpoint or an engine of OpenVINO) in the diffusers pipeline and write them as one grid."""
    from ..sampling import sample as run_sample

    result = run_sample(
        path,
        destination,
        n=count,
        seed=seed,
        steps=steps,
        classes=classes,
        guidance_scale=guidance_scale,
        compare_float=compare_float,
        runtime=runtime,
        force=force,
        progress=output.progress,
    )
    show_sample(result, destination, output)


def show_sample(result: SampleResult, picture: Path, output: Output) -> None:
    """What was drawn, and how close it is."""
    rows: list[tuple[str, object]] = [("pictures", result.n), ("engine", result.engine)]
    if result.psnr_mean_db is not None:
        rows.append(("PSNR against float", f"mean {result.psnr_mean_db:.1f} dB, worst {result.psnr_min_db:.1f} dB"))
    output.table(str(picture), ("", ""), rows)
    output.data(result.to_json())
