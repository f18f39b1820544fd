"""Attention probabilities, which lie in [0, 1] at every timestep."""

from __future__ import annotations

import math
from typing import Any

import torch

from ...formats import NumberFormat, ScaleSource
from ..config import QuantizeConfig
from .base import Trained
from .observation import Observation
from .table import TableQuantizer

_SPREAD, _LEAST_RANGE = 1 / 8, 2.0**-20  # the peak that leaves [0, 1] as it is, and the narrowest range


class ProbabilityQuantizer(TableQuantizer):
    """code = round((2ᵇ − 1) · P / 2⁻ᵏ) − 2ᵇ⁻¹, the same at every timestep, and never trained."""

    kind = "probabilities"
    source = ScaleSource.CONSTANT
    fixed = True
    counted = False

    def __init__(self, timesteps: torch.Tensor, fmt: NumberFormat, **options: Any) -> None:
        super().__init__(timesteps, fmt, **options)
        self.requires_grad_(False)
        self._set_range(1.0)

    @property
    def divides(self) -> bool:
        """Never: no product before it could take the division."""
        return False

    def divided(self, x: torch.Tensor) -> torch.Tensor:
        """X [N, ...] as it is."""
        return x

    def _set_range(self, largest: float) -> None:
        (qmin, qmax), table_rows = self.format.code_range(), self.table_rows
        self.set_tables(torch.full((table_rows,), largest / (qmax - qmin)), torch.full((table_rows,), float(qmin)))

    def calibrate(self, seen: Observation, config: QuantizeConfig) -> None:  # noqa: ARG002  # no choice of a range
        """Quantize over [0, 2⁻ᵏ] where no probability that was seen exceeds a peak far below 1.

        Spread over thousands of tokens, all of them are less than half a step of [0, 1] and would become 0. Peaks of 1/8 and more leave
        [0, 1] as it is; else a third of the range is left for what was not seen (docs/decisions/attention.md has figures).
        """
        peak = float(seen.high.max())
        self._set_range(1.0 if peak >= _SPREAD else 2.0 ** -math.floor(-math.log2(max(1.5 * peak, _LEAST_RANGE))))

    @torch.no_grad()
    def _constant(self) -> torch.Tensor:
        """2⁻ᵏ in 2ᵇ − 1 steps, [T]. Its logarithm is rounded to that: exp(log(1/255)) is not 1/255."""
        if self.frozen_scale is not None:
            return self.frozen_scale
        qmin, qmax = self.format.code_range()
        exponent = (self.log_scale[:, 0].double() / math.log(2) + math.log2(qmax - qmin)).round()
        scale: torch.Tensor = (torch.exp2(exponent) / (qmax - qmin)).float()
        return scale

    def trained(self) -> dict[str, Trained]:
        """Nothing."""
        return {}
