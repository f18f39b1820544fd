"""Calibration data: the model's own sampling trajectories, no data set needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ...errors import ArtifactError, UsageError
from ...progress import Progress, silent
from .. import numerics
from ..choices import Sampler
from . import schedules
from .choice import choose
from .view import AS_IT_IS, View
from .walk import Walk

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


@torch.no_grad()
def collect_trajectories(model: Model, scheduler: Any, *, steps: int, seeds: range, shape: tuple[int, ...],
                         conditions: Conditions | None = None, null_conditions: Conditions | None = None,
                         guidance_scale: float | None = None, sampler: Sampler = Sampler.DDIM, batch_size: int = 32,
                         part: slice = slice(None), view: View = AS_IT_IS, progress: Progress = silent) -> Trajectories:  # fmt: skip
    """Sample with ``steps`` steps from each seed and keep every input and output of the model.

    ``conditions`` [P, ...] are dealt to the seeds (see ``deal``). With a ``guidance_scale`` g > 1 the model also sees each input with
    ``null_conditions`` [1 or P, ...], and the trajectory follows null + g · (conditional − null) (Ho & Salimans, arXiv 2207.12598, eq. 6).
    The scheduler is ``choice.choose``'s; one that draws noise takes it from the seed's own generator. ``part`` of the seeds may be sampled
    alone, as it would be with the others. ``view`` is the network's of the schedule.

    Raises UsageError when the scheduler does not fit this loop (``Walk``) or guidance has no null conditions, ArtifactError when the
    model's output has NaN or Inf (naming the timestep and the seed).
    """
    if len(seeds) == 0:
        raise UsageError("no samples to calibrate on", "choose --calibration-samples of 2 or more")
    dealt, per_seed = _halves(conditions or {}, null_conditions, guidance_scale, len(seeds))
    dealt, seeds = _part(dealt, per_seed, part), seeds[part]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    walk = Walk(choose(scheduler, sampler).scheduler, steps, generators, view)
    samples, outputs = [], []
    with progress("calibration trajectories", len(walk.timesteps)) as advance:

        def answer(model_input: torch.Tensor, timestep: float) -> torch.Tensor:
            output = batched(model, model_input, timestep, dealt, batch_size)
            check_finite(output, timestep, seeds, per_seed)
            samples.append(model_input)
            outputs.append(output)
            advance(1)
            return output

        _walked(walk, answer, shape, per_seed, guidance_scale)
    return assemble(walk.timesteps, samples, outputs, dealt, per_seed)


@torch.no_grad()
def final_samples(answer: Answer, scheduler: Any, *, runs: int, steps: int, seeds: range, shape: tuple[int, ...],
                  conditions: Conditions | None = None, null_conditions: Conditions | None = None, guidance_scale: float | None = None,
                  sampler: Sampler = Sampler.DDIM, part: slice = slice(None), view: View = AS_IT_IS) -> torch.Tensor:  # fmt: skip
    """Where ``runs`` runs from the same seeds end [runs, n, ...], each step of which takes what ``answer`` gives; else as above.

    They are one walk: a scheduler steps each sample by itself, and two samples of one seed draw the same noise.
    """
    dealt, per_seed = _halves(conditions or {}, null_conditions, guidance_scale, len(seeds))
    dealt, seeds = _part(dealt, per_seed, part), seeds[part]
    generators = [torch.Generator().manual_seed(seed) for _ in range(runs) for seed in seeds]
    walk = Walk(choose(scheduler, sampler).scheduler, steps, generators, view)

    alike = {name: value.expand(runs, *value.shape) for name, value in dealt.items()}

    def each(model_input: torch.Tensor, timestep: float) -> torch.Tensor:
        return answer(model_input.unflatten(0, (runs, -1)), timestep, alike).flatten(0, 1)

    ends: torch.Tensor = _walked(walk, each, shape, per_seed, guidance_scale).unflatten(0, (runs, -1))
    return ends


def _walked(walk: Walk, answer: Callable[[torch.Tensor, float], torch.Tensor], shape: tuple[int, ...], per_seed: int,
            guidance_scale: float | None) -> torch.Tensor:  # fmt: skip
    """The last state of a walk whose network gives ``answer`` [S·per_seed, ...] for its input and timestep."""
    x = walk.noise(shape)
    for position, timestep in enumerate(walk.timesteps):
        output = answer(walk.input(position, x).repeat_interleave(per_seed, dim=0), timestep)
        prediction = _guided(output, guidance_scale, x.shape[1]) if per_seed == 2 else output
        x = walk.step(position, prediction, x)
    return x


def _part(conditions: Conditions, per_seed: int, part: slice) -> Conditions:
    """The conditions of some of the seeds."""
    return {name: value.unflatten(0, (-1, per_seed))[part].flatten(0, 1) for name, value in conditions.items()}


def _halves(conditions: Conditions, null: Conditions | None, guidance_scale: float | None, count: int) -> tuple[Conditions, int]:
    """Conditions of every sample, and samples for each seed."""
    dealt = deal(conditions, count)
    if guidance_scale is None or guidance_scale <= 1:
        return dealt, 1
    if null is None or set(null) != set(conditions):
        raise UsageError(
            f"guidance needs the conditions of the unconditional half for {', '.join(conditions) or 'a model that takes none'}",
            "give null_conditions= beside conditions=, or leave guidance_scale out",
        )
    pairs = {name: torch.stack([dealt[name], deal({name: null[name]}, count)[name]], dim=1) for name in dealt}
    return {name: pair.flatten(0, 1) for name, pair in pairs.items()}, 2


def batched(model: Model, x: torch.Tensor, timestep: float, conditions: Mapping[str, torch.Tensor], batch_size: int) -> torch.Tensor:
    """The model's outputs for samples x [n, ...] at one timestep, a batch at a time."""
    parts = [slice(i, i + batch_size) for i in range(0, len(x), batch_size)]
    return torch.cat([model(x[p], torch.full((len(x[p]),), timestep), **{k: v[p] for k, v in conditions.items()}) for p in parts])


def _guided(output: torch.Tensor, guidance_scale: float | None, channels: int) -> torch.Tensor:
    """[2S, C or 2C, ...] → [S, ...]: the guided prediction; a predicted variance is the conditional half's."""
    assert guidance_scale is not None
    conditional, null = output.unflatten(0, (-1, 2)).unbind(dim=1)
    guided = null[:, :channels] + guidance_scale * (conditional[:, :channels] - null[:, :channels])
    return torch.cat([guided, conditional[:, channels:]], dim=1)


def check_finite(output: torch.Tensor, timestep: float, seeds: Sequence[int], per_seed: int = 1) -> None:
    """Raise ArtifactError, naming the timestep and the seeds, when the float model's ``output`` [n, ...] has NaN or Inf."""
    if bad := numerics.not_finite(output):
        named = ", ".join(str(s) for s in sorted({seeds[i // per_seed] for i in bad})[:5])
        raise ArtifactError(f"the float model's output has NaN or Inf at timestep {timestep:g}, seed {named}")
