"""First scale and zero-point of a table's rows, every row and sample at once."""

from __future__ import annotations

import torch

from .. import numerics
from ..config import InitialRange

_MIN_MAX_BITS, _PERCENTILE_BITS = 7, 6  # from so many bits up; docs/decisions/initial-range.md
_SHRINK = torch.logspace(0, -2, 20, base=2)  # candidate clipping ranges, 1 … 1/4 of min–max
_SEARCH_ELEMENTS = 2**18  # over all rows; the optimum of a one-dimensional search is known well enough from these


def resolve(rule: InitialRange, bits: int) -> InitialRange:
    """What AUTO means at ``bits``: the fewer there are, the more of a range is given up for finer steps."""
    if rule is not InitialRange.AUTO:
        return rule
    if bits >= _PERCENTILE_BITS:
        return InitialRange.MINMAX if bits >= _MIN_MAX_BITS else InitialRange.PERCENTILE
    return InitialRange.MSE


def search_tables(x: torch.Tensor, rows: int, bits: int, *, symmetric: bool, rule: InitialRange,
                  percentile: float = 99.99) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Scale [rows] and zero-point [rows] for ``x`` [rows·m, ...], rows slowest.

    MINMAX covers every value; PERCENTILE the share that lies between the two outer quantiles; MSE takes the range with the least squared
    error among min–max shrunk by a common factor down to a quarter. A row that saw nothing but zeros covers what the nearest row that
    saw more does, since what comes later may not be zero; its zero-point is 0, whose correction in an engine cancels exactly.
    """
    values = x.reshape(rows, -1).float()
    low, high = values.amin(dim=1), values.amax(dim=1)
    scale, zero_point = _search(values, low, high, bits, resolve(rule, bits), percentile, symmetric=symmetric)
    seen = (low != 0) | (high != 0)
    source, (qmin, qmax) = _nearest_seen(seen), numerics.code_range(bits)
    reach = torch.maximum(zero_point - qmin, qmax - zero_point) / -qmin  # of the source's codes from its zero-point, in those from 0
    return torch.where(seen, scale, (scale * reach)[source]), torch.where(seen, zero_point, torch.zeros_like(zero_point))


def _search(values: torch.Tensor, low: torch.Tensor, high: torch.Tensor, bits: int, rule: InitialRange, percentile: float, *,
            symmetric: bool) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    if rule is InitialRange.PERCENTILE:
        inner_low, inner_high = _quantiles(values, percentile / 100)
        sparse = (inner_low == 0) & (inner_high == 0)  # nearly all zeros: the others are all there is
        low, high = torch.where(sparse, low, inner_low), torch.where(sparse, high, inner_high)
    if rule is InitialRange.MSE:
        return _least_squares(_subsample(values, _SEARCH_ELEMENTS // len(values)), low, high, bits, symmetric)
    return numerics.affine_parameters(low, high, bits, symmetric=symmetric)


def _nearest_seen(seen: torch.Tensor) -> torch.Tensor:
    """For each row [T] itself if it is ``seen``, else the nearest row that is (of two, the earlier); where none is, itself."""
    index = torch.arange(len(seen), device=seen.device)
    if bool(seen.all()) or not bool(seen.any()):
        return index
    known = index[seen]
    return known[(index[:, None] - known).abs().argmin(dim=1)]


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
