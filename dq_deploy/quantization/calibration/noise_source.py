"""Calibration of a network that predicts no step, such as a ControlNet: noise at the scheduler's levels, and no trajectory."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ...errors import UsageError
from ...progress import Progress
from ..calling import CallForm, OutputForm
from ..config import QuantizeConfig
from .choice import Choice, choose
from .source import CalibrationSource, LoopSource
from .trajectories import Answer, Conditions, Model, Trajectories, assemble, batched, check_finite, deal
from .view import AS_IT_IS, View
from .walk import Walk


@dataclass(frozen=True)
class NoiseSource:
    """Samples as they are at each of the scheduler's steps, with noise of variance 1 in the place of the picture."""

    scheduler: Any
    shape: tuple[int, ...]
    config: QuantizeConfig
    examples: Conditions = field(default_factory=dict)
    form: CallForm | None = None
    view: View = AS_IT_IS

    @property
    def choice(self) -> Choice:
        """As the protocol says."""
        return choose(self.scheduler, self.config.sampler)

    def try_out(self, model: Model) -> None:
        """One sample at the first timestep."""
        first = {name: value[:1] for name, value in self.examples.items()}
        for sample, timestep in itertools.islice(self._samples(range(self.config.seed, self.config.seed + 1)), 1):
            check_finite(batched(model, sample, timestep, first, 1), timestep, [self.config.seed])

    @torch.no_grad()
    def collect(self, model: Model, seeds: range, progress: Progress, part: slice = slice(None)) -> Trajectories:
        """As the protocol says."""
        conditions = {name: value[part] for name, value in deal(self.examples, len(seeds)).items()}
        visited, samples, outputs = [], [], []
        with progress("calibration on noise", self.config.steps) as advance:
            for sample, timestep in self._samples(seeds[part]):
                output = batched(model, sample, timestep, conditions, self.config.batch_size)
                check_finite(output, timestep, seeds[part])
                visited.append(timestep)
                samples.append(sample)
                outputs.append(output)
                advance(1)
        return assemble(visited, samples, outputs, conditions, 1)

    def final_samples(self, answer: Answer, seeds: range, part: slice, runs: int, output: OutputForm) -> torch.Tensor:  # noqa: ARG002
        """As ``CalibrationSource`` says. Raises UsageError: no trajectory ends."""
        raise UsageError("the network predicts no step of a sample")

    def record(self) -> dict[str, Any]:
        """As the protocol says."""
        return {"from": "noise", "classes": None, "guidance_scale": None, "scheduler": type(self.choice.scheduler).__name__}

    def _samples(self, seeds: Sequence[int]) -> Iterator[tuple[torch.Tensor, float]]:
        """Samples [n, ...] with their timesteps, in the scheduler's order."""
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        walk = Walk(self.choice.scheduler, self.config.steps, generators, self.view)
        picture, noise = (torch.stack([torch.randn(self.shape, generator=g) for g in generators]) for _ in range(2))
        moments = walk.scheduler.timesteps
        for position, timestep in enumerate(walk.timesteps):
            yield walk.input(position, _noisy(walk.scheduler, picture, noise, moments[position])), timestep


def without_steps(calibration: CalibrationSource, model: torch.nn.Module) -> CalibrationSource:
    """The same for a model of several outputs, which no scheduler can take a step with; a pipeline knows what to do with them.

    Raises UsageError for guidance of such a model.
    """
    if not isinstance(calibration, LoopSource):
        return calibration
    if calibration.config.guidance_scale is not None:
        raise UsageError(
            f"a guidance scale is given, and {type(model).__name__} returns several tensors, which are not a prediction to guide",
            "leave the guidance scale out",
        )
    return NoiseSource(
        calibration.scheduler, calibration.shape, calibration.config, calibration.examples, calibration.form, calibration.view
    )


def _noisy(scheduler: Any, picture: torch.Tensor, noise: torch.Tensor, moment: torch.Tensor) -> torch.Tensor:
    """Raises UsageError where the scheduler has no word for it."""
    moments = moment.reshape(1).expand(len(picture))
    if callable(add := getattr(scheduler, "add_noise", None)):
        result: torch.Tensor = add(picture, noise, moments)
        return result
    if callable(scale := getattr(scheduler, "scale_noise", None)):
        flow: torch.Tensor = scale(picture, moments, noise)
        return flow
    raise UsageError(f"a {type(scheduler).__name__} does not say how noisy a sample is at a timestep", "give another scheduler=")
