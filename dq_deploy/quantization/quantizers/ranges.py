"""First scale and zero-point of a table's rows, every row and sample at once."""

from __future__ import annotations

import torch

from ...formats import NumberFormat
from .. import numerics
from ..choices import InitialRange
from .observation import Observation

CLIPPING_WEIGHT = 4.0
"""How often a clipped value's squared error counts: by measurement (docs/decisions/initial-range.md)."""

_CLIPPED_WEIGHT_BITS = 5  # up to so many; docs/decisions/initial-range.md
_TOGETHER = torch.logspace(-0.25, -3, 12, base=2).tolist()  # of both ends, beside 1
_ALONE = ([0.5, 0.6, 0.71, 0.84, 1.19, 1.41], [0.77, 0.84, 0.92, 1.09, 1.19])  # of one end, coarsely and then finely


def resolve(rule: InitialRange) -> InitialRange:
    """What AUTO means."""
    return InitialRange.LEAST_ERROR if rule is InitialRange.AUTO else rule


def clips_weights(rule: InitialRange, fmt: NumberFormat) -> bool:
    """Whether weights of a format start from the range of least squared error, and not from their whole range."""
    searched = fmt.bits <= _CLIPPED_WEIGHT_BITS or fmt.floating
    return rule is InitialRange.MSE or (resolve(rule) is InitialRange.LEAST_ERROR and searched)


def search_tables(seen: Observation, fmt: NumberFormat, *, symmetric: bool, rule: InitialRange,
                  percentile: float = 99.99) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Scale [R] and zero-point [R] for what R rows saw.

    LEAST_ERROR takes the range with the least expected error, clipping counted ``CLIPPING_WEIGHT`` times; MSE counts it once; MINMAX
    covers every value; PERCENTILE the share that lies between the two outer quantiles. A row that saw nothing but zeros covers what the
    nearest row that saw more does, since what comes later may not be zero; its zero-point is 0, whose correction in an engine cancels
    exactly.
    """
    scale, zero_point = numerics.affine_parameters(*_range(seen, fmt, resolve(rule), percentile, symmetric), fmt, symmetric=symmetric)
    nonzero = (seen.low != 0) | (seen.high != 0)
    source, (qmin, qmax) = _nearest_seen(nonzero), fmt.code_range()
    reach = torch.maximum(zero_point - qmin, qmax - zero_point) / -qmin  # of the source's codes from its zero-point, in those from 0
    return torch.where(nonzero, scale, (scale * reach)[source]), torch.where(nonzero, zero_point, torch.zeros_like(zero_point))


def _range(
    seen: Observation, fmt: NumberFormat, rule: InitialRange, percentile: float, symmetric: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    if rule is InitialRange.MINMAX or (rule is InitialRange.PERCENTILE and percentile == 100):
        return seen.low, seen.high
    if rule is InitialRange.PERCENTILE:
        low, high = seen.quantiles(percentile / 100)
        sparse = (low == 0) & (high == 0)  # nearly all zeros: the others are all there is
        return torch.where(sparse, seen.low, low), torch.where(sparse, seen.high, high)
    return _Search(seen, fmt, symmetric, CLIPPING_WEIGHT if rule is InitialRange.LEAST_ERROR else 1.0).run()


class _Search:
    """The range [R] of least error within what was seen: both ends shrunk alike first, then each end alone."""

    def __init__(self, seen: Observation, fmt: NumberFormat, symmetric: bool, clipping_weight: float) -> None:
        self.seen, self.fmt, self.symmetric, self.clipping_weight = seen, fmt, symmetric, clipping_weight
        self.bins = seen.bins()
        self.low, self.high = seen.low.clone(), seen.high.clone()
        self.error = self._error(self.low, self.high)

    def run(self) -> tuple[torch.Tensor, torch.Tensor]:
        together = torch.tensor(_TOGETHER, device=self.low.device)[:, None]
        self._offer(self.seen.low * together, self.seen.high * together)
        if not self.symmetric:
            for factors in _ALONE:
                alone = torch.tensor(factors, device=self.low.device)[:, None]
                low = self.low
                self._offer(low.expand(len(alone), -1), torch.minimum(self.high * alone, self.seen.high))
                self._offer(torch.maximum(low * alone, self.seen.low), self.high.expand(len(alone), -1))
        return self.low, self.high

    def _offer(self, low: torch.Tensor, high: torch.Tensor) -> None:
        """Take of the candidates [C, R] the one of least error, where it is better than the range so far."""
        errors = self._error(low.flatten(), high.flatten()).unflatten(0, low.shape)
        error, best = errors.min(dim=0)
        better = error < self.error
        self.error = torch.where(better, error, self.error)
        self.low = torch.where(better, low.gather(0, best[None])[0], self.low)
        self.high = torch.where(better, high.gather(0, best[None])[0], self.high)

    def _error(self, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        """Error of ranges [C·R]; row i is that of the row i modulo R."""
        tables = numerics.affine_parameters(low, high, self.fmt, symmetric=self.symmetric)
        rounding, clipping = self.bins.error(*tables, self.fmt)
        return rounding + self.clipping_weight * clipping


def _nearest_seen(seen: torch.Tensor) -> torch.Tensor:
    """For each row [T] itself if it is ``seen``, else the nearest row that is (of two, the earlier); where none is, itself."""
    index = torch.arange(len(seen), device=seen.device)
    if bool(seen.all()) or not bool(seen.any()):
        return index
    known = index[seen]
    return known[(index[:, None] - known).abs().argmin(dim=1)]
