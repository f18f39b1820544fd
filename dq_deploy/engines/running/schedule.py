"""The runner of a schedule: its members' runners, each for the timesteps that are its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...artifacts.turns import members_at
from ...errors import ArtifactError
from .runner import TIMESTEP, Array, GraphRunner, InputSpec, gathered, taken


class ScheduleRunner(GraphRunner):
    """Runs each sample with the member that its timestep belongs to: a batch that mixes them is split, and put together in its order.

    All ``members`` are loaded for as long as this is. ``switches`` are one fewer, descending (artifacts/turns.py). Raises ArtifactError for
    graphs that do not have the same inputs.
    """

    def __init__(self, members: Sequence[GraphRunner], switches: Sequence[float]) -> None:
        self.members, self.switches = list(members), list(switches)
        self.nonfinite = members[0].nonfinite
        self.specs = _specs(members)

    @property
    def name(self) -> str:  # type: ignore[override]  # a member may change its own while it runs
        """The engine, or those of the members."""
        return "+".join(dict.fromkeys(member.name for member in self.members))

    @property
    def details(self) -> dict[str, Any]:  # type: ignore[override]
        """What the members say alike, and each of them by itself."""
        first, *others = (member.details for member in self.members)
        alike = {name: value for name, value in first.items() if all(name in other and other[name] == value for other in others)}
        return {**alike, "engine": self.name, "switches": self.switches, "members": [member.details for member in self.members]}

    def _infer(self, feeds: dict[str, Array]) -> Array:
        runs = members_at(feeds[TIMESTEP], self.switches)
        parts = [(np.flatnonzero(runs == index), member) for index, member in enumerate(self.members)]
        return gathered([(samples, member.run(taken(self.specs, feeds, samples))) for samples, member in parts if samples.size])


def _specs(members: Sequence[GraphRunner]) -> tuple[InputSpec, ...]:
    """The inputs that all members take: a size that differs is any, and what only one of them is built for is for it to refuse."""
    by_name = [{spec.name: spec for spec in member.specs} for member in members]
    ranks = [{name: len(spec.shape) for name, spec in names.items() if name != TIMESTEP} for names in by_name]
    if any(found != ranks[0] for found in ranks):
        inputs = "; ".join(", ".join(f"{name} of {rank} dimensions" for name, rank in found.items()) for found in ranks)
        raise ArtifactError(f"the graphs of a schedule's members take different inputs: {inputs}", "export them again, and combine those")
    return tuple(_spec([names[spec.name] for names in by_name]) for spec in members[0].specs)


def _spec(specs: Sequence[InputSpec]) -> InputSpec:
    """One input of all members: in the widest of their types, so that none gets less than it takes."""
    timestep = specs[0].name == TIMESTEP  # a graph may take one, or one for each sample
    sizes = [(None,)] if timestep else list(zip(*(spec.shape for spec in specs), strict=True))
    shape = tuple(same[0] if len(set(same)) == 1 else None for same in sizes)
    entries = [spec.entries for spec in specs if spec.entries is not None]
    return InputSpec(specs[0].name, shape, np.result_type(*(spec.dtype for spec in specs)), entries=min(entries, default=None))
