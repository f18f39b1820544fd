"""Every scheduler class of diffusers: steps as diffusers' pipelines step, or is refused with the reason. A new class needs a row."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import diffusers
import diffusers.schedulers
import pytest
import torch

from dq_deploy.errors import UsageError
from dq_deploy.quantization.calibration.choice import choose, settings
from dq_deploy.quantization.calibration.sampling_loop import SamplingLoop
from dq_deploy.quantization.calibration.trajectories import Trajectories
from dq_deploy.quantization.choices import Sampler

SEEDS = range(3)


@dataclass(frozen=True)
class Row:
    """What becomes of a scheduler: whether DDIM stands in for it, and why it is refused where its own steps are needed."""

    ddim: bool = False
    refused: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    steps: int = 5
    shape: tuple[int, ...] = (2, 4, 4)
    needs: str | None = None  # a package that diffusers asks for


TOKENS = "is not a denoising loop: its samples are tokens, and not noisy signals"
INVERSE = "is not a denoising loop: it goes from a sample to noise"
STAGES = "is not a denoising loop: it samples in stages of growing size, which only its own pipeline does"
PROTEIN = {"schedule_mode": "log", "noise_mode": "1/t", "tsr_k": 1.0, "tsr_sigma": 1.0}

ROWS = {
    "AmusedScheduler": Row(refused=TOKENS, options={"mask_token_id": 5}),
    "BlockRefinementScheduler": Row(refused=TOKENS),
    "CMStochasticIterativeScheduler": Row(),
    "CogVideoXDDIMScheduler": Row(),
    "CogVideoXDPMScheduler": Row(),
    "ConsistencyDecoderScheduler": Row(steps=2),
    "CosineDPMSolverMultistepScheduler": Row(needs="torchsde"),
    "DDIMInverseScheduler": Row(ddim=True, refused=INVERSE),
    "DDIMParallelScheduler": Row(ddim=True),
    "DDIMScheduler": Row(ddim=True),
    "DDPMParallelScheduler": Row(ddim=True),
    "DDPMScheduler": Row(ddim=True),
    "DDPMWuerstchenScheduler": Row(),
    "DEISMultistepScheduler": Row(ddim=True),
    "DPMSolverMultistepInverseScheduler": Row(refused=INVERSE),
    "DPMSolverMultistepScheduler": Row(ddim=True),
    "DPMSolverSDEScheduler": Row(ddim=True, needs="torchsde"),
    "DPMSolverSinglestepScheduler": Row(ddim=True),
    "DiscreteDDIMScheduler": Row(refused=TOKENS),
    "EDMDPMSolverMultistepScheduler": Row(),
    "EDMEulerScheduler": Row(),
    "EntropyBoundScheduler": Row(refused=TOKENS),
    "EulerAncestralDiscreteScheduler": Row(ddim=True),
    "EulerDiscreteScheduler": Row(ddim=True),
    "FlowMapEulerDiscreteScheduler": Row(),
    "FlowMatchEulerDiscreteScheduler": Row(),
    "FlowMatchHeunDiscreteScheduler": Row(),
    "FlowMatchLCMScheduler": Row(),
    "HeliosDMDScheduler": Row(refused=STAGES),
    "HeliosScheduler": Row(refused=STAGES),
    "HeunDiscreteScheduler": Row(ddim=True),
    "IPNDMScheduler": Row(),
    "KDPM2AncestralDiscreteScheduler": Row(ddim=True),
    "KDPM2DiscreteScheduler": Row(ddim=True),
    "KarrasVeScheduler": Row(refused="'s step needs sigma_hat, sigma_prev, sample_hat, which only its own pipeline has"),
    "LCMScheduler": Row(ddim=True),
    "LMSDiscreteScheduler": Row(ddim=True),
    "LTXEulerAncestralRFScheduler": Row(),
    "MiniMaxH3Scheduler": Row(),
    "PNDMScheduler": Row(ddim=True),
    "PiflowScheduler": Row(shape=(6, 4)),
    "RFD4ProteinaScheduler": Row(refused="'s step needs emit_mask, which only its own pipeline has", options=PROTEIN),
    "RePaintScheduler": Row(refused="'s step needs original_image, mask, which only its own pipeline has"),
    "SASolverScheduler": Row(ddim=True),
    "SCMScheduler": Row(refused="is not a denoising loop: its pipeline changes the timestep, the sample and the prediction on both sides"),
    "ScoreSdeVeScheduler": Row(refused="is not a denoising loop: it has no step"),
    "ScoreSdeVpScheduler": Row(refused="is not a denoising loop: it has no step"),
    "TCDScheduler": Row(ddim=True),
    "UnCLIPScheduler": Row(ddim=True),
    "UniPCMultistepScheduler": Row(ddim=True),
    "VQDiffusionScheduler": Row(refused=TOKENS, options={"num_vec_classes": 4}),
}


def classes() -> dict[str, type]:
    """By name, as this diffusers has them, exported or not; without a package that one needs, diffusers' stand-in for it."""
    found = {name: getattr(diffusers, name) for name in dir(diffusers) if name.endswith("Scheduler")}
    for module in pkgutil.walk_packages(diffusers.schedulers.__path__, "diffusers.schedulers."):
        try:
            members = vars(importlib.import_module(module.name))
        except ImportError:
            continue
        found |= {name: kind for name, kind in members.items() if isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)}
    return {name: kind for name, kind in found.items() if isinstance(kind, type) and kind is not diffusers.SchedulerMixin}


