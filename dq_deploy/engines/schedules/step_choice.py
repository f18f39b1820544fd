"""Which steps of a schedule get the better of two members, by what each step's error costs the final sample, within a budget of time.

An error's cost is what ``quantize`` measured: the final sample's error with only that step quantized (quantization/final_error.py). A
schedule's is foretold as the sum over its steps, each by the member that runs it; a float member's steps cost nothing. Sums are right only
where errors are small and have nothing to do with each other; they choose the better end of the trajectory (docs/decisions).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel

from ...artifacts import Artifact, open_artifact
from ...artifacts.details import CheckpointDetails, GraphDetails
from ...artifacts.lineage import origin_of
from ...decibels import ratio_db
from ...errors import ArtifactError, UsageError
from ...progress import Progress, silent
from ..bench import Contender, bench
from ..bench.contenders import inputs_of
from ..loading.choice import make_runner
from ..loading.engine_files import open_graph
from .combine import check_alike

_RUNS = 20
_BUDGET = re.compile(r"(\d+(?:\.\d+)?)x")


class StepChoice(BaseModel):
    """A schedule of two members: their order in sampling and the switch; ``combine`` takes both.

    ``better_steps`` of ``steps`` are the better one's. ``time_ratio``: its time over the other's; ``time``: the schedule's over the
    other's. ``snr_db`` is foretold of the final sample, beside ``alone_db``, the other one's alone.
    """

    members: tuple[str, str]
    switches: tuple[float]
    better: str
    better_steps: int
    steps: int
    time_ratio: float
    time: float
    snr_db: float
    alone_db: float


def choose_steps(members: Sequence[str | Path | Artifact[GraphDetails]], checkpoints: Sequence[str | Path | Artifact[CheckpointDetails]],
                 budget: str, *, time_ratio: float | None = None, progress: Progress = silent) -> StepChoice:  # fmt: skip
    """Give the better of two members the first or the last steps of sampling, as many as cost least within ``budget`` ("1.05x").

    The budget is the schedule's time over that of the worse member, which is to be the faster. ``checkpoints`` are those of the quantized
    members. ``time_ratio`` is the better one's time over the other's; without it both are timed here, at batch 1, as ``load`` runs them.

    Raises UsageError (a budget or ratio that is none, that allows no step or all, a better member that is not slower) and ArtifactError
    (members of different models, a checkpoint that is not given or has no costs).
    """
    if len(members) != 2:
        raise UsageError(f"steps are chosen for two members, and {len(members)} are given", "give the switches of three with --switch")
    allowed = _parsed(budget)
    if time_ratio is not None and not 0 < time_ratio < math.inf:
        raise UsageError(f"the time ratio is {time_ratio}, and must be a number above 0")
    opened = [open_graph(member) for member in members]
    check_alike(opened)
    costs = _costs(opened, [open_artifact(one.path if isinstance(one, Artifact) else one, "checkpoint") for one in checkpoints])
    better = 0 if sum(costs[0]) <= sum(costs[1]) else 1
    timesteps = opened[better].manifest.timesteps  # ascending, as costs
    ratio = _measured(opened[better], opened[1 - better], progress) if time_ratio is None else time_ratio
    most = _affordable(opened[better], ratio, allowed, len(timesteps))
    foretold, count, first = min(
        (_power(costs[better], costs[1 - better], count, first=first), count, first)
        for count in range(1, most + 1)
        for first in (True, False)
    )
    order = (better, 1 - better) if first else (1 - better, better)
    return StepChoice(
        members=(str(opened[order[0]].path), str(opened[order[1]].path)),
        # The largest timestep of the second.
        switches=(timesteps[-count - 1 if first else count - 1],),
        better=str(opened[better].path),
        better_steps=count,
        steps=len(timesteps),
        time_ratio=ratio,
        time=1 + (ratio - 1) * count / len(timesteps),
        snr_db=ratio_db(1.0, foretold),
        alone_db=ratio_db(1.0, sum(costs[1 - better])),
    )


def _power(better: Sequence[float], worse: Sequence[float], count: int, *, first: bool) -> float:
    """The error of all steps, ascending, of which the better has ``count``: the first in sampling, which are the largest, or the last."""
    return sum(worse[:-count]) + sum(better[-count:]) if first else sum(better[:count]) + sum(worse[count:])


def _parsed(budget: str) -> float:
    found = _BUDGET.fullmatch(budget.strip())
    if not found or float(found[1]) <= 1:
        raise UsageError(f"a budget of steps is a factor of time above 1, such as 1.05x, and not '{budget}'")
    return float(found[1])


def _costs(members: Sequence[Artifact[GraphDetails]], checkpoints: Sequence[Artifact[CheckpointDetails]]) -> list[list[float]]:
    """By member, and by timestep, ascending: the power of the final sample's error over the sample's own, from this step alone."""
    by_hash = {checkpoint.as_parent.manifest_sha256: checkpoint for checkpoint in checkpoints}
    found = []
    for member in members:
        if member.details.float:
            found.append([0.0] * len(member.manifest.timesteps))
            continue
        checkpoint = by_hash.get(origin_of(member) or "")
        if checkpoint is None:
            given = ", ".join(str(one.path) for one in checkpoints) or "nothing that was given"
            raise ArtifactError(f"{member.path} was not exported from {given}", "give --checkpoint for each quantized member")
        found.append(_costs_of(checkpoint))
    return found


def _costs_of(checkpoint: Artifact[CheckpointDetails]) -> list[float]:
    """Steps that were measured together share their cost."""
    measured = checkpoint.details.final_error
    steps = sorted(measured.steps, key=lambda step: step.timesteps[0]) if measured else []
    costs = [
        math.nan if step.only_db is None else 10 ** (-step.only_db / 10) / len(step.timesteps) for step in steps for _ in step.timesteps
    ]
    if len(costs) != len(checkpoint.manifest.timesteps) or not all(map(math.isfinite, costs)):
        why = (measured.not_measured if measured else None) or "not all of them are finite numbers"
        raise ArtifactError(f"{checkpoint.path} does not say what each step costs the final sample: {why}", "quantize it again")
    return costs


def _measured(better: Artifact[GraphDetails], worse: Artifact[GraphDetails], progress: Progress) -> float:
    """The better member's time over the other's, as ``load`` runs them."""
    inputs = inputs_of(worse)
    contenders = [Contender(str(member.path), make_runner(member), inputs) for member in (worse, better)]
    return bench(contenders, runs=_RUNS, progress=progress).rows[1].ratio


def _affordable(better: Artifact[GraphDetails], ratio: float, allowed: float, steps: int) -> int:
    """How many steps of the better member the budget allows."""
    if ratio <= 1:
        raise UsageError(f"{better.path} is the better one and takes {ratio:.2f} × the other's time: no slower", "use it alone")
    most = math.floor((allowed - 1) / (ratio - 1) * steps + 1e-9)
    if most < 1:
        least = 1 + (ratio - 1) / steps
        raise UsageError(f"{allowed:g}x allows {better.path} no step: at {ratio:.2f} × the other's time, one of {steps} makes {least:.3f}x")
    if most >= steps:
        raise UsageError(f"{allowed:g}x allows {better.path} every step: it takes {ratio:.2f} × the other's time", "use it alone")
    return most
