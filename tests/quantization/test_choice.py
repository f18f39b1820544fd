"""When DDIM samples in the place of a scheduler, and the settings that it then has."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from dq_deploy.quantization.calibration.choice import changed, choose, settings
from dq_deploy.quantization.calibration.sampling_loop import SamplingLoop
from dq_deploy.quantization.choices import Sampler
from dq_deploy.sources import load_source

EDM = {
    "timestep_type": "continuous",
    "prediction_type": "v_prediction",
    "use_karras_sigmas": True,
    "sigma_min": 0.002,
    "sigma_max": 80.0,
}  # fmt: skip
FLOW: dict[str, Any] = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}


@pytest.mark.parametrize(
    ("scheduler", "why"),
    [
        (EulerDiscreteScheduler(**EDM), "its timesteps run from -1.554 to 1.096, and DDIM's are places in a table, 0 to 999"),
        # Positive times, and still no places in the table.
        (EulerDiscreteScheduler(**{**EDM, "sigma_min": 1.5}), "its noise is 80 at timestep 1.096, where its alphas_cumprod have 0.01483"),
        (EulerDiscreteScheduler(use_karras_sigmas=True, sigma_max=400.0), "its noise is 400 at timestep 999, where its alphas"),
        (EulerDiscreteScheduler(use_karras_sigmas=True, sigma_min=0.002), "its noise goes down to 0.002, and that of its alphas"),
        (DPMSolverMultistepScheduler(**FLOW), "its prediction type is 'flow_prediction', and DDIM knows epsilon, sample, v_prediction"),
        (UniPCMultistepScheduler(**FLOW), "its prediction type is 'flow_prediction'"),
        (UniPCMultistepScheduler(use_flow_sigmas=True), "its noise is 1 at timestep 999, where its alphas_cumprod have 157.4"),
        (CogVideoXDDIMScheduler(), "its alphas_cumprod differs from DDIM's at 1000 of 1000 timesteps"),
        (FlowMatchEulerDiscreteScheduler(), "the scheduler has no alphas_cumprod"),
        (DDPMScheduler(beta_schedule="sigmoid"), "DDIM cannot be made from its configuration: sigmoid is not implemented"),
        (EulerDiscreteScheduler(rescale_betas_zero_snr=True), "its noise schedule ends without signal, from where DDIM cannot step"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_a_scheduler_that_ddim_is_not(scheduler: Any, why: str) -> None:
    chosen = choose(scheduler)
    assert type(chosen.scheduler) is type(scheduler)
    assert re.match(re.escape(why), chosen.why), chosen.why
    assert chosen.scheduler is not scheduler


def test_settings_of_a_configuration_are_the_classs_own() -> None:
    """A configuration without them, as a file may be, or with a note that they are defaults."""
    for scheduler in (LCMScheduler(), LCMScheduler.from_config({}), LCMScheduler.from_config({"beta_end": 0.012})):
        chosen = choose(scheduler).scheduler
        assert isinstance(chosen, DDIMScheduler)
        assert (chosen.config.beta_start, chosen.config.beta_end, chosen.config.beta_schedule) == (0.00085, 0.012, "scaled_linear")
        assert torch.equal(chosen.alphas_cumprod, scheduler.alphas_cumprod)


@pytest.mark.parametrize(
    "options",
    [
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
        {"set_alpha_to_one": False},
        {"steps_offset": 1},
        {"timestep_spacing": "trailing"},
        {"trained_betas": np.linspace(1e-4, 0.03, 1000)},
        {"clip_sample": False},
        {"clip_sample_range": 2.0},
        {"thresholding": True, "sample_max_value": 3.0},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_ddim_knows_it_keeps(options: dict[str, Any]) -> None:
    own = DDIMScheduler(**options)
    chosen = choose(own).scheduler
    assert isinstance(chosen, DDIMScheduler)
    assert {name: np.asarray(settings(chosen)[name]).tolist() for name in options} == {
        name: np.asarray(value).tolist() for name, value in options.items()
    }
    assert torch.equal(chosen.alphas_cumprod, own.alphas_cumprod)


def test_spacing_and_offset_of_other_classes() -> None:
    for own, expected in (
        (PNDMScheduler(skip_prk_steps=True, steps_offset=1), [751, 501, 251, 1]),
        (EulerDiscreteScheduler(timestep_spacing="leading", steps_offset=1), [751, 501, 251, 1]),
        (EulerDiscreteScheduler(timestep_spacing="trailing"), [999, 749, 499, 249]),
        (EulerDiscreteScheduler(), [999, 666, 333, 0]),  # linspace is its class's default, and DDIM's is leading
        (DPMSolverMultistepScheduler(use_karras_sigmas=True), [999, 666, 333, 0]),
    ):
        chosen = choose(own).scheduler
        chosen.set_timesteps(4)
        assert chosen.timesteps.tolist() == expected


def test_what_does_not_clip_is_not_clipped() -> None:
    assert choose(EulerDiscreteScheduler()).scheduler.config.clip_sample is False
    assert choose(DDPMScheduler()).scheduler.config.clip_sample is True


def test_as_asked_for() -> None:
    chosen = choose(DDPMScheduler(), Sampler.PIPELINE)
    assert chosen.record() == {"class": "DDPMScheduler", "why": "as asked for: --sampler pipeline"}


@pytest.mark.parametrize("name", ["builtin:fashion-mnist-unet", "builtin:fashion-mnist-dit"])
def test_the_built_in_models_are_sampled_by_ddim(name: str) -> None:
    """Bit for bit what DDIMScheduler.from_config gives, which the published figures were measured with."""
    source = load_source(name)
    conditions = {"class_labels": torch.tensor([3, 7])} if name.endswith("dit") else {}

    @torch.no_grad()
    def model(sample: torch.Tensor, timestep: torch.Tensor, **conditions: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(source.model(sample, timestep, **conditions).sample)

    data = SamplingLoop(source.scheduler, 3, source.sample_shape, conditions).collect(model, range(2))
    ddim = DDIMScheduler.from_config(source.scheduler.config)
    ddim.set_timesteps(3)
    x = torch.stack([torch.randn(source.sample_shape, generator=torch.Generator().manual_seed(seed)) for seed in range(2)])
    for row, t in zip((2, 1, 0), ddim.timesteps, strict=True):
        assert torch.equal(data.samples[row], x)
        x = ddim.step(model(x, t.float().expand(2), **conditions)[:, :1], t, x).prev_sample


class Scaling(DDIMScheduler):
    """A scheduler of the user's own, whose network sees a tenth of the sample."""

    def scale_model_input(self, sample: torch.Tensor, timestep: int | None = None) -> torch.Tensor:  # noqa: ARG002
        return sample * 0.1


def test_what_scales_the_networks_input_stays() -> None:
    chosen = choose(Scaling())
    assert type(chosen.scheduler) is Scaling
    assert chosen.why == "it scales the network's input by 0.1 at timestep 900, which DDIM does not"


def test_what_was_changed_after_it_was_made_is_found() -> None:
    shifted, squared, euler = FlowMatchEulerDiscreteScheduler(), DDPMScheduler(), EulerDiscreteScheduler()
    shifted.set_shift(5.0)
    squared.alphas_cumprod = squared.alphas_cumprod**2
    euler.set_timesteps(7)
    assert changed(shifted, 4) == ["timesteps", "sigmas"]
    assert changed(squared, 4) == ["alphas_cumprod"]
    assert changed(type("DDPMScheduler", (DDPMScheduler,), {})(), 4) == ["class"]
    for fresh in (euler, Scaling(), DPMSolverMultistepScheduler(use_karras_sigmas=True), LCMScheduler(), PNDMScheduler()):
        assert changed(fresh, 4) == []
