"""A scheduler's configuration as a manifest has it, and the rows that its timesteps give."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch


def plain_config(scheduler: Any) -> dict[str, Any]:
    """A scheduler's configuration as JSON values; infinities, which JSON does not have, as text (DPM-Solver's ``lambda_min_clipped``)."""
    config = getattr(scheduler, "config", None)
    if not isinstance(config, Mapping):
        return {}
    # diffusers' own notes are left out: one of them lists the defaults in an order that changes from process to process.
    return {name: _plain(value) for name, value in config.items() if not name.startswith("_") or name == "_class_name"}


def from_plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a scheduler's class from ``plain_config``."""
    return {name: float(value) if value in ("inf", "-inf", "nan") else value for name, value in config.items() if not name.startswith("_")}


def _plain(value: Any) -> Any:
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    known = value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
    return value if known else str(value)  # an infinity, or a torch.dtype of a scheduler of the user's own


def distinct_timesteps(timesteps: Sequence[float]) -> dict[float, list[int]]:
    """Distinct timesteps, ascending, each with the positions at which ``timesteps`` has it.

    Schedulers of higher order evaluate the network several times at one timestep (PNDM repeats one, Heun all but the first), and a table
    has one row for it.
    """
    positions: dict[float, list[int]] = {}
    for position, timestep in enumerate(timesteps):
        positions.setdefault(timestep, []).append(position)
    return dict(sorted(positions.items()))


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
