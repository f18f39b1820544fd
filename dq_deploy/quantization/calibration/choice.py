"""Which scheduler samples the calibration trajectories: DDIM where it means the same to the network, else the scheduler itself."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..choices import Sampler
from .schedules import from_plain, plain_config

PREDICTIONS = ("epsilon", "sample", "v_prediction")
"""What DDIM takes a network's output for."""

_SAME = "DDIM has its noise schedule, its prediction type and its time"
_TOLERANCE = 1e-3  # relative, of the signal's and of the noise's variance: cumulative products in fp32 and fp64 differ by 1e-5
_SLACK = 1.02  # schedulers take logarithms of their noise and back
_OF_SCHEDULES = ("timesteps", "sigmas", "alphas_cumprod", "final_alpha_cumprod")
_TRIED_STEPS = (10, 4, 2, 1)  # few-step schedulers refuse large numbers


@dataclass(frozen=True)
class Choice:
    """A scheduler of its own for the calibration, and the reason that the manifest gives for it."""

    scheduler: Any
    why: str

    def record(self) -> dict[str, str]:
        """What the manifest says."""
        return {"class": type(self.scheduler).__name__, "why": self.why}


def choose(scheduler: Any, sampler: Sampler = Sampler.DDIM) -> Choice:
    """DDIM over the noise schedule of ``scheduler`` where the two mean the same to a network, else a copy of the scheduler.

    They do where ``alphas_cumprod`` are equal, DDIM knows the prediction type, and the scheduler's timesteps are places in that table.
    """
    if sampler is Sampler.PIPELINE:
        return Choice(copy.deepcopy(scheduler), "as asked for: --sampler pipeline")
    if not isinstance(getattr(scheduler, "alphas_cumprod", None), torch.Tensor):
        return kept(scheduler, "the scheduler has no alphas_cumprod, the noise schedule that DDIM follows")
    if scheduler.alphas_cumprod.is_meta:  # made under a default device of meta, which holds no values
        scheduler = type(scheduler).from_config(scheduler.config)
    prediction = settings(scheduler).get("prediction_type")
    if prediction not in PREDICTIONS:
        return kept(scheduler, f"its prediction type is {prediction!r}, and DDIM knows {', '.join(PREDICTIONS)}")
    try:
        ddim = ddim_scheduler(scheduler)
    except (ValueError, TypeError, NotImplementedError) as error:
        return kept(scheduler, f"DDIM cannot be made from its configuration: {error}")
    reason = _other_noise(scheduler, ddim) or _other_time(scheduler) or _other_input(scheduler)
    return kept(scheduler, reason) if reason else Choice(ddim, _SAME)


def kept(scheduler: Any, reason: str) -> Choice:
    """The scheduler itself (a copy), since DDIM cannot stand in for it."""
    return Choice(copy.deepcopy(scheduler), reason)


def ddim_scheduler(scheduler: Any) -> Any:
    """DDIM with the settings of another scheduler. What that scheduler's class does not know of has DDIM's defaults, and is not clipped.

    Raises ValueError, TypeError or NotImplementedError for settings that DDIM refuses.
    """
    from diffusers import DDIMScheduler

    # DDIM clips its predictions by default. A scheduler that does not know of clipping does not clip, and latents must not be.
    known = {"clip_sample": False, **settings(scheduler)}
    return DDIMScheduler(**{name: known[name] for name in inspect.signature(DDIMScheduler.__init__).parameters if name in known})


def settings(scheduler: Any) -> dict[str, Any]:
    """What a scheduler was made with, defaults of its class included; empty for one without a ``config``.

    ``from_config`` of another class would put that class's defaults in the place of every value that this one's default gave (diffusers
    notes their names under ``_use_default_values``).
    """
    config = getattr(scheduler, "config", None)
    if not isinstance(config, Mapping):
        return {}
    parameters = inspect.signature(type(scheduler).__init__).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    return {**defaults, **{name: value for name, value in config.items() if not name.startswith("_")}}


