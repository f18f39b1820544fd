"""What each step's error costs the final sample, in runs that differ in which steps are quantized.

The SNR of a step's output says how wrong that step is, and not what happens to it: later steps correct much of an early error, and what the
last steps do stays. So the same seeds are sampled with only one step quantized, and without the dearest ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch

from ..artifacts.final_error import FinalError, StepCost
from ..decibels import ratio_db
from ..errors import DqDeployError
from ..progress import Progress, silent
from .calibration.trajectories import Answer, Conditions, Model, batched

MOST_PARTS = 20
"""Of the steps, each with runs of its own: of more steps neighbours share them, since calls grow by the square of the number."""
MOST_WITHOUT = 3
"""Of the dearest parts it is measured too what is left without them."""
Finals = Callable[[Answer, int], torch.Tensor]
"""Final samples [R, n, ...] of R runs whose network gives an answer."""


class Runs:
    """The answers for several runs: at which timesteps each is quantized is in ``quantized``, at all others it is float.

    What two runs have in common is computed once: as long as the same steps were quantized in both, they are at the same place.
    """

    def __init__(self, float_model: Model, quantized_model: Model, quantized: Sequence[frozenset[float]], batch_size: int,
                 kept: dict[tuple[bool, ...], torch.Tensor], advance: Callable[[int], None] = lambda _: None) -> None:  # fmt: skip
        self._models = {False: float_model, True: quantized_model}
        self._quantized, self._batch_size, self._kept, self._advance = quantized, batch_size, kept, advance
        self._past: list[tuple[bool, ...]] = [()] * len(quantized)
        self._last: float | None = None

    def __call__(self, samples: torch.Tensor, timestep: float, conditions: Conditions) -> torch.Tensor:
        """As ``Answer`` says."""
        self._past = [(*past, timestep in steps) for past, steps in zip(self._past, self._quantized, strict=True)]
        found = {past: self._kept[past] for past in self._past if past in self._kept}
        new = {past: index for index, past in enumerate(self._past) if past not in found}
        for choice, model in self._models.items():
            chosen = {past: index for past, index in new.items() if past[-1] is choice}
            if chosen:
                of_runs = list(chosen.values())
                theirs = {name: value[of_runs].flatten(0, 1) for name, value in conditions.items()}
                outputs = batched(model, samples[of_runs].flatten(0, 1), timestep, theirs, self._batch_size).unflatten(0, (len(chosen), -1))
                found |= dict(zip(chosen, outputs, strict=True))
        self._kept |= {past: output for past, output in found.items() if len(set(past)) == 1}  # every run begins as one of these two does
        if timestep != self._last:  # some schedulers call twice at one
            self._advance(len(self._past))
        self._last = timestep
        return torch.stack([found[past] for past in self._past])


def calls(steps: int) -> int:
    """At most so many calls of the network for each sample, float and quantized ones together."""
    parts = min(steps, MOST_PARTS)
    return steps * (parts + 1) // 2 + steps * (2 + min(parts, MOST_WITHOUT))


@torch.no_grad()
def final_error(finals: Finals, float_model: Model, quantized_model: Model, timesteps: Sequence[float], *, seeds: int, samples_per_run: int,
                batch_size: int, progress: Progress = silent) -> FinalError:  # fmt: skip
    """Sample in float, quantized, with only each part of the steps quantized, and without the dearest; ``timesteps`` [T] ascend.

    ``finals`` are of as many ``seeds``, and the network sees ``samples_per_run`` at a step. As many runs go together as fill a batch. What
    cannot be sampled is said in the result.
    """
    parts = _parts(timesteps)
    everything = frozenset(timesteps)
    at_once = max(1, batch_size // samples_per_run)
    kept: dict[tuple[bool, ...], torch.Tensor] = {}
    dearest = min(MOST_WITHOUT, len(parts))
    with progress("cost of each step to the final sample", (2 + len(parts) + dearest) * len(timesteps)) as advance:

        def ends(runs: Sequence[frozenset[float]]) -> torch.Tensor:
            found = []
            for start in range(0, len(runs), at_once):
                some = runs[start : start + at_once]
                found.append(finals(Runs(float_model, quantized_model, some, batch_size, kept, advance), len(some)))
            return torch.cat(found).double().flatten(1)

        try:
            expected, whole, *alone = ends([frozenset(), everything, *map(frozenset, parts)])
            powers = [float((end - expected).pow(2).sum()) for end in alone]
            order = sorted(range(len(parts)), key=lambda index: -powers[index])[:dearest]
            rest = ends([everything - frozenset(parts[index]) for index in order])
        except DqDeployError as error:
            return FinalError(not_measured=error.message)
    signal, total = float(expected.pow(2).sum()), math.fsum(powers)
    without = {index: _snr(signal, float((end - expected).pow(2).sum())) for index, end in zip(order, rest, strict=True)}
    steps = [
        StepCost(
            timesteps=part, only_db=_snr(signal, power), without_db=without.get(index),
            share=round(power / total, 6) if 0 < total < math.inf else None,
        )
        for index, (part, power) in enumerate(zip(parts, powers, strict=True))
    ]  # fmt: skip
    return FinalError(all_db=_snr(signal, float((whole - expected).pow(2).sum())), steps=steps, seeds=seeds)


def _parts(timesteps: Sequence[float]) -> list[list[float]]:
    """Neighbouring timesteps that are quantized together: each its own, up to ``MOST_PARTS``."""
    count = min(len(timesteps), MOST_PARTS)
    bounds = [index * len(timesteps) // count for index in range(count + 1)]
    return [list(timesteps[low:high]) for low, high in pairwise(bounds)]


def _snr(signal: float, noise: float) -> float | None:
    found = ratio_db(signal, noise)
    return None if math.isnan(found) else round(found, 3)
