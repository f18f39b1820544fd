"""A scheduler's way from noise to samples, in the project's own loop: which schedulers can be driven by it, and each step guarded."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from ...errors import UsageError
from .choice import settings
from .view import AS_IT_IS, View

_TOKENS = "its samples are tokens, and not noisy signals"
_INVERSE = "it goes from a sample to noise"
_STAGES = "it samples in stages of growing size, which only its own pipeline does"
_NO_LOOP = {
    "AmusedScheduler": _TOKENS,
    "BlockRefinementScheduler": _TOKENS,
    "DiscreteDDIMScheduler": _TOKENS,
    "EntropyBoundScheduler": _TOKENS,
    "VQDiffusionScheduler": _TOKENS,
    "DDIMInverseScheduler": _INVERSE,
    "DPMSolverMultistepInverseScheduler": _INVERSE,
    "HeliosScheduler": _STAGES,
    "HeliosDMDScheduler": _STAGES,
    "SCMScheduler": "its pipeline changes the timestep, the sample and the prediction on both sides of the network",
}
"""Schedulers of diffusers whose methods look like those of a denoising loop, and why they do not fit one."""

_RATIOS = "DDPMWuerstchenScheduler"  # its last timestep is where it arrives, and its step takes a timestep for each sample
_LEARNED = ("DDPMScheduler", "DDPMParallelScheduler", "UnCLIPScheduler")
"""Those that can use a predicted variance."""

_KNOWN = ("timestep", "sample", "prev_timestep", "timestep_back", "old_pred_original_sample")
"""What a step may need beside the model's output, by diffusers' names."""


class Walk:
    """One pass of ``scheduler`` (which is changed: give it a copy) in ``steps`` steps, for a sample of each generator's own noise.

    ``timesteps`` are those to visit in their order, as the network gets them (``view``) in fp32; some may repeat. Raises UsageError for a
    scheduler that is not a denoising loop, that needs more than this loop has, or that refuses the steps.
    """

    def __init__(self, scheduler: Any, steps: int, generators: Sequence[torch.Generator], view: View = AS_IT_IS) -> None:
        self.scheduler, self._generators, self._view = scheduler, list(generators), view
        self._options = _step_options(scheduler)
        own_noise(scheduler, [generator.initial_seed() for generator in generators])
        self._moments = _set_timesteps(scheduler, steps)
        self._original: Any = None  # the last step's prediction of the sample itself
        self.timesteps: list[float] = view.times(self._moments, settings(scheduler).get("num_train_timesteps")).tolist()

    def noise(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Where the walk begins [n, *shape]: each sample's noise does not depend on the others."""
        x = torch.stack([torch.randn(shape, generator=generator) for generator in self._generators])
        scaled: torch.Tensor = x * getattr(self.scheduler, "init_noise_sigma", 1.0)
        return scaled

    def input(self, position: int, x: torch.Tensor) -> torch.Tensor:
        """The network's input for the state ``x`` [N, ...]: some schedulers (Euler) scale it by a factor of the timestep."""
        if not hasattr(self.scheduler, "scale_model_input"):
            return x
        scaled: torch.Tensor = self.scheduler.scale_model_input(x, self._moments[position])
        return scaled

    def step(self, position: int, output: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The next state, from the state and the output [N, ...]. Raises UsageError where the scheduler cannot step from this output."""
        moments, scheduler = self._moments, self.scheduler
        prediction = for_step(self._view.prediction(output), x, scheduler)
        t = moments[position].expand(len(x)) if type(scheduler).__name__ == _RATIOS else moments[position]
        known = {
            "timestep": t,
            "sample": x,
            "generator": self._generators,
            "prev_timestep": moments[position + 1] if position + 1 < len(moments) else None,
            "timestep_back": moments[position - 1] if position else None,
            "old_pred_original_sample": self._original,
        }
        options = {name: known[name] for name in self._options}
        try:
            result = scheduler.step(prediction, **options) if "sample" in options else scheduler.step(prediction, t, x, **options)
        except Exception as error:  # as many kinds as there are schedulers
            if isinstance(error, MemoryError) or "memory" in str(error):
                raise
            raise UsageError(
                f"the {type(scheduler).__name__} does not step from timestep {self.timesteps[position]:g}: {_said(error)}",
                _what_to_do(prediction, output, x),
            ) from error
        self._original = result[1] if isinstance(result, tuple) and len(result) > 1 else None
        following: torch.Tensor = result if isinstance(result, torch.Tensor) else result[0]
        return following


def own_noise(scheduler: Any, seeds: Sequence[int]) -> None:
    """Let a scheduler that draws noise from a sampler of its own (DPM-Solver SDE) draw each sample's from that sample's seed."""
    if hasattr(scheduler, "noise_sampler"):
        scheduler.noise_sampler = None  # made anew at the first step
    if hasattr(scheduler, "noise_sampler_seed"):
        scheduler.noise_sampler_seed = list(seeds)


def for_step(prediction: torch.Tensor, x: torch.Tensor, scheduler: Any) -> torch.Tensor:
    """The prediction [N, C, ...] for a scheduler. Some models predict the variance too, [N, 2C, ...]; few schedulers use that half."""
    variance = settings(scheduler).get("variance_type")  # DDIM keeps DDPM's, and does not know what it means
    learned = type(scheduler).__name__ in _LEARNED and variance in ("learned", "learned_range")
    doubled = prediction.shape[1] == 2 * x.shape[1]
    return prediction[:, : x.shape[1]] if doubled and not learned else prediction


@torch.no_grad()
def try_out(walk: Walk, output: torch.Tensor, x: torch.Tensor) -> None:
    """Take every step of the walk with one ``output`` for ``x``, both [N, ...], so that a scheduler that cannot says so before the run.

    Raises UsageError.
    """
    scheduler = walk.scheduler
    name, wider = type(scheduler).__name__, getattr(scheduler, "n_grid", 1)  # Piflow: as many predictions at once
    if for_step(output, x, scheduler).shape != x.shape and output.numel() not in (wider * x.numel(), 2 * x.numel()):
        raise UsageError(
            f"the model takes samples of {list(x.shape[1:])} and gives {list(output.shape[1:])}, and a {name} steps from one to the next",
            "what a sample has beside its noise (a mask, a picture) is a condition: wrap the module in one whose forward takes it as an "
            "argument of its own and concatenates it, and give it in conditions=",
        )
    for position, timestep in enumerate(walk.timesteps):
        following = walk.step(position, output, x)
        if following.shape != x.shape:
            raise UsageError(
                f"the {name} makes {list(following.shape[1:])} of a sample of {list(x.shape[1:])} at timestep {timestep:g}",
                _what_to_do(for_step(output, x, scheduler), output, x),
            )
        if bool(torch.isfinite(output).all()) and not bool(torch.isfinite(following).all()):
            raise UsageError(
                f"the {name}'s step from timestep {timestep:g} gives NaN or Inf for a finite prediction",
                f"its settings do not fit together: {_suspects(scheduler)}",
            )
        x = following


def _what_to_do(prediction: torch.Tensor, output: torch.Tensor, x: torch.Tensor) -> str:
    """After a step that went wrong with what the model gave for ``x``."""
    shapes = f"the model takes {list(x.shape[1:])} and gives {list(output.shape[1:])}"
    if prediction.shape == x.shape:
        return f"{shapes}; try the scheduler in diffusers with these"
    return f"{shapes}: wrap it in a module that gives its prediction in the sample's shape (squeezed, sliced or permuted)"


def _suspects(scheduler: Any) -> str:
    names = ("prediction_type", "beta_schedule", "rescale_betas_zero_snr", "timestep_spacing", "sigma_min", "sigma_max")
    found = settings(scheduler)
    return ", ".join(f"{name} {found[name]!r}" for name in names if name in found) or "see its documentation"


def _step_options(scheduler: Any) -> list[str]:
    """Names that ``scheduler.step`` is called with beside the three of every step. Raises UsageError where it needs what is not known."""
    name = type(scheduler).__name__
    advice = "give scheduler= one that denoises (DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler, ...)"
    if reason := _NO_LOOP.get(name):
        raise UsageError(f"a {name} is not a denoising loop: {reason}", advice)
    if missing := [method for method in ("set_timesteps", "step") if not callable(getattr(scheduler, method, None))]:
        raise UsageError(f"a {name} is not a denoising loop: it has no {' and no '.join(missing)}", advice)
    parameters = [p for p in inspect.signature(scheduler.step).parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    needed = [p.name for p in parameters if p.default is p.empty][1:]
    optional = [p.name for p in parameters if p.name in ("generator", "prev_timestep")]
    if len(needed) <= 2:
        return optional
    if unknown := [parameter for parameter in needed if parameter not in _KNOWN]:
        raise UsageError(f"a {name}'s step needs {', '.join(unknown)}, which only its own pipeline has", advice)
    return [*needed, *(option for option in optional if option not in needed)]


def _set_timesteps(scheduler: Any, steps: int) -> torch.Tensor:
    name = type(scheduler).__name__
    if settings(scheduler).get("use_dynamic_shifting"):
        raise UsageError(
            f"a {name} with use_dynamic_shifting needs a number mu, which its pipeline computes from the picture's size",
            "quantize the pipeline, or give scheduler= one with use_dynamic_shifting=False and shift=exp(mu) (flow_shift in some)",
        )
    try:
        scheduler.set_timesteps(steps)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)  # else it looks for the first timestep, and takes the second of two that are equal
        moments = torch.as_tensor(scheduler.timesteps)
    except Exception as error:  # as many kinds as there are schedulers
        raise UsageError(f"the scheduler refuses {steps} steps: {_said(error)}", "choose fewer --steps, or another scheduler") from error
    moments = moments[:-1] if name == _RATIOS else moments
    if moments.dim() != 1 or len(moments) == 0 or not bool(torch.isfinite(moments.float()).all()):
        raise UsageError(f"a {name} gives no timesteps for {steps} steps", "choose another number of --steps, or another scheduler")
    return moments


def _said(error: Exception) -> str:
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}"
