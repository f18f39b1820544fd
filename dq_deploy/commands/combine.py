"""``dq-deploy combine``: the command, and what it prints."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..console import Output, megabytes
from .options import common, force_option, output_folder

if TYPE_CHECKING:
    from ..artifacts import Artifact
    from ..artifacts.details import ScheduleDetails


@click.command(short_help="Bundles or engines that take turns over timesteps.")
@click.argument("members", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="MEMBER MEMBER [MEMBER]")
@click.option(
    "--switch",
    "switches",
    type=float,
    multiple=True,
    required=True,
    metavar="TIMESTEP",
    help="Where the next member takes over; one fewer than members, the highest first.",
)
@output_folder("schedule")
@force_option
@common
def combine(members: tuple[Path, ...], switches: tuple[float, ...], destination: Path, force: bool, output: Output) -> None:
    """Make one artefact of two or three bundles or engines of one model, each for its own part of the timesteps.

    The first MEMBER runs the timesteps above the first switch, and the next those below it; a timestep that equals a switch is the next
    member's. A schedule goes wherever a bundle or an engine goes: load, check, bench, sample, report, inspect, model-card, push. All its
    members are in memory while it runs (docs/schedules.md says when it pays).

    Members are copied. They must be of one model: the same source, inputs, sample shape, scheduler and calibrated timesteps. One may be
    float (export --float).
    """
    from ..engines.combine import combine as run_combine

    schedule = run_combine(members, destination, switches=switches, force=force)
    show_schedule(schedule, output)
    output.note(
        "next: " + shlex.join(["dq-deploy", "check", str(destination), "--checkpoint", "CHECKPOINT"]) + ", for each quantized member"
    )


def show_schedule(schedule: Artifact[ScheduleDetails], output: Output) -> None:
    """Who runs what, and what it takes."""
    from ..artifacts.layer_bits import bits_in_words
    from ..artifacts.turns import turns

    steps = len(schedule.manifest.timesteps)
    rows = [
        (
            entry.folder,
            f"{turn.member.manifest.kind} {entry.name}",
            bits_in_words(turn.member) or "float",
            turn.span,
            f"{len(turn.timesteps)} of {steps}",
            megabytes(sum(found.size for found in turn.member.manifest.files.values())),
        )
        for turn, entry in zip(turns(schedule), schedule.details.members, strict=True)
    ]
    output.table(str(schedule.path), ("member", "made of", "bits", "timesteps", "calibrated ones", "size"), rows)
    output.data({"schedule": schedule.path, "manifest": schedule.manifest.model_dump()})
