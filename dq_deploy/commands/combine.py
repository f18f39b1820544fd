"""``dq-deploy combine``: the command, and what it prints."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..console import Output, megabytes
from ..errors import UsageError
from .options import PATH, common, force_option, output_folder

if TYPE_CHECKING:
    from ..artifacts import Artifact
    from ..artifacts.details import ScheduleDetails
    from ..engines.schedules.step_choice import StepChoice


@click.command(short_help="Bundles or engines that take turns over timesteps.")
@click.argument("members", nargs=-1, required=True, type=PATH, metavar="MEMBER MEMBER [MEMBER]")
@click.option(
    "--switch",
    "switches",
    type=float,
    multiple=True,
    metavar="TIMESTEP",
    help="Where the next member takes over; one fewer than members, the highest first.",
)
@click.option(
    "--auto-steps",
    metavar="BUDGET",
    help="Choose the order and the switch of two members: the better one gets the steps whose errors cost the final sample most, within "
    "this factor of the faster one's time, such as 1.05x.",
)
@click.option(
    "--checkpoint",
    "checkpoints",
    type=PATH,
    multiple=True,
    help="With --auto-steps: the checkpoint of a quantized member; repeatable.",
)
@click.option("--time-ratio", type=float, help="With --auto-steps: the better member's time over the other's.  [default: measured]")
@output_folder("schedule")
@force_option
@common
def combine(members: tuple[Path, ...], switches: tuple[float, ...], auto_steps: str | None, checkpoints: tuple[Path, ...],
            time_ratio: float | None, destination: Path, force: bool, output: Output) -> None:  # fmt: skip
    """Make one artefact of two or three bundles or engines of one model, each for its own part of the timesteps.

    The first MEMBER runs the timesteps above the first switch, and the next those below it; a timestep that equals a switch is the next
    member's. A schedule goes wherever a bundle or an engine goes: load, check, bench, sample, report, inspect, model-card, push. All its
    members are in memory while it runs (docs/schedules.md says when it pays).

    Members are copied. They must be of one model: the same source, inputs, sample shape, scheduler and calibrated timesteps. One may be
    float (export --float).

    --auto-steps weighs what each step's error costs the final sample, as quantize measured it (docs/accuracy.md), and gives the better of
    two members the first steps or the last.
    """
    from ..artifacts import check_output
    from ..engines.schedules.combine import combine as run_combine
    from ..engines.schedules.step_choice import choose_steps

    if (auto_steps is None) == (not switches):
        raise UsageError("give either the switches (--switch TIMESTEP) or a budget to choose one by (--auto-steps 1.05x)")
    if auto_steps is None and (checkpoints or time_ratio is not None):
        raise UsageError("--checkpoint and --time-ratio would be ignored: the switches are given", "leave them out, or give --auto-steps")
    choice = None
    if auto_steps is not None:
        check_output(destination, force=force)
        choice = choose_steps(members, checkpoints, auto_steps, time_ratio=time_ratio, progress=output.progress)
        show_choice(choice, output)
    made = run_combine(choice.members, destination, switches=choice.switches, force=force) if choice else run_combine(
        members, destination, switches=switches, force=force
    )  # fmt: skip
    show_schedule(made, output, choice)
    output.note(
        "next: " + shlex.join(["dq-deploy", "check", str(destination), "--checkpoint", "CHECKPOINT"]) + ", for each quantized member"
    )


def show_choice(choice: StepChoice, output: Output) -> None:
    """Who was given which steps, and what for."""
    where = "first" if choice.members[0] == choice.better else "last"
    output.note(
        f"{choice.better} runs the {where} {choice.better_steps} of {choice.steps} steps: {choice.time:.3f} × the other's time (its own is "
        f"{choice.time_ratio:.2f} ×); the final sample's SNR is foretold to be {choice.snr_db:.1f} dB, and {choice.alone_db:.1f} without it"
    )


def show_schedule(schedule: Artifact[ScheduleDetails], output: Output, choice: StepChoice | None = None) -> None:
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
    chosen = {} if choice is None else {"auto_steps": choice.model_dump()}
    output.data({"schedule": schedule.path, "manifest": schedule.manifest.model_dump(), **chosen})
