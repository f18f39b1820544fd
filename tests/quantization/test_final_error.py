"""What each step's error costs the final sample: the runs together against one run after another."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
)

from dq_deploy.decibels import snr_db
from dq_deploy.errors import UsageError
from dq_deploy.quantization.calibration.noise_source import NoiseSource
from dq_deploy.quantization.calibration.pipeline_source import PipelineSource
from dq_deploy.quantization.calibration.source import LoopSource
from dq_deploy.quantization.calling import OutputForm
from dq_deploy.quantization.checkpoint import Checkpoint
from dq_deploy.quantization.choices import Sampler
from dq_deploy.quantization.config import QuantizeConfig
from dq_deploy.quantization.final_error import MOST_PARTS, MOST_WITHOUT, calls, final_error
from tests.tiny_pipelines import tiny_stable_diffusion

SHAPE = (1, 4, 4)
SEEDS = range(50, 54)
PLAIN = OutputForm({"tensor": list(SHAPE)})


def network(sample: torch.Tensor, timestep: torch.Tensor, **conditions: torch.Tensor) -> torch.Tensor:
    """Something that no linear schedule makes trivial: it bends the sample, and knows its timestep and condition."""
    bend = sum((value.reshape(len(sample), -1).mean(dim=1) for value in conditions.values()), start=timestep / 500)
    return torch.tanh(sample * 1.5 + bend.reshape(-1, 1, 1, 1))


def rounded(sample: torch.Tensor, timestep: torch.Tensor, **conditions: torch.Tensor) -> torch.Tensor:
    return (network(sample, timestep, **conditions) * 8).round() / 8


def source(scheduler: Any, **options: Any) -> LoopSource:
    conditions = options.pop("conditions", {})
    null = options.pop("null_conditions", None)
    config = QuantizeConfig.build(**{"steps": 6, "batch_size": 5, "sampler": Sampler.PIPELINE, **options})
    return LoopSource(scheduler, SHAPE, config, conditions, null)


def ends(source: LoopSource, quantized: set[float], seeds: Sequence[int]) -> torch.Tensor:
    """The final samples of one run on its own."""

    def answer(samples: torch.Tensor, timestep: float, conditions: dict[str, torch.Tensor]) -> torch.Tensor:
        model = rounded if timestep in quantized else network
        return model(samples[0], torch.full((samples.shape[1],), timestep), **{name: value[0] for name, value in conditions.items()})[None]

    return source.final_samples(answer, range(seeds[0], seeds[-1] + 1), slice(0, 2), 1, PLAIN)[0]


SCHEDULERS = [
    DDIMScheduler(clip_sample=False),
    DDPMScheduler(clip_sample=False),
    DPMSolverMultistepScheduler(),
    EulerAncestralDiscreteScheduler(),
    FlowMatchEulerDiscreteScheduler(),
    HeunDiscreteScheduler(),
    PNDMScheduler(),
]


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda scheduler: type(scheduler).__name__)
@pytest.mark.parametrize("guided", [False, True])
def test_runs_together_are_the_runs_one_by_one(scheduler: Any, guided: bool) -> None:
    conditions = {"c": torch.linspace(-1, 1, 5)[:, None]}
    guidance = {"null_conditions": {"c": torch.zeros(1, 1)}, "guidance_scale": 3.0} if guided else {}
    made = source(scheduler, conditions=conditions, **guidance)
    walk = made._walk()
    timesteps = sorted(set(walk.timesteps))
    found = final_error(
        lambda answer, runs: made.final_samples(answer, SEEDS, slice(0, 2), runs, PLAIN), network, rounded, timesteps,
        seeds=2, samples_per_run=4 if guided else 2, batch_size=20,
    )  # fmt: skip
    assert found.not_measured is None
    assert found.seeds == 2
    expected = ends(made, set(), SEEDS)
    assert found.all_db == pytest.approx(snr_db(expected, ends(made, set(timesteps), SEEDS)), abs=1e-2)
    assert [step.timesteps for step in found.steps] == [[t] for t in timesteps]
    powers = []
    for step in found.steps:
        alone = ends(made, {*step.timesteps}, SEEDS)
        assert step.only_db == pytest.approx(snr_db(expected, alone), abs=1e-2)
        if step.without_db is not None:
            rest = ends(made, {*timesteps} - {*step.timesteps}, SEEDS)
            assert step.without_db == pytest.approx(snr_db(expected, rest), abs=1e-2)
        powers.append(float((alone - expected).double().pow(2).sum()))
    assert [step.share for step in found.steps] == pytest.approx([power / sum(powers) for power in powers], abs=1e-3)
    assert found.worst == found.steps[powers.index(max(powers))]
    dearest = sorted(range(len(powers)), key=lambda index: -powers[index])[:MOST_WITHOUT]
    assert {index for index, step in enumerate(found.steps) if step.without_db is not None} == {*dearest}


def test_the_networks_are_called_no_more_than_they_must() -> None:
    """The float run and the quantized one, and of every other run what comes after it has left the one that it begins as."""
    counts = {"float": 0, "quantized": 0}

    def counted(name: str, model: Any) -> Any:
        def call(sample: torch.Tensor, timestep: torch.Tensor, **conditions: torch.Tensor) -> torch.Tensor:
            counts[name] += len(sample)
            return model(sample, timestep, **conditions)

        return call

    made = source(DDIMScheduler(clip_sample=False))
    timesteps = sorted(made._walk().timesteps)
    for batch in (1, 64):
        counts |= {"float": 0, "quantized": 0}
        found = final_error(
            lambda answer, runs: made.final_samples(answer, SEEDS, slice(0, 1), runs, PLAIN), counted("float", network),
            counted("quantized", rounded), timesteps, seeds=1, samples_per_run=1, batch_size=batch,
        )  # fmt: skip
        # A run without the step that is k-th from the end takes one float call, and k − 1 quantized ones.
        dearest = [6 - position for position, step in enumerate(reversed(found.steps)) if step.without_db is not None]
        assert len(dearest) == MOST_WITHOUT
        first = 6 in dearest  # its one float call is the float run's own
        assert counts == {"float": 6 + 15 + MOST_WITHOUT - first, "quantized": 6 + 5 + sum(k - 1 for k in dearest)}
        assert sum(counts.values()) <= calls(6)


def test_of_many_steps_neighbours_share_a_run() -> None:
    made = source(DDIMScheduler(clip_sample=False), steps=50)
    timesteps = sorted(made._walk().timesteps)
    found = final_error(
        lambda answer, runs: made.final_samples(answer, SEEDS, slice(0, 1), runs, PLAIN), network, rounded, timesteps,
        seeds=1, samples_per_run=1, batch_size=64,
    )  # fmt: skip
    assert len(found.steps) == MOST_PARTS
    assert [t for step in found.steps for t in step.timesteps] == timesteps
    part = found.steps[3]
    alone = ends_of_one(made, {*part.timesteps})
    assert part.only_db == pytest.approx(snr_db(ends_of_one(made, set()), alone), abs=1e-2)


def ends_of_one(made: LoopSource, quantized: set[float]) -> torch.Tensor:
    return ends(made, quantized, SEEDS)[:1]


def test_nothing_is_sampled_by_a_network_that_predicts_no_step() -> None:
    made = NoiseSource(DDIMScheduler(), SHAPE, QuantizeConfig.build(steps=3))
    found = final_error(
        lambda answer, runs: made.final_samples(answer, SEEDS, slice(0, 1), runs, PLAIN), network, rounded, [0.0], seeds=1,
        samples_per_run=1, batch_size=4,
    )  # fmt: skip
    assert found.not_measured == "the network predicts no step of a sample"
    assert not found.steps
    assert found.worst is None


def test_an_error_that_is_no_number_is_none_and_not_a_share() -> None:
    made = source(DDIMScheduler(clip_sample=False), steps=2)
    timesteps = sorted(made._walk().timesteps)
    found = final_error(
        lambda answer, runs: made.final_samples(answer, SEEDS, slice(0, 1), runs, PLAIN), network,
        lambda sample, timestep: network(sample, timestep) * torch.nan, timesteps, seeds=1, samples_per_run=1, batch_size=4,
    )  # fmt: skip
    assert found.all_db is None
    assert all(step.only_db is None and step.share is None for step in found.steps)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_a_pipeline_samples_as_it_always_does(guidance: float) -> None:
    """With the float model standing in for itself, the latents are those of the pipeline; and one step's error is the pipeline's own."""
    pipeline = tiny_stable_diffusion()
    config = QuantizeConfig.build(steps=4, batch_size=4, guidance_scale=guidance)
    made = PipelineSource.prepare(copy.copy(pipeline), "unet", ["a cat", "dog", "red horse"], None, config)
    unet, form = made.model, OutputForm({"dict": [["sample", {"tensor": [4, 8, 8]}]], "class": _UNET_OUTPUT})

    @torch.no_grad()
    def model(sample: torch.Tensor, timestep: torch.Tensor, **conditions: torch.Tensor) -> torch.Tensor:
        return type(unet).forward(unet, sample, timestep, **conditions).sample

    def other(sample: torch.Tensor, timestep: torch.Tensor, **conditions: torch.Tensor) -> torch.Tensor:
        return model(sample, timestep, **conditions) * 0.9

    data = made.collect(model, SEEDS, _silent)
    timesteps = data.timesteps.tolist()
    before = dict(unet.__dict__)
    found = final_error(
        lambda answer, runs: made.final_samples(answer, SEEDS, slice(0, 2), runs, form), model, other, timesteps, seeds=2,
        samples_per_run=2 * data.per_seed, batch_size=12,
    )  # fmt: skip
    assert found.not_measured is None
    assert dict(unet.__dict__).keys() == before.keys()
    dealt = made._dealt(SEEDS)[:2]

    def latents(quantized: set[float]) -> torch.Tensor:
        own = unet.forward

        def forward(sample: torch.Tensor, timestep: Any, **rest: Any) -> Any:
            result = own(sample, timestep, **{**rest, "return_dict": False})
            return (result[0] * 0.9,) if float(timestep) in quantized else result

        unet.forward = forward
        try:
            return made._run(dealt, SEEDS[:2])[0]
        finally:
            del unet.forward

    expected = latents(set())
    assert found.all_db == pytest.approx(snr_db(expected, latents(set(timesteps))), abs=0.02)
    for step in found.steps:
        assert step.only_db == pytest.approx(snr_db(expected, latents({*step.timesteps})), abs=0.02)
        if step.without_db is not None:
            assert step.without_db == pytest.approx(snr_db(expected, latents({*timesteps} - {*step.timesteps})), abs=0.02)


_UNET_OUTPUT = "diffusers.models.unets.unet_2d_condition.UNet2DConditionOutput"


def _silent(*_: Any) -> Any:
    from dq_deploy.progress import silent

    return silent(*_)


def test_a_pipeline_without_latents_is_said() -> None:
    pipeline = tiny_stable_diffusion()
    made = PipelineSource.prepare(pipeline, "unet", ["a cat"], None, QuantizeConfig.build(steps=2, batch_size=4))
    form = OutputForm({"dict": [["sample", {"tensor": [4, 8, 8]}]], "class": _UNET_OUTPUT})
    object.__setattr__(made, "pipeline", _NoLatents(made.pipeline))
    with pytest.raises(UsageError, match="a _NoLatents gives no latents"):
        made.final_samples(lambda samples, *_: samples, SEEDS, slice(0, 1), 1, form)


class _NoLatents:
    def __init__(self, pipeline: Any) -> None:
        self.unet, self.scheduler = pipeline.unet, pipeline.scheduler

    def __call__(self, **_: Any) -> Any:
        return (["a picture"],)


def test_a_checkpoint_says_which_step_makes_the_error(unet_checkpoint: Checkpoint) -> None:
    found = unet_checkpoint.details.final_error
    assert found is not None
    assert found.seeds == 1  # nothing was trained
    assert [step.timesteps for step in found.steps] == [[t] for t in unet_checkpoint.artifact.manifest.timesteps]
    assert sum(step.share or 0 for step in found.steps) == pytest.approx(1, abs=1e-5)
    assert found.all_db is not None
    assert found.worst is not None
    assert found.worst.without_db is not None
    assert found.worst.without_db > found.all_db  # without its largest part, less is left
