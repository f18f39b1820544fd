"""What rounding weights by GPTQ will take: small products, factors and columns are timed, and counted for every layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..rounding.codebooks import fitting_operations
from ..rounding.columns import Rounder
from ..rounding.groups import Group
from ..rounding.layerwise import SCALES, moments_operations, rounding_operations
from ..rounding.moments import Moments
from .timing import timed

_SMALL, _LARGE = (16, 64), (512, 1024)  # rows and inputs of the timed weights
_TOKENS = 4096


@dataclass(frozen=True)
class Rates:
    """Seconds of a multiply-accumulate of H and of one of the rounding, and of a column however short."""

    moments: float
    rounding: float
    column: float

    @classmethod
    def measured(cls, device: torch.device) -> Rates:
        """Those of this machine as it is now."""
        inputs = _LARGE[1]
        columns, moments = torch.randn(1, 1, _TOKENS, inputs, device=device), Moments(1, inputs, device)
        product = timed(lambda: moments.add(columns, torch.ones(1, device=device)))
        short, long = (_round(shape, device) for shape in (_SMALL, _LARGE))
        column = short / _SMALL[1]
        rest = max(0.1 * long, long - column * inputs)
        return cls(product / (_TOKENS * inputs**2), rest / rounding_operations((1, *_LARGE)), column)

    def seconds(self, groups: Sequence[Group]) -> float:
        """Of all ``groups``, beside the passes of the network."""
        shapes = [group.shape for group in groups]
        products = sum(map(moments_operations, shapes))
        fitted = [(group, codebook) for group in groups if (codebook := group.codebook)]
        products += sum(fitting_operations(group.shape, codebook) for group, codebook in fitted)  # of the same arithmetic
        rounded = [group for group in groups if not group.codebook]
        columns = sum(parts * inputs for parts, _, inputs in (group.shape for group in rounded))
        operations = sum(rounding_operations(group.shape, len(group.widths)) for group in rounded)
        return self.moments * products + self.rounding * operations + self.column * columns


def _round(shape: tuple[int, int], device: torch.device) -> float:
    """Seconds of rounding a weight [R, K]."""
    rows, inputs = shape
    weight = torch.randn(rows, inputs, dtype=torch.float64, device=device)
    moments, scale, limit = torch.eye(inputs).to(weight), torch.full_like(weight, 0.4), torch.full_like(weight[:, 0], 7.0)
    return timed(lambda: Rounder(moments).candidates(weight, scale.expand(len(SCALES), -1, -1), limit))
