from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from dq_deploy.errors import UsageError
from dq_deploy.quantization.calibration.choice import choose
from dq_deploy.quantization.calibration.sampling_loop import SamplingLoop
from dq_deploy.quantization.calibration.schedules import distinct_timesteps, one_call_each, plain_config
from dq_deploy.quantization.calibration.trajectories import Trajectories
from dq_deploy.quantization.choices import Sampler
from tests.tiny import SHAPE, seeded_noise

OWN = Sampler.PIPELINE


def model(sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    return 0.3 * sample + timestep[:, None, None, None] / 2000


def collect(scheduler: Any, *, seeds: range = range(4), batch_size: int = 3, steps: int = 6, sampler: Sampler = OWN) -> Trajectories:
    return SamplingLoop(scheduler, steps, SHAPE, sampler=sampler).collect(model, seeds, batch_size=batch_size)


@pytest.mark.parametrize(
    ("scheduler", "rows"),
    [
        (DPMSolverMultistepScheduler(), 6),
        (DPMSolverMultistepScheduler(use_karras_sigmas=True), 6),
        (UniPCMultistepScheduler(), 6),
        (EulerDiscreteScheduler(), 6),
        (EulerAncestralDiscreteScheduler(), 6),
        (LCMScheduler(), 6),
        (DDPMScheduler(), 6),
        (PNDMScheduler(skip_prk_steps=True), 6),  # visits one timestep twice
        (HeunDiscreteScheduler(), 6),  # visits all but the first twice
        (FlowMatchEulerDiscreteScheduler(), 6),
        (FlowMatchHeunDiscreteScheduler(), 6),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, int) else "",
)
def test_a_pipelines_own_scheduler(scheduler: Any, rows: int) -> None:
    data = collect(scheduler)
    assert len(data.timesteps) == rows
    assert bool((data.timesteps.diff() > 0).all())
    assert data.samples.shape == data.outputs.shape == (rows, 4, *SHAPE)
    for row, t in enumerate(data.timesteps):
        torch.testing.assert_close(data.outputs[row], model(data.samples[row], t.expand(4)))
    # Neither the batch nor the company decides what a seed sees, where the scheduler draws noise too.
    assert torch.equal(collect(scheduler, batch_size=1, seeds=range(2)).samples, data.samples[:, :2])


def test_the_scheduler_itself_is_not_changed() -> None:
    scheduler = DPMSolverMultistepScheduler()
    before = scheduler.timesteps.clone()
    collect(scheduler)
    assert torch.equal(scheduler.timesteps, before)


def test_ddim_replaces_it_unless_it_is_asked_for() -> None:
    euler = EulerDiscreteScheduler(beta_end=0.012)
    replaced = choose(euler).scheduler
    assert isinstance(replaced, DDIMScheduler)
    assert replaced.config["beta_end"] == 0.012
    # Euler never clips, and DDIM would.
    assert replaced.config["clip_sample"] is False
    assert choose(DDPMScheduler(clip_sample=True)).scheduler.config["clip_sample"] is True
    assert isinstance(choose(euler, OWN).scheduler, EulerDiscreteScheduler)
    assert isinstance(choose(FlowMatchEulerDiscreteScheduler()).scheduler, FlowMatchEulerDiscreteScheduler)


def test_a_configuration_becomes_json() -> None:
    # DPM-Solver's default is minus infinity, and betas may be an array.
    scheduler = DPMSolverMultistepScheduler(trained_betas=np.array([0.1, 0.2]))
    config = json.loads(json.dumps(plain_config(scheduler), allow_nan=False))
    assert (config["lambda_min_clipped"], config["trained_betas"]) == ("-inf", [0.1, 0.2])
    assert not [name for name in config if name.startswith("_") and name != "_class_name"]


def test_euler_scales_the_input() -> None:
    scheduler = EulerDiscreteScheduler()
    data = collect(scheduler)
    scheduler.set_timesteps(6)
    first = seeded_noise(SHAPE, range(4)) * scheduler.init_noise_sigma
    torch.testing.assert_close(data.samples[-1], scheduler.scale_model_input(first, scheduler.timesteps[0]))
    assert float(data.samples[-1].std()) == pytest.approx(1.0, abs=0.1)


def test_seeds_take_repeated_evaluations_in_turn() -> None:
    rows = distinct_timesteps([700.0, 400.0, 400.0, 100.0])
    assert rows == {100.0: [3], 400.0: [1, 2], 700.0: [0]}
    calls = [torch.full((6,), float(k)) for k in range(4)]
    assert one_call_each(calls, rows[400.0], per_seed=1).tolist() == [1, 2, 1, 2, 1, 2]
    assert one_call_each(calls, rows[400.0], per_seed=2).tolist() == [1, 1, 2, 2, 1, 1]
    assert one_call_each(calls, rows[100.0], per_seed=1).tolist() == [3] * 6


def test_a_scheduler_that_refuses_says_why() -> None:
    with pytest.raises(UsageError, match=r"refuses 4 steps: .*cannot be larger.*\nchoose fewer --steps, or another scheduler"):
        collect(DDPMScheduler(num_train_timesteps=3), sampler=Sampler.DDIM, steps=4)
