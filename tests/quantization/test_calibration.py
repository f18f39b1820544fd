from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, DiTPipeline, FlowMatchEulerDiscreteScheduler

from dq_deploy.errors import ArtifactError, UsageError
from dq_deploy.quantization.calibration.sampling_loop import SamplingLoop
from dq_deploy.quantization.calibration.trajectories import Trajectories, deal
from dq_deploy.quantization.choices import Sampler
from tests.tiny import SHAPE, scheduler, seeded_noise
from tests.tiny_pipelines import tiny_dit


def model(sample: torch.Tensor, timestep: torch.Tensor, **conditions: torch.Tensor) -> torch.Tensor:
    return sample * 0.1 + timestep[:, None, None, None] / 1000 + sum(c[:, None, None, None] for c in conditions.values())


def collect(call: Any = model, *, seeds: range = range(5), batch_size: int = 2, **options: Any) -> Trajectories:
    return SamplingLoop(scheduler(), 4, SHAPE, **options).collect(call, seeds, batch_size=batch_size)


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
        SamplingLoop(short, 8, SHAPE).collect(model, range(2))


def test_a_flow_matching_scheduler_is_used_as_it_is() -> None:
    data = SamplingLoop(FlowMatchEulerDiscreteScheduler(), 3, SHAPE).collect(model, range(2))
    assert len(data.timesteps) == 3
    assert bool(torch.isfinite(data.samples).all())


def test_a_predicted_variance_is_ignored() -> None:
    def both(sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return torch.cat([model(sample, timestep), torch.full_like(sample, 7.0)], dim=1)

    data = collect(both)
    assert data.outputs.shape == (4, 5, 2, 8, 8)
    torch.testing.assert_close(data.samples, collect().samples)


def test_more_conditions_than_seeds_are_spread() -> None:
    assert deal({"labels": torch.arange(10)}, 4)["labels"].tolist() == [0, 2, 5, 7]
    assert deal({"labels": torch.arange(3)}, 5)["labels"].tolist() == [0, 1, 2, 0, 1]


def test_both_halves_of_guidance_are_kept_side_by_side() -> None:
    data = collect(conditions={"labels": torch.tensor([1, 2, 3])}, null_conditions={"labels": torch.tensor([9])}, guidance_scale=2.5)
    assert data.per_seed == 2
    assert data.conditions["labels"].tolist() == [1, 9, 2, 9, 3, 9, 1, 9, 2, 9]
    assert torch.equal(data.samples[:, 0::2], data.samples[:, 1::2])
    for row, t in enumerate(data.timesteps):
        torch.testing.assert_close(data.outputs[row], model(data.samples[row], t.expand(10), labels=data.conditions["labels"]))


def test_the_trajectory_follows_the_guided_prediction() -> None:
    def guided(sample: torch.Tensor, timestep: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        conditional, null = (model(sample, timestep, labels=v) for v in (labels, torch.full_like(labels, 9)))
        return null + 2.5 * (conditional - null)

    labels = {"labels": torch.tensor([0.1, 0.2, 0.3])}
    halves = collect(conditions=labels, null_conditions={"labels": torch.tensor([9.0])}, guidance_scale=2.5)
    torch.testing.assert_close(halves.samples[:, 0::2], collect(guided, conditions=labels).samples)
    # At 1 the unconditional half has no say, as in diffusers.
    assert torch.equal(collect(conditions=labels, guidance_scale=1.0).samples, collect(conditions=labels).samples)


def test_guidance_needs_null_conditions() -> None:
    with pytest.raises(UsageError, match="guidance needs the conditions of the unconditional half for labels\ngive null_conditions="):
        collect(conditions={"labels": torch.tensor([1])}, guidance_scale=2.0)
    with pytest.raises(UsageError, match="for a model that takes none"):
        collect(guidance_scale=2.0)


def test_no_seeds_are_refused() -> None:
    with pytest.raises(UsageError, match="no samples to calibrate on"):
        collect(seeds=range(0))


def test_nan_in_one_half_names_its_seed() -> None:
    def broken(sample: torch.Tensor, timestep: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return torch.where((labels == 3)[:, None, None, None] & (timestep[0] < 500), torch.inf, sample)

    with pytest.raises(ArtifactError, match="timestep 250, seed 9"):
        null = {"labels": torch.tensor([0])}
        collect(broken, seeds=range(7, 11), conditions={"labels": torch.tensor([1, 2, 3, 4])}, null_conditions=null, guidance_scale=3.0)


@pytest.mark.parametrize("variance", ["fixed_small", "learned_range"])
def test_a_transformer_follows_diffusers_own_pipeline(variance: str) -> None:
    """Inputs recorded from DiTPipeline, which samples with a VAE behind it, are those of the loop."""
    dit = tiny_dit(num_embeds_ada_norm=1000)  # DiTPipeline's null class is always 1000
    own = DDPMScheduler(variance_type=variance)
    seen: list[torch.Tensor] = []
    handle = dit.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    sampler = DDIMScheduler.from_config(own.config)
    pipe = DiTPipeline(transformer=dit, vae=_NoVae(), scheduler=sampler)
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    pipe([3, 4], guidance_scale=3.0, generator=generators, num_inference_steps=4, output_type="np")
    handle.remove()

    def call(sample: torch.Tensor, timestep: torch.Tensor, class_labels: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return torch.as_tensor(dit(sample, timestep, class_labels=class_labels).sample)

    labels, null = {"class_labels": torch.tensor([3, 4])}, {"class_labels": torch.tensor([1000])}
    data = SamplingLoop(own, 4, (1, 8, 8), labels, null, guidance_scale=3.0).collect(call, range(2))
    for row, expected in enumerate(reversed(seen)):
        torch.testing.assert_close(data.samples[row, 0::2], expected[:2], rtol=1e-4, atol=1e-4)
    learned = SamplingLoop(own, 4, (1, 8, 8), labels, sampler=Sampler.PIPELINE).collect(call, range(2))
    assert bool(torch.isfinite(learned.samples).all())


class _NoVae(AutoencoderKL):
    """DiTPipeline always decodes."""

    def __init__(self) -> None:
        super().__init__(block_out_channels=(4,), norm_num_groups=2, latent_channels=1)