def made(name: str) -> Any:
    row = ROWS[name]
    if row.needs:
        pytest.importorskip(row.needs)
    return classes()[name](**row.options)


def collect(scheduler: Any, row: Row, sampler: Sampler) -> tuple[Trajectories, list[torch.Tensor]]:
    """The trajectories, and the network's inputs in the order of its calls."""
    model, seen = recorded()
    data = SamplingLoop(scheduler, row.steps, row.shape, sampler=sampler).collect(model, SEEDS)
    return data, seen


def recorded() -> tuple[Callable[..., torch.Tensor], list[torch.Tensor]]:
    seen: list[torch.Tensor] = []

    def model(sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        assert torch.as_tensor(timestep).dtype == torch.float32
        seen.append(sample.clone())
        output = 0.3 * sample + torch.sin(timestep).reshape(-1, *[1] * (sample.dim() - 1))
        return output.repeat(1, 1, 10) if sample.dim() == 3 else output  # tokens are Piflow's here: ten predictions at once

    return model, seen


def own_loop(scheduler: Any, row: Row) -> list[torch.Tensor]:
    """The network's inputs as diffusers' pipelines make them."""
    model, seen = recorded()
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    x = torch.stack([torch.randn(row.shape, generator=generator) for generator in generators])
    if hasattr(scheduler, "noise_sampler_seed"):
        scheduler.noise_sampler_seed = list(SEEDS)
    scheduler.set_timesteps(row.steps)
    x = x * getattr(scheduler, "init_noise_sigma", 1.0)
    steps_of(type(scheduler).__name__)(scheduler, model, x, generators)
    return seen


def steps_of(name: str) -> Callable[..., None]:
    return {"CogVideoXDPMScheduler": _cogvideox, "UnCLIPScheduler": _unclip, "DDPMWuerstchenScheduler": _stable_cascade}.get(name, _plain)


def _plain(scheduler: Any, model: Any, x: torch.Tensor, generators: list[torch.Generator]) -> None:
    """StableDiffusionPipeline's."""
    options = {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(model(scaled, t.float().expand(len(x))), t, x, **options).prev_sample


def _cogvideox(scheduler: Any, model: Any, x: torch.Tensor, generators: list[torch.Generator]) -> None:
    """CogVideoXPipeline's."""
    old = None
    for i, t in enumerate(scheduler.timesteps):
        noise = model(x, t.float().expand(len(x)))
        back = scheduler.timesteps[i - 1] if i > 0 else None
        x, old = scheduler.step(noise, old, t, back, x, generator=generators, return_dict=False)


def _unclip(scheduler: Any, model: Any, x: torch.Tensor, generators: list[torch.Generator]) -> None:
    """UnCLIPPipeline's."""
    for i, t in enumerate(scheduler.timesteps):
        following = None if i + 1 == len(scheduler.timesteps) else scheduler.timesteps[i + 1]
        x = scheduler.step(model(x, t.float().expand(len(x))), t, x, prev_timestep=following, generator=generators).prev_sample


def _stable_cascade(scheduler: Any, model: Any, x: torch.Tensor, generators: list[torch.Generator]) -> None:
    """StableCascadePriorPipeline's."""
    for t in scheduler.timesteps[:-1]:
        ratio = t.expand(len(x))
        x = scheduler.step(model_output=model(x, ratio), timestep=ratio, sample=x, generator=generators).prev_sample


def test_every_class_has_a_row() -> None:
    assert sorted(classes()) == sorted(ROWS)


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.refused is None])
def test_its_own_trajectory_is_that_of_diffusers(name: str) -> None:
    row, scheduler = ROWS[name], made(name)
    data, seen = collect(scheduler, row, Sampler.PIPELINE)
    expected = own_loop(made(name), row)
    assert len(seen) == len(expected)
    for got, wanted in zip(seen, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=0)
    assert bool((data.timesteps.diff() > 0).all())
    assert bool(torch.isfinite(data.samples).all())


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.refused is not None])
def test_no_denoising_loop_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(UsageError, match=f"^a {name} ?{ROWS[name].refused}") as refusal:
        collect(made(name), ROWS[name], Sampler.PIPELINE)
    assert refusal.value.hint is not None
    assert "scheduler=" in refusal.value.hint


@pytest.mark.parametrize("name", list(ROWS))
def test_ddim_stands_in_where_it_means_the_same(name: str) -> None:
    row, scheduler = ROWS[name], made(name)
    chosen = choose(scheduler)
    if not row.ddim:
        assert type(chosen.scheduler).__name__ == name
        assert chosen.scheduler is not scheduler
        assert chosen.why != "DDIM has its noise schedule, its prediction type and its time"
        return
    assert chosen.record() == {"class": "DDIMScheduler", "why": "DDIM has its noise schedule, its prediction type and its time"}
    torch.testing.assert_close(chosen.scheduler.alphas_cumprod, scheduler.alphas_cumprod, rtol=1e-3, atol=1e-7)
    own, others = settings(scheduler), settings(chosen.scheduler)
    shared = set(own) & set(others) - {"clip_sample"}
    assert {field: others[field] for field in shared} == {field: own[field] for field in shared}
    data, seen = collect(scheduler, row, Sampler.DDIM)
    expected = own_loop(choose(scheduler).scheduler, row)
    assert all(torch.equal(got, wanted) for got, wanted in zip(seen, expected, strict=True))
    assert len(data.timesteps) == row.steps
