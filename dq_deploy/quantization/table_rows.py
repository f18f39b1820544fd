"""Rows between the calibrated ones, for schedules that the tables were not made for.

A checkpoint stores a row for each calibrated timestep. In use, in PyTorch and in a bundle, its tables also have rows between these,
interpolated, and the row with the nearest timestep is taken as ever: at the calibrated timesteps that is the stored row, and for another
schedule one that is nearer (docs/decisions/schedule-rows.md).
"""

from __future__ import annotations

from collections.abc import Callable

import torch

PARTS = 4
"""Each gap between two calibrated timesteps is divided into so many."""

MOST_TABLE_ROWS = 256
"""Long schedules have small gaps: theirs are divided into fewer, or not at all."""


def parts(count: int) -> int:
    """Into how many the gaps between ``count`` calibrated timesteps are divided."""
    return max(1, min(PARTS, (MOST_TABLE_ROWS - 1) // (count - 1))) if count > 1 else 1


def between(table: torch.Tensor, parts: int) -> torch.Tensor:
    """Rows [T, ...] and ``parts`` − 1 on the straight line between each two of them [(T − 1)·parts + 1, ...], in fp64."""
    return _filled(table, parts, lambda low, high, fraction: low + (high - low) * fraction)


def between_scales(scale: torch.Tensor, parts: int) -> torch.Tensor:
    """The same for scales [T] > 0, fp32: straight lines of their logarithms."""
    return _filled(scale, parts, lambda low, high, fraction: low * (high / low) ** fraction).float()


def _filled(table: torch.Tensor, parts: int, line: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]) -> torch.Tensor:
    # In fp64, so that the rows rounded from it are the same on every machine.
    calibrated = table.double()
    low, high = calibrated[:-1].unsqueeze(1), calibrated[1:].unsqueeze(1)
    fraction = torch.arange(parts, dtype=torch.float64).div(parts).reshape(-1, *[1] * (calibrated.dim() - 1))
    return torch.cat([line(low, high, fraction).flatten(0, 1), calibrated[-1:]])
