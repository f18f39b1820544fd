"""``dq-deploy report``: the command, and what it prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..console import Output
from ..errors import UsageError
from .headings import OUTPUT, PICTURES, HeadedCommand
from .options import PATH, EngineChoice, allows_pickles, asks_for_pictures, common, force_option, whole_numbers

if TYPE_CHECKING:
    from ..report.data import ReportData

_OF_PICTURES = ("count", "seed", "steps", "prompts", "negative_prompt", "image", "mask", "control_image",
                "ip_adapter_image", "strength", "classes", "guidance_scale", "runtime")  # fmt: skip
_OF_BENCH = ("baseline", "batch", "runs")


_HEADINGS = {
    "What to report": "--checkpoint --title --layer-error --check --allow-pickle",
    "Images": "--samples --count --seed --steps --guidance-scale --runtime",
    "Prompts and pictures": PICTURES,
    "Latency": "--bench --baseline --batch --runs",
    "Output": OUTPUT,
}


@click.command(cls=HeadedCommand, headings=_HEADINGS, short_help="One HTML page about a checkpoint and what it became.")
@click.argument("paths", nargs=-1, required=True, type=PATH, metavar="PATH...")
@click.option("-o", "--output", "destination", type=PATH, required=True, help="HTML file for the page.")
@click.option("--checkpoint", type=PATH, help="The checkpoint, if it is not among the paths.")
@click.option("--title", help="Title of the page.  [default: the model's name]")
@click.option("--samples/--no-samples", default=True, show_default=True, help="Draw images, the float model's beside them.")
@click.option("-n", "--count", type=int, help="Number of images.  [default: 16]")
@click.option("--seed", type=int, help="Seed of the first image.  [default: 0]")
@click.option("--steps", type=int, help="Steps of the sampler.  [default: those of the calibration]")
@asks_for_pictures
@click.option("--runtime", type=EngineChoice("runtimes", "auto"), help="Engine that draws with a bundle.  [default: auto]")
@click.option("--layer-error/--no-layer-error", default=True, show_default=True, help="Measure the error of every layer at every timestep.")
@click.option("--check/--no-check", "checks", default=True, show_default=True, help="Check every bundle against the checkpoint.")
@click.option("--bench", is_flag=True, help="Time everything that can run here, interleaved.")
@click.option("--baseline", type=PATH, help="With --bench: what the others are compared with.  [default: float bundle]")
@click.option("--batch", metavar="N[,N...]", help="With --bench: batch sizes.  [default: 1]")
@click.option("--runs", type=int, help="With --bench: timed runs of each.  [default: 30]")
@force_option
@common
@allows_pickles
def report(
    paths: tuple[Path, ...],
    destination: Path,
    checkpoint: Path | None,
    title: str | None,
    samples: bool,
    layer_error: bool,
    checks: bool,
    bench: bool,
    force: bool,
    output: Output,
    **options: Any,
) -> None:
    """Write one HTML page about a checkpoint and its bundles, engines and schedules (PATH...), which needs nothing but itself.

    It shows pairs of pictures under a slider, the error of every layer at every timestep with that layer's scale table, the error of the
    network and of each bundle, dilation, distillation, what every layer runs in in the engines, latency with --bench, and the commands and
    versions that made it all. Exit code 6 when a bundle fails its check; the page is written, and says so.

    Of a schedule it shows who runs which step. Give the checkpoints of all its members: the page is about the first.
    """
    given = {name: value for name, value in options.items() if value is not None}
    _refuse(given, _OF_PICTURES, ignored=not samples, why="--no-samples draws no pictures")
    _refuse(given, _OF_BENCH, ignored=not bench, why="without --bench nothing is timed")
    from ..report.make import Drawing, ReportRequest, Timing, write_report

    drawing: dict[str, Any] = {("n" if name == "count" else name): given[name] for name in _OF_PICTURES if name in given}
    timing: dict[str, Any] = {name: given[name] for name in ("baseline", "runs") if name in given}
    if "batch" in given:
        timing["batches"] = whole_numbers(given["batch"], "--batch")
    request = ReportRequest(
        drawing=Drawing(**drawing) if samples else None,
        layer_error=layer_error,
        check=checks,
        timing=Timing(**timing) if bench else None,
    )
    data = write_report(
        paths, destination, checkpoint=checkpoint, wanted=request, title=title, force=force, progress=output.progress, note=output.note
    )
    show_report(data, destination, output)
    data.enforce()


def _refuse(given: dict[str, Any], names: tuple[str, ...], *, ignored: bool, why: str) -> None:
    """An option that would be ignored is an error."""
    unused = [f"--{name.replace('_', '-')}" for name in names if name in given]
    if ignored and unused:
        raise UsageError(f"{', '.join(unused)} would be ignored: {why}", "leave one of the two out")


def show_report(data: ReportData, page: Path, output: Output) -> None:
    """The figures at the top of the page, and where it is; as JSON all of the page's data."""
    output.table(data.title, ("", ""), [(tile.label, tile.value) for tile in data.headlines])
    output.text(f"page: {page}")
    output.data(data)
