"""One scale and one zero-point for all timesteps."""

from __future__ import annotations

from typing import Any

import torch

from ...formats import NumberFormat, ScaleSource
from .table import TableQuantizer


class StaticQuantizer(TableQuantizer):
    """One row is calibrated and trained. What a checkpoint stores has T equal rows, and is loaded as a table."""

    kind = "static"
    source = ScaleSource.CONSTANT

    def __init__(self, timesteps: torch.Tensor, fmt: NumberFormat, **options: Any) -> None:
        super().__init__(timesteps, fmt, table_rows=1, **options)

    def _index(self, timestep: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(super()._index(timestep))
