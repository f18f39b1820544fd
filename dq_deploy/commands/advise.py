"""``dq-deploy advise``: the command, and what it prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ..console import Output
from ..errors import UsageError
from .completion import gpus, known_capabilities, sources
from .options import EngineChoice, common

if TYPE_CHECKING:
    from ..engines.devices.advice import Advice


@click.command(short_help="What to take for which card: preset, engine, commands.")
@click.argument("source", required=False, shell_complete=sources)
@click.option(
    "--gpu", metavar="NAME", shell_complete=gpus, help="The GPU, such as 'RTX 4090'; or cpu.  [default: this machine's, else its CPU]"
)
@click.option(
    "--compute-capability",
    metavar="X.Y",
    shell_complete=known_capabilities,
    help="The GPU by its generation, such as 8.9 or sm_89.  [default: the GPU's]",
)
@click.option("--backend", type=EngineChoice("builders"), help="For this engine.  [default: the one that documents most]")
@common
def advise(source: str | None, gpu: str | None, compute_capability: str | None, backend: str | None, output: Output) -> None:
    """Name preset, target and backend for a device, and the commands to type.

    It goes by what each engine's vendor documents for the device, then by what its builder was seen to plan. Nothing was timed on a GPU.
    SOURCE, if it is given, stands in the commands; of a pipeline's folder with a transformer, convolutions do not count.
    """
    from ..engines.devices.advice import advise, device_named, products_of, this_machine
    from ..engines.devices.gpu_names import capabilities_of_names

    asked = gpu if gpu is not None else compute_capability
    if gpu is not None and compute_capability is not None:
        raise UsageError("--gpu and --compute-capability both name a device", "give one of them")
    if compute_capability is not None and (named_so := capabilities_of_names([compute_capability])):
        raise UsageError(f"'{compute_capability}' is a GPU's name and no compute capability", f"{named_so[0]}; --gpu takes names")
    device = this_machine() if asked is None else device_named(asked)
    named = source or "SOURCE"
    show_advice(advise(device, source=named, ops=products_of(named), backend=backend), output)


def show_advice(advice: Advice, output: Output) -> None:
    """The choice and why, what is known there of every engine and format, and the commands."""
    rows = [("preset", advice.preset), ("target", advice.target), ("backend", advice.backend), ("why", advice.why)]
    capability = (
        f" (compute capability {advice.compute_capability})" if advice.compute_capability not in (None, *advice.device.split()) else ""
    )
    output.table(f"for {advice.device}{capability}", ("", ""), rows)
    known = [(row.engine, row.what, row.known) for row in advice.support]
    output.table("what is known there", ("engine", "format", "what is known"), known)
    output.note("documented: by the engine's vendor; planned: chosen by its builder in our tests; executed: run in our tests")
    for command in advice.commands:
        output.text(command)
    for note in advice.notes:
        output.note(note)
    output.data(advice)
