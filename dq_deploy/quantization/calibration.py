"""Calibration data: the model's own DDIM trajectories, no data set needed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import ArtifactError, UsageError
from ..progress import Progress, silent

Model = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Trajectories:
    """What the model sees while it samples. T timesteps ascending, n seeds."""

    timesteps: torch.Tensor  # [T] fp32
    samples: torch.Tensor  # [T, n, ...]: the model's input at that timestep
    outputs: torch.Tensor  # [T, n, ...]: the float model's output for it
    conditions: dict[str, torch.Tensor]  # each [n, ...]

    def flat(self, seeds: slice) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """(samples [T·m, ...], timestep [T·m], conditions) of the chosen seeds, timesteps slowest."""
        samples = self.samples[:, seeds]
        rows, count = samples.shape[:2]
        conditions = {k: v[seeds].repeat(rows, *[1] * (v.dim() - 1)) for k, v in self.conditions.items()}
        return samples.flatten(0, 1), self.timesteps.repeat_interleave(count), conditions


def sampling_scheduler(scheduler: Any) -> Any:
    """DDIM over the pipeline's own noise schedule; a flow-matching scheduler, which DDIM cannot replace, is used as it is."""
    from diffusers import DDIMScheduler

    if "beta_schedule" in scheduler.config:
        return DDIMScheduler.from_config(scheduler.config)
    return copy.deepcopy(scheduler)


def seeded_noise(shape: tuple[int, ...], seeds: range) -> torch.Tensor:
    """Noise [len(seeds), *shape], each sample from its own generator, so that it does not depend on the batch."""
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


@torch.no_grad()
def collect_trajectories(model: Model, scheduler: Any, *, steps: int, seeds: range, shape: tuple[int, ...],
                         conditions: dict[str, torch.Tensor] | None = None, batch_size: int = 32,
                         progress: Progress = silent) -> Trajectories:  # fmt: skip
    """Sample with ``steps`` deterministic steps from each seed and keep every input and output of the model.

    ``conditions`` [P, ...] are dealt to the seeds in turn. Raises UsageError when the schedule gives another number of timesteps,
    ArtifactError when the model's output has NaN or Inf (naming the timestep and the seed).
    """
    scheduler = sampling_scheduler(scheduler)
    try:
        scheduler.set_timesteps(steps)
    except ValueError as error:
        raise UsageError(f"the scheduler refuses {steps} steps: {error}", "choose fewer --steps") from error
    schedule = scheduler.timesteps.tolist()
    if len(set(schedule)) != steps:
        raise UsageError(f"the scheduler has {len(set(schedule))} distinct timesteps at {steps} steps", "choose fewer --steps")
    dealt = {k: v[torch.arange(len(seeds)) % len(v)] for k, v in (conditions or {}).items()}
    samples, outputs = [], []
    x = seeded_noise(shape, seeds) * getattr(scheduler, "init_noise_sigma", 1.0)
    generator = torch.Generator().manual_seed(seeds.start)
    with progress("calibration trajectories", steps) as advance:
        for t in scheduler.timesteps:
            model_input = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            output = torch.cat([
                model(model_input[i : i + batch_size], t.float().expand(len(model_input[i : i + batch_size])).contiguous(),
                      **{k: v[i : i + batch_size] for k, v in dealt.items()})
                for i in range(0, len(x), batch_size)
            ])  # fmt: skip
            _check_finite(output, float(t), seeds)
            samples.append(model_input)
            outputs.append(output)
            # A model that also predicts the variance gives twice the channels; deterministic DDIM needs the first half.
            prediction = output[:, : x.shape[1]] if output.shape[1] == 2 * x.shape[1] else output
            x = scheduler.step(prediction, t, x, generator=generator).prev_sample
            advance(1)
    order = torch.tensor(schedule, dtype=torch.float32).argsort()
    return Trajectories(torch.tensor(schedule, dtype=torch.float32)[order], torch.stack(samples)[order], torch.stack(outputs)[order], dealt)


def _check_finite(output: torch.Tensor, timestep: float, seeds: range) -> None:
    bad = (~torch.isfinite(output.flatten(1))).any(dim=1).nonzero()[:, 0].tolist()
    if bad:
        raise ArtifactError(
            f"the float model's output has NaN or Inf at timestep {timestep:g}, seed {', '.join(str(seeds[i]) for i in bad[:5])}"
        )
