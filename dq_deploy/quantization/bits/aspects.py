"""What a rounding is judged by: the network's output, or a difference of outputs that somebody reads.

Each aspect is linear in the output, so that errors of different layers add up in it as they do in the output itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from ..calibration.trajectories import Trajectories


@dataclass(frozen=True)
class Aspect:
    """``of`` gives what is judged [m, ...] for outputs [n, ...] of the network."""

    name: str
    of: Callable[[torch.Tensor], torch.Tensor]

    def noise(self, expected: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """‖of(output) − of(expected)‖² / ‖of(expected)‖² [m], in double precision on the CPU."""
        wanted, got = self.of(expected.double()).flatten(1), self.of(output.double()).flatten(1)
        return ((got - wanted).pow(2).sum(dim=1) / wanted.pow(2).sum(dim=1).clamp(min=1e-30)).cpu()


PREDICTION = Aspect("the prediction", lambda output: output)


def condition_effect(conditions: int, channels: int) -> Aspect:
    """How outputs of one sample under several conditions, adjacent in the batch, differ from that under the first: what guidance amplifies.

    Of the first ``channels`` of the output, which a predicted variance may follow.
    """

    def of(output: torch.Tensor) -> torch.Tensor:
        under: torch.Tensor = output[:, :channels].unflatten(0, (-1, conditions))
        return under[:, 1:] - under[:, :1]

    return Aspect("what the condition changes", of)


def frame_changes(axis: int) -> Aspect:
    """Differences between frames that follow each other along ``axis``: an error that every frame has alike does not flicker."""
    return Aspect("what changes between frames", lambda output: output.diff(dim=axis))


def under_other_conditions(data: Trajectories) -> Trajectories:
    """Every sample twice, adjacent: under its own conditions, and under those of the next one. The outputs are its own both times."""
    conditions = {name: torch.stack([value, value.roll(1, 0)], dim=1).flatten(0, 1) for name, value in data.conditions.items()}
    varying = {name: value.repeat_interleave(2, dim=1) for name, value in data.varying.items()}
    samples, outputs = (value.repeat_interleave(2, dim=1) for value in (data.samples, data.outputs))
    return replace(data, samples=samples, outputs=outputs, conditions=conditions, varying=varying, per_seed=2, others=())


def conditions_differ(data: Trajectories) -> bool:
    """Whether the samples of each seed have different conditions."""
    apart = [value.unflatten(0, (-1, data.per_seed)) for value in data.conditions.values()]
    return data.per_seed > 1 and any(not torch.equal(value[:, 1:], value[:, :1].expand_as(value[:, 1:])) for value in apart)
