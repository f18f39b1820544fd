"""Calibration data: what the model sees and answers along its own sampling trajectories."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from ...errors import ArtifactError
from .. import numerics
from . import schedules

Model = Callable[..., torch.Tensor]
Conditions = dict[str, torch.Tensor]
Answer = Callable[[torch.Tensor, float, Conditions], torch.Tensor]
"""The outputs [R, m, ...] for the inputs [R, m, ...] and conditions [R, m, ...] of R runs at one timestep."""


@dataclass(frozen=True)
class Trajectories:
    """What the model sees while it samples: T timesteps ascending, n samples.

    n counts seeds without guidance. With classifier-free guidance each seed has ``per_seed`` = 2 adjacent samples, one for each half:
    what is split by samples must not part them, since they share their input. ``varying`` are conditions that another network computes anew
    at each step, a ControlNet's residuals. ``others`` are the same of further sizes, which may have other timesteps; what a method gives is
    of the first size, without them.
    """

    timesteps: torch.Tensor  # [T] fp32
    samples: torch.Tensor  # [T, n, ...]: the model's input at that timestep
    outputs: torch.Tensor  # [T, n, ...]: the float model's output for it
    conditions: Conditions  # each [n, ...]: the same at every timestep
    per_seed: int = 1
    varying: Conditions = field(default_factory=dict)  # each [T, n, ...]
    others: tuple[Trajectories, ...] = ()

    @property
    def by_size(self) -> tuple[Trajectories, ...]:
        """Trajectories of one size each."""
        return (replace(self, others=()), *self.others)

    def given(self, row: int, samples: slice | torch.Tensor = slice(None)) -> Conditions:
        """All conditions [N, ...] of the N chosen samples at the timestep of ``row``."""
        here = {name: value[row] for name, value in self.varying.items()}
        return {name: value[samples] for name, value in (self.conditions | here).items()}

    def spread(self, count: int) -> Trajectories:
        """Those of ``count`` seeds, evenly spaced, or all where there are fewer."""
        seeds = self.samples.shape[1] // self.per_seed
        index = turns(seeds, min(count, seeds))
        return self._of(index)

    def first(self, count: int) -> Trajectories:
        """Those of the first ``count`` seeds."""
        return self._of(torch.arange(count))

    def at(self, timesteps: Sequence[float]) -> Trajectories:
        """Those at some of the timesteps."""
        chosen = torch.isin(self.timesteps, torch.tensor(timesteps, dtype=self.timesteps.dtype))
        varying = {name: value[chosen] for name, value in self.varying.items()}
        return replace(self, timesteps=self.timesteps[chosen], samples=self.samples[chosen], outputs=self.outputs[chosen], varying=varying)

    def _of(self, seeds: torch.Tensor) -> Trajectories:
        chosen = (seeds[:, None] * self.per_seed + torch.arange(self.per_seed)).flatten()
        conditions = {name: value[chosen] for name, value in self.conditions.items()}
        varying = {name: value[:, chosen] for name, value in self.varying.items()}
        samples, outputs = self.samples[:, chosen], self.outputs[:, chosen]
        return replace(self, samples=samples, outputs=outputs, conditions=conditions, varying=varying, others=())

    def flat(self, samples: slice) -> tuple[torch.Tensor, torch.Tensor, Conditions]:
        """(samples [T·m, ...], timestep [T·m], conditions) of the chosen samples, timesteps slowest."""
        chosen = self.samples[:, samples]
        table_rows, count = chosen.shape[:2]
        conditions = {k: v[samples].repeat(table_rows, *[1] * (v.dim() - 1)) for k, v in self.conditions.items()}
        conditions |= {k: v[:, samples].flatten(0, 1) for k, v in self.varying.items()}
        return chosen.flatten(0, 1), self.timesteps.repeat_interleave(count), conditions


def deal(conditions: Conditions, count: int) -> Conditions:
    """``conditions`` [P, ...] dealt to ``count`` seeds → [count, ...]: in turn, or evenly spaced ones where there are more than seeds."""
    return {name: values[turns(len(values), count)] for name, values in conditions.items()}


def turns(size: int, count: int) -> torch.Tensor:
    """Which of ``size`` conditions each of ``count`` seeds gets: int64 [count]."""
    index = torch.arange(count)
    return index % size if size <= count else index * size // count


def assemble(timesteps: Sequence[float], samples: list[torch.Tensor], outputs: list[torch.Tensor], conditions: Conditions,
             per_seed: int, varying: Mapping[str, list[torch.Tensor]] | None = None) -> Trajectories:  # fmt: skip
    """Trajectories from the model's calls in their order: at each of ``timesteps``, samples, outputs and ``varying`` [n, ...]."""
    positions = schedules.distinct_timesteps(timesteps)

    def picked(calls: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack([schedules.one_call_each(calls, at, per_seed) for at in positions.values()])

    steps = torch.tensor(list(positions), dtype=torch.float32)
    moving = {name: picked(calls) for name, calls in (varying or {}).items()}
    return Trajectories(steps, picked(samples), picked(outputs), conditions, per_seed, moving)


def batched(model: Model, x: torch.Tensor, timestep: float, conditions: Mapping[str, torch.Tensor], batch_size: int) -> torch.Tensor:
    """The model's outputs for samples x [n, ...] at one timestep, a batch at a time."""
    parts = [slice(i, i + batch_size) for i in range(0, len(x), batch_size)]
    return torch.cat([model(x[p], torch.full((len(x[p]),), timestep), **{k: v[p] for k, v in conditions.items()}) for p in parts])


def check_finite(output: torch.Tensor, timestep: float, seeds: Sequence[int], per_seed: int = 1) -> None:
    """Raise ArtifactError, naming the timestep and the seeds, when the float model's ``output`` [n, ...] has NaN or Inf."""
    if bad := numerics.not_finite(output):
        named = ", ".join(str(s) for s in sorted({seeds[i // per_seed] for i in bad})[:5])
        raise ArtifactError(f"the float model's output has NaN or Inf at timestep {timestep:g}, seed {named}")
