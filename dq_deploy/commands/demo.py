"""``dq-deploy demo``: the command, and what it prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..console import Output
from .options import PATH, common, force_option

if TYPE_CHECKING:
    from ..demo import DemoResult


@click.command(short_help="The whole way with a built-in model, in minutes.")
@click.option("-o", "--output", "destination", type=PATH, required=True, help="Folder for everything that the demo makes.")
@click.option("--iterations", default=100, show_default=True, help="Distillation steps for each block.")
@click.option("--seed", default=0, show_default=True, help="Seed of calibration and pictures.")
@force_option
@common
def demo(destination: Path, iterations: int, seed: int, force: bool, output: Output) -> None:
    """Take the built-in model all the way at W8A8: quantize, export, check, build, time, sample, and one HTML page about it.

    It takes about five minutes on two cores, and needs neither a GPU nor the network.
    """
    from ..demo import run_demo

    result = run_demo(destination, iterations=iterations, seed=seed, force=force, progress=output.progress, note=output.note)
    show_demo(result, output)
    result.enforce()


def show_demo(result: DemoResult, output: Output) -> None:
    """The measured figures."""
    output.table("demo", ("", "measured"), [(f.label, f.value) for f in result.facts])
    output.text(f"page: {result.page}")
    output.data({"page": result.page, "facts": [f.model_dump() for f in result.facts]})
