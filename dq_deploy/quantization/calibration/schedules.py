"""Schedulers of the calibration trajectories: which one, how it steps, and which rows its timesteps give."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ...errors import UsageError
from ..config import Sampler


def sampling_scheduler(scheduler: Any, sampler: Sampler = Sampler.DDIM) -> Any:
    """DDIM over the pipeline's own noise schedule, or (``sampler="pipeline"``) a copy of the pipeline's own scheduler.

    A flow-matching scheduler, which has no noise schedule that DDIM could follow, is always used as it is.
    """
    if sampler is Sampler.DDIM and "beta_schedule" in scheduler.config:
        return ddim_scheduler(scheduler.config)
    return copy.deepcopy(scheduler)


def ddim_scheduler(config: Mapping[str, Any]) -> Any:
    """DDIM over the noise schedule of another scheduler's ``config``."""
    from diffusers import DDIMScheduler

    # DDIM clips its predictions unless told otherwise. A scheduler that does not know of clipping does not clip, and latents must not be.
    return DDIMScheduler.from_config(dict(config), clip_sample=config.get("clip_sample", False))


def plain_config(scheduler: Any) -> dict[str, Any]:
    """A scheduler's configuration as JSON values; infinities, which JSON does not have, as text (DPM-Solver's ``lambda_min_clipped``)."""
    config = dict(scheduler.config)
    # diffusers' own notes are left out: one of them lists the defaults in an order that changes from process to process.
    return {name: _plain(value) for name, value in config.items() if not name.startswith("_") or name == "_class_name"}


def _plain(value: Any) -> Any:
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def start(scheduler: Any, steps: int) -> list[float]:
    """Set ``steps`` steps and return the timesteps to visit, in their order, rounded to fp32; some may repeat.

    Raises UsageError when the scheduler refuses.
    """
    try:
        scheduler.set_timesteps(steps)
    except ValueError as error:
        raise UsageError(f"the scheduler refuses {steps} steps: {error}", "choose fewer --steps, or another scheduler") from error
    timesteps: list[float] = scheduler.timesteps.float().tolist()
    return timesteps


def step_options(scheduler: Any, generators: list[torch.Generator]) -> dict[str, Any]:
    """Keyword arguments of ``scheduler.step``: a generator for each sample where the step may draw noise."""
    return {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}


def scaled(scheduler: Any, x: torch.Tensor, timestep: Any) -> torch.Tensor:
    """The network's input for the state ``x``: some schedulers (Euler) scale it by a factor of the timestep."""
    result: torch.Tensor = scheduler.scale_model_input(x, timestep) if hasattr(scheduler, "scale_model_input") else x
    return result


def distinct_rows(timesteps: Sequence[float]) -> dict[float, list[int]]:
    """Distinct timesteps, ascending, each with the positions at which ``timesteps`` has it.

    Schedulers of higher order evaluate the network several times at one timestep (PNDM repeats one, Heun all but the first), and a table
    has one row for it.
    """
    rows: dict[float, list[int]] = {}
    for position, timestep in enumerate(timesteps):
        rows.setdefault(timestep, []).append(position)
    return dict(sorted(rows.items()))


def one_call_each(calls: list[torch.Tensor], positions: Sequence[int], per_seed: int) -> torch.Tensor:
    """What the seeds saw at one timestep that was evaluated at several ``positions``: they take the evaluations in turn.

    ``calls`` are [n, ...], with ``per_seed`` adjacent samples of one seed → [n, ...]. Both a predictor's and a corrector's input are then
    among the calibration samples, and every seed counts once.
    """
    if len(positions) == 1:
        return calls[positions[0]]
    turn = (torch.arange(len(calls[0])) // per_seed) % len(positions)
    result = calls[positions[0]].clone()
    for k, position in enumerate(positions):
        result[turn == k] = calls[position][turn == k]
    return result
