from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from dq_deploy.errors import ArtifactError, UsageError
from dq_deploy.quantization.calibration import Trajectories, collect_trajectories, seeded_noise
from tests.tiny import SHAPE, scheduler


def model(sample: torch.Tensor, timestep: torch.Tensor, **conditions: torch.Tensor) -> torch.Tensor:
    return sample * 0.1 + timestep[:, None, None, None] / 1000 + sum(c[:, None, None, None] for c in conditions.values())


def collect(call: Any = model, **options: Any) -> Trajectories:
    return collect_trajectories(call, scheduler(), **{"steps": 4, "seeds": range(5), "shape": SHAPE, "batch_size": 2, **options})


def test_timesteps_ascend_and_outputs_belong_to_their_inputs() -> None:
    data = collect()
    assert data.timesteps.tolist() == sorted(data.timesteps.tolist())
    assert data.samples.shape == data.outputs.shape == (4, 5, *SHAPE)
    for row, t in enumerate(data.timesteps):
        torch.testing.assert_close(data.outputs[row], model(data.samples[row], t.expand(5)))


def test_noise_does_not_depend_on_the_batch() -> None:
    assert torch.equal(seeded_noise(SHAPE, range(3, 7))[1], seeded_noise(SHAPE, range(4, 5))[0])
    whole, pieces = collect(batch_size=5), collect(batch_size=1)
    assert torch.equal(whole.samples, pieces.samples)
    assert torch.equal(whole.samples[-1], seeded_noise(SHAPE, range(5)))  # the largest timestep starts from pure noise


def test_conditions_are_dealt_in_turn() -> None:
    data = collect(conditions={"labels": torch.tensor([10, 20, 30])})
    assert data.conditions["labels"].tolist() == [10, 20, 30, 10, 20]
    samples, timestep, conditions = data.flat(slice(1, 3))
    assert samples.shape == (8, *SHAPE)
    assert conditions["labels"].tolist() == [20, 30] * 4
    assert timestep.tolist() == [t for t in data.timesteps.tolist() for _ in range(2)]


def test_nan_names_the_timestep_and_the_seed() -> None:
    def broken(sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        first = (sample[:, 0, 0, 0] == seeded_noise(SHAPE, range(9, 10))[0, 0, 0, 0])[:, None, None, None]
        return torch.where(first, torch.nan, sample)

    with pytest.raises(ArtifactError, match="timestep 750, seed 9"):
        collect(broken, seeds=range(7, 11))


def test_a_schedule_with_too_few_timesteps_is_refused() -> None:
    short = DDPMScheduler(num_train_timesteps=3)
    with pytest.raises(UsageError, match="steps"):
        collect_trajectories(model, short, steps=8, seeds=range(2), shape=SHAPE)


def test_a_flow_matching_scheduler_is_used_as_it_is() -> None:
    data = collect_trajectories(model, FlowMatchEulerDiscreteScheduler(), steps=3, seeds=range(2), shape=SHAPE)
    assert len(data.timesteps) == 3
    assert bool(torch.isfinite(data.samples).all())


def test_a_predicted_variance_is_ignored() -> None:
    def both(sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return torch.cat([model(sample, timestep), torch.full_like(sample, 7.0)], dim=1)

    data = collect(both)
    assert data.outputs.shape == (4, 5, 2, 8, 8)
    torch.testing.assert_close(data.samples, collect().samples)
