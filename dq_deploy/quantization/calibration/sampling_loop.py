"""The project's own sampling loop: calibration data of a model's own trajectories, no data set needed, and where these end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from ...errors import UsageError
from ...progress import Progress, silent
from ..choices import Sampler
from .choice import choose
from .trajectories import Answer, Conditions, Model, Trajectories, assemble, batched, check_finite, deal
from .view import AS_IT_IS, View
from .walk import Walk


@dataclass(frozen=True)
class SamplingLoop:
    """How samples of ``shape`` (without the batch) are drawn: ``steps`` steps of a scheduler, ``choice.choose``'s.

    ``conditions`` [P, ...] are dealt to the seeds (see ``deal``). With a ``guidance_scale`` g > 1 the model also sees each input with
    ``null_conditions`` [1 or P, ...], and the trajectory follows null + g · (conditional − null) (Ho & Salimans, arXiv 2207.12598, eq. 6).
    A scheduler that draws noise takes it from the seed's own generator. ``view`` is the network's of the schedule.

    Its methods raise UsageError when the scheduler does not fit this loop (``Walk``) or guidance has no null conditions.
    """

    scheduler: Any
    steps: int
    shape: tuple[int, ...]
    conditions: Conditions = field(default_factory=dict)
    null_conditions: Conditions | None = None
    guidance_scale: float | None = None
    sampler: Sampler = Sampler.DDIM
    view: View = AS_IT_IS

    @torch.no_grad()
    def collect(self, model: Model, seeds: range, *, part: slice = slice(None), batch_size: int = 32,
                progress: Progress = silent) -> Trajectories:  # fmt: skip
        """Sample from each seed and keep every input and output of the model; ``part`` of the seeds as it would be with the others.

        Raises ArtifactError when the model's output has NaN or Inf (naming the timestep and the seed).
        """
        if len(seeds) == 0:
            raise UsageError("no samples to calibrate on", "choose --calibration-samples of 2 or more")
        dealt, seeds = self._dealt(len(seeds), part), seeds[part]
        walk = self.walk([torch.Generator().manual_seed(seed) for seed in seeds])
        samples, outputs = [], []
        with progress("calibration trajectories", len(walk.timesteps)) as advance:

            def answer(model_input: torch.Tensor, timestep: float) -> torch.Tensor:
                output = batched(model, model_input, timestep, dealt, batch_size)
                check_finite(output, timestep, seeds, self._per_seed)
                samples.append(model_input)
                outputs.append(output)
                advance(1)
                return output

            self._walked(walk, answer)
        return assemble(walk.timesteps, samples, outputs, dealt, self._per_seed)

    @torch.no_grad()
    def final_samples(self, answer: Answer, seeds: range, *, runs: int = 1, part: slice = slice(None)) -> torch.Tensor:
        """Where ``runs`` runs from the same seeds end [runs, n, ...], each step of which takes what ``answer`` gives.

        They are one walk: a scheduler steps each sample by itself, and two samples of one seed draw the same noise.
        """
        dealt = self._dealt(len(seeds), part)
        walk = self.walk([torch.Generator().manual_seed(seed) for _ in range(runs) for seed in seeds[part]])
        alike = {name: value.expand(runs, *value.shape) for name, value in dealt.items()}

        def each(model_input: torch.Tensor, timestep: float) -> torch.Tensor:
            return answer(model_input.unflatten(0, (runs, -1)), timestep, alike).flatten(0, 1)

        ends: torch.Tensor = self._walked(walk, each).unflatten(0, (runs, -1))
        return ends

    def walk(self, generators: list[torch.Generator]) -> Walk:
        """A walk of one sample for each generator."""
        return Walk(choose(self.scheduler, self.sampler).scheduler, self.steps, generators, self.view)

    @property
    def _per_seed(self) -> int:
        """Samples for each seed: the conditional and the unconditional half, or one."""
        return 1 if self.guidance_scale is None or self.guidance_scale <= 1 else 2

    def _dealt(self, count: int, part: slice) -> Conditions:
        """Conditions of every sample of ``part`` of ``count`` seeds."""
        given, null = self.conditions, self.null_conditions
        dealt = deal(given, count)
        if self._per_seed == 1:
            return {name: value[part] for name, value in dealt.items()}
        if null is None or set(null) != set(given):
            raise UsageError(
                f"guidance needs the conditions of the unconditional half for {', '.join(given) or 'a model that takes none'}",
                "give null_conditions= beside conditions=, or leave guidance_scale out",
            )
        pairs = {name: torch.stack([dealt[name], deal({name: null[name]}, count)[name]], dim=1) for name in dealt}
        return {name: pair[part].flatten(0, 1) for name, pair in pairs.items()}

    def _walked(self, walk: Walk, answer: Callable[[torch.Tensor, float], torch.Tensor]) -> torch.Tensor:
        """The last state of a walk whose network gives ``answer`` [S·per_seed, ...] for its input and timestep."""
        x = walk.noise(self.shape)
        for position, timestep in enumerate(walk.timesteps):
            output = answer(walk.input(position, x).repeat_interleave(self._per_seed, dim=0), timestep)
            prediction = _guided(output, self.guidance_scale, x.shape[1]) if self._per_seed == 2 else output
            x = walk.step(position, prediction, x)
        return x


def _guided(output: torch.Tensor, guidance_scale: float | None, channels: int) -> torch.Tensor:
    """[2S, C or 2C, ...] → [S, ...]: the guided prediction; a predicted variance is the conditional half's."""
    assert guidance_scale is not None
    conditional, null = output.unflatten(0, (-1, 2)).unbind(dim=1)
    guided = null[:, :channels] + guidance_scale * (conditional[:, :channels] - null[:, :channels])
    return torch.cat([guided, conditional[:, channels:]], dim=1)
