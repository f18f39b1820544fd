"""First scale and zero-point of a table's rows, every row and sample at once."""

from __future__ import annotations

import torch

from .. import numerics
from ..config import InitialRange

_MIN_MAX_BITS = 6  # docs/decisions/initial-range.md
_SHRINK = torch.logspace(0, -2, 20, base=2)  # candidate clipping ranges, 1 … 1/4 of min–max
_SEARCH_ELEMENTS = 2**18  # over all rows; the optimum of a one-dimensional search is known well enough from these


def resolve(rule: InitialRange, bits: int) -> InitialRange:
    """What AUTO means at ``bits``: at 8 bits clipping costs the network more than the finer steps gain."""
    if rule is not InitialRange.AUTO:
        return rule
    return InitialRange.MINMAX if bits >= _MIN_MAX_BITS else InitialRange.MSE


def search_tables(x: torch.Tensor, rows: int, bits: int, *, symmetric: bool, rule: InitialRange,
                  percentile: float = 99.99) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Scale [rows] and zero-point [rows] for ``x`` [rows·m, ...], rows slowest.

    MINMAX covers every value; PERCENTILE the share that lies between the two outer quantiles; MSE takes the range with the least squared
    error among min–max shrunk by a common factor down to a quarter.
    """
    values = x.reshape(rows, -1).float()
    rule = resolve(rule, bits)
    if rule is InitialRange.PERCENTILE:
        low, high = _quantiles(values, percentile / 100)
        return numerics.affine_parameters(low, high, bits, symmetric=symmetric)
    low, high = values.amin(dim=1), values.amax(dim=1)
    if rule is InitialRange.MINMAX:
        return numerics.affine_parameters(low, high, bits, symmetric=symmetric)
    return _least_squares(_subsample(values, _SEARCH_ELEMENTS // rows), low, high, bits, symmetric)


def _quantiles(values: torch.Tensor, share: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Values [rows] below and above which a (1 − share) part of each row lies; torch.quantile takes no more than 2^24 elements."""
    count = values.shape[1]
    rank = min(count, max(1, round(share * count)))
    return values.kthvalue(count - rank + 1, dim=1).values, values.kthvalue(rank, dim=1).values


def _subsample(values: torch.Tensor, count: int) -> torch.Tensor:
    if values.shape[1] <= count:
        return values
    # Drawn, not strided: a stride that divides the image's width would look at one column only.
    generator = torch.Generator().manual_seed(0)
    return values[:, torch.randint(values.shape[1], (count,), generator=generator).to(values.device)]


def _least_squares(values: torch.Tensor, low: torch.Tensor, high: torch.Tensor, bits: int,
                   symmetric: bool) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    best_scale, best_zero = numerics.affine_parameters(low, high, bits, symmetric=symmetric)
    best_error = torch.full_like(low, torch.inf)
    for shrink in _SHRINK.tolist():
        scale, zero = numerics.affine_parameters(low * shrink, high * shrink, bits, symmetric=symmetric)
        codes = numerics.quantize(values, (1 / scale)[:, None], zero[:, None], bits)
        error = (codes * scale[:, None] - values).pow(2).mean(dim=1)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale, best_zero = torch.where(better, scale, best_scale), torch.where(better, zero, best_zero)
    return best_scale, best_zero