def _other_noise(scheduler: Any, ddim: Any) -> str | None:
    """How the noise schedules differ; None where they do not."""
    own, other = scheduler.alphas_cumprod.double(), ddim.alphas_cumprod.double()
    if own.shape != other.shape:
        return f"its alphas_cumprod has shape {list(own.shape)}, and DDIM's has {list(other.shape)}"
    # Some put a tiny number where the signal is nothing at all.
    apart = [~torch.isclose(a, b, rtol=_TOLERANCE, atol=1e-7) for a, b in ((own, other), (1 - own, 1 - other))]
    where = (apart[0] | apart[1]).nonzero().flatten()
    if len(where):
        at = int((own - other).abs().argmax())
        return f"its alphas_cumprod differs from DDIM's at {len(where)} of {len(own)} timesteps ({own[at]:.4g} for {other[at]:.4g} at {at})"
    if ddim.config.prediction_type == "epsilon" and not (ddim.alphas_cumprod > 0).all():
        return "its noise schedule ends without signal, from where DDIM cannot step by predicted noise"
    return None


def _other_time(scheduler: Any) -> str | None:
    """Why the scheduler's timesteps are not places in its ``alphas_cumprod``; None where they are."""
    tried = copy.deepcopy(scheduler)
    if not any(_accepts(tried, steps) for steps in _TRIED_STEPS):
        return f"it takes none of {', '.join(map(str, _TRIED_STEPS))} steps by itself"
    timesteps, last = torch.as_tensor(tried.timesteps).double(), len(scheduler.alphas_cumprod) - 1
    low, high = float(timesteps.min()), float(timesteps.max())
    if low < 0 or high > last:
        return f"its timesteps run from {low:.4g} to {high:.4g}, and DDIM's are places in a table, 0 to {last}"
    sigmas = getattr(tried, "sigmas", None)
    if not isinstance(sigmas, torch.Tensor) or not bool((sigmas > 0).any()):
        return None
    alphas = tried.alphas_cumprod.double()
    table, visited = ((1 - alphas) / alphas).sqrt(), sigmas[sigmas > 0].double()
    around = table[max(0, math.floor(high) - 1)], table[min(last, math.ceil(high) + 1)]
    if not around[0] / _SLACK <= visited.max() <= around[1] * _SLACK:
        return f"its noise is {visited.max():.4g} at timestep {high:.4g}, where its alphas_cumprod have {table[round(high)]:.4g}"
    if visited.min() < table[0] / _SLACK:
        return f"its noise goes down to {visited.min():.4g}, and that of its alphas_cumprod to {table[0]:.4g}"
    return None


def _other_input(scheduler: Any) -> str | None:
    """Why the network does not see the sample, at unit variance, as it does under DDIM; None where it does."""
    tried = copy.deepcopy(scheduler)
    if not hasattr(tried, "scale_model_input") or not any(_accepts(tried, steps) for steps in _TRIED_STEPS):
        return None
    sigmas, t = getattr(tried, "sigmas", None), tried.timesteps[0]
    noisy = isinstance(sigmas, torch.Tensor) and float(getattr(tried, "init_noise_sigma", 1.0)) > 1  # its samples are x + σ·noise
    size = float((sigmas[0] ** 2 + 1).sqrt()) if noisy and isinstance(sigmas, torch.Tensor) else 1.0
    scaled = torch.as_tensor(tried.scale_model_input(torch.full((1, 1), size), t))
    if not bool(torch.isclose(scaled.double(), torch.ones(1, 1, dtype=torch.float64), rtol=_SLACK - 1)):
        return f"it scales the network's input by {float(scaled) / size:.4g} at timestep {float(t):.4g}, which DDIM does not"
    return None


def changed(scheduler: Any, steps: int) -> list[str]:
    """What of a scheduler of diffusers its configuration does not give again in ``steps`` steps: it was changed after it was made.

    ``FlowMatchEulerDiscreteScheduler.set_shift`` does so. A class of the user's own is not judged: nobody makes it anew.
    """
    import diffusers

    name = type(scheduler).__name__
    kind = getattr(diffusers, name, None)
    if kind is None:
        return []
    if kind is not type(scheduler):
        return ["class"]
    own, again = copy.deepcopy(scheduler), kind.from_config(from_plain(plain_config(scheduler)))
    if not (_accepts(own, steps) and _accepts(again, steps)):
        return []
    return [name for name in _OF_SCHEDULES if not _alike(getattr(own, name, None), getattr(again, name, None))]


def _alike(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=1e-5, equal_nan=True)
    return isinstance(a, torch.Tensor) == isinstance(b, torch.Tensor)


def _accepts(scheduler: Any, steps: int) -> bool:
    try:
        scheduler.set_timesteps(steps)
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, AssertionError, RuntimeError):
        return False  # whatever the reason, it did not set its timesteps
    return len(scheduler.timesteps) > 0
