"""Who runs which timestep of a schedule: the one rule, and a schedule's members by it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .details import GraphDetails, ScheduleDetails
from .folder import Artifact


def members_at(timesteps: ArrayLike, switches: Sequence[float]) -> NDArray[np.intp]:
    """The number of the member that runs each timestep, in their shape: the first above the first of the descending ``switches``.

    A timestep that equals a switch is the next member's. Both are compared as the graphs compare timesteps, in fp32.
    """
    steps, bounds = np.asarray(timesteps, np.float32), np.asarray(switches, np.float32)
    found: NDArray[np.intp] = (steps[..., None] <= bounds).sum(axis=-1)
    return found


@dataclass(frozen=True)
class Turn:
    """A member of a schedule, the calibrated timesteps that it runs, ascending, and all that it runs in words: "above 500"."""

    member: Artifact[GraphDetails]
    timesteps: list[float]
    span: str


def turns(schedule: Artifact[ScheduleDetails]) -> list[Turn]:
    """The members of a schedule with what they run, the first in sampling first."""
    switches, timesteps = schedule.details.switches, schedule.manifest.timesteps
    runs = members_at(timesteps, switches)
    return [
        Turn(member, [t for t, number in zip(timesteps, runs, strict=True) if number == index], _span(switches, index))
        for index, member in enumerate(schedule.members)
    ]


def _span(switches: Sequence[float], index: int) -> str:
    if index == 0:
        return f"above {switches[0]:g}"
    if index == len(switches):
        return f"{switches[-1]:g} and below"
    return f"above {switches[index]:g}, up to {switches[index - 1]:g}"
