"""``python -m benchmarks.networks train``: give networks of the list weights that denoise."""

from __future__ import annotations

import sys

import click

from dq_deploy.console import Output
from dq_deploy.errors import DqDeployError, UsageError

from .network import NAMES, network
from .training import train
from .weights import work_folder


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME…")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), default=5.0, show_default=True, help="For each, beyond what it had.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
def main(names: tuple[str, ...], minutes: float, threads: int) -> None:
    """Train networks on Fashion-MNIST, from where they were left. The weights lie in the user's cache and are used from then on."""
    import torch

    torch.set_num_threads(threads)
    out = Output()
    try:
        if unknown := [name for name in names if name not in NAMES]:
            raise UsageError(f"unknown network '{unknown[0]}'", f"networks: {', '.join(NAMES)}")
        for name in names:
            steps = train(network(name), minutes, out.progress)
            out.note(f"{name}: {steps} steps, {work_folder() / 'trained' / name}")
    except DqDeployError as error:
        out.error(error)
        sys.exit(error.exit_code)
