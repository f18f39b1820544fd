"""What a table is fitted to: how far an activation's values reach in each of its rows, and how many of them lie where.

A histogram whose bins are a float's sign, exponent and first mantissa bits needs no range beforehand, adds up over any number of
samples, and resolves a tail of few values as well as the bulk: 16 bins for each power of two.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Self

import torch

from ...formats import NumberFormat
from .. import numerics
from ..grid import nearest

_MANTISSA_BITS, _FLOAT_MANTISSA_BITS, _FLOAT_BIAS = 4, 23, 127
_LEAST, _MOST = -64, 64  # powers of two that have bins; what is smaller counts as zero, what is larger as the row's extreme
_PER_POWER = 1 << _MANTISSA_BITS
_BINS = (_MOST - _LEAST) * _PER_POWER  # on either side of zero
_FIRST = (_FLOAT_BIAS + _LEAST) * _PER_POWER  # a float's bits, shifted, of the smallest bin
_AT_ONCE = 2**16  # values whose histogram is made within the processor's cache
_WITHIN = (-0.375, -0.125, 0.125, 0.375)  # of a bin's width: places that stand for all of it
_CODES = 1 << (32 - (_FLOAT_MANTISSA_BITS - _MANTISSA_BITS))  # of a float's bits, shifted


@dataclass(frozen=True)
class Bins:
    """Bins of a histogram: a value ``points`` [R, B] for each, none beyond the row's extremes, ``widths`` [B] and ``counts`` [R, B]."""

    points: torch.Tensor
    widths: torch.Tensor
    counts: torch.Tensor

    def error(self, scale: torch.Tensor, zero_point: torch.Tensor, fmt: NumberFormat) -> tuple[torch.Tensor, torch.Tensor]:
        """Summed squared error [C·R] of rounding, and of clipping, with scales and zero-points [C·R], C sets of them one after the other.

        A bin wider than a step holds every fraction of one alike, whose mean square is a twelfth of a step's. The steps of a floating-point
        format differ, and are never narrower than a bin: there the error is measured at some places of each.
        """
        if fmt.floating:
            return self._float_error(scale, fmt)
        step, zero_point = (value.reshape(-1, len(self.points), 1) for value in (scale, zero_point))
        codes = numerics.quantize(self.points, 1 / step, zero_point, fmt)
        squared = codes.mul_(step).sub_(self.points).square_()
        qmin, qmax = fmt.code_range()
        low, high = ((code - zero_point) * step for code in (qmin - 0.5, qmax + 0.5))
        clipped = (self.points < low) | (self.points > high)
        rounding = torch.where(self.widths > step, step.square() / 12, squared).masked_fill_(clipped, 0)
        clipping = squared.masked_fill_(~clipped, 0)
        return self._summed(rounding), self._summed(clipping)

    def _float_error(self, scale: torch.Tensor, fmt: NumberFormat) -> tuple[torch.Tensor, torch.Tensor]:
        """As ``error``, of a format that has no zero-points."""
        scale, largest = scale.reshape(-1, len(self.points), 1), fmt.unclipped_range()[1]
        rounding, clipping = torch.zeros_like(scale * self.points), torch.zeros_like(scale * self.points)
        for place in _WITHIN:
            points = self.points + place * self.widths
            squared = (nearest(points / scale, fmt) * scale - points).square() / len(_WITHIN)
            clipped = points.abs() > largest * scale
            rounding += squared.masked_fill(clipped, 0)
            clipping += squared.masked_fill(~clipped, 0)
        return self._summed(rounding), self._summed(clipping)

    def _summed(self, squared: torch.Tensor) -> torch.Tensor:
        """Over all values [C·R], of what each bin's are [C, R, B]."""
        return (self.counts * squared).sum(dim=2, dtype=torch.float64).flatten()


@dataclass(frozen=True)
class Observation:
    """Extremes [R] and histogram [R, bins] of the values that each of R rows saw."""

    low: torch.Tensor
    high: torch.Tensor
    counts: torch.Tensor

    @classmethod
    def nothing(cls, table_rows: int, device: torch.device, *, counted: bool = True) -> Self:
        """Of rows that have seen no value yet; of those that they will see only the extremes unless ``counted``."""
        unseen = torch.full((table_rows,), torch.inf, device=device)
        return cls(unseen, -unseen, torch.zeros(table_rows, 2 * _BINS + 1 if counted else 0, device=device))

    @classmethod
    def of(cls, values: torch.Tensor, table_rows: int, *, counted: bool = True) -> Self:
        """Of ``values`` [R·m, ...], R being ``table_rows``, the slowest."""
        return cls.nothing(table_rows, values.device, counted=counted).after(values)

    def after(self, values: torch.Tensor) -> Self:
        """Itself, having seen ``values`` [R·m, ...] too, rows slowest."""
        for row, part in enumerate(values.unflatten(0, (len(self.low), -1))):
            self.add(part, row)
        return self

    def add(self, values: torch.Tensor, row: int) -> None:
        """See ``values`` of any shape in ``row`` too."""
        values = values.detach().float().flatten()
        self.low[row] = torch.minimum(self.low[row], values.amin())
        self.high[row] = torch.maximum(self.high[row], values.amax())
        if self.counts.shape[1]:
            for part in values.split(_AT_ONCE if values.device.type == "cpu" else max(1, len(values))):
                self.counts[row] += _histogram(part)

    def bins(self) -> Bins:
        """The bins that any row has values in."""
        middles, widths = _bins(self.counts.device)
        used = self.counts.any(dim=0)
        points = middles[used].expand(len(self.low), -1).clamp(self.low[:, None], self.high[:, None])
        return Bins(points, widths[used], self.counts[:, used])

    def quantiles(self, fraction: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Values [R] below and above which a (1 − fraction) part of each row lies, to a bin."""
        bins = self.bins()
        below = bins.counts.cumsum(dim=1, dtype=torch.float64)
        total, last = below[:, -1:], below.shape[1] - 1
        low = torch.searchsorted(below, total * (1 - fraction) + 0.5).clamp(max=last)
        high = torch.searchsorted(below, total * fraction - 0.5).clamp(max=last)
        return bins.points.gather(1, low)[:, 0], bins.points.gather(1, high)[:, 0]


def _histogram(values: torch.Tensor) -> torch.Tensor:
    """How many of ``values`` [n] (fp32) are in each bin, from the most negative to the most positive."""
    bits = values.view(torch.int32) >> (_FLOAT_MANTISSA_BITS - _MANTISSA_BITS)  # of a negative float: negative
    counts = torch.bincount(bits.add_(_CODES // 2), minlength=_CODES).float()
    negative, positive = counts[: _CODES // 2], counts[_CODES // 2 :]
    sides = []
    for side in (negative, positive):
        inner = side[_FIRST : _FIRST + _BINS].clone()
        inner[-1] += side[_FIRST + _BINS :].sum()
        sides.append(inner)
    zero = negative[:_FIRST].sum() + positive[:_FIRST].sum()
    return torch.cat([sides[0].flip(0), zero.reshape(1), sides[1]])


@cache
def _bins(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Middle and width of every bin, from the most negative to the most positive."""
    index = torch.arange(_BINS, device=device)
    power = torch.exp2((index // _PER_POWER + _LEAST).double())
    low, width = power * (1 + (index % _PER_POWER) / _PER_POWER), power / _PER_POWER
    middle, zero = low + width / 2, torch.zeros(1, device=device, dtype=torch.float64)
    middle[-1] = torch.inf  # until it is brought to the row's extreme
    return torch.cat([-middle.flip(0), zero, middle]).float(), torch.cat([width.flip(0), zero, width]).float()
