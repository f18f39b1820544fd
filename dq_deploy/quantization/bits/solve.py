"""One setting for each layer, so that errors add up to the least within a budget of bytes: the multiple-choice knapsack problem.

Solved by dynamic programming over the bytes that are left (Kellerer, Pferschy and Pisinger, Knapsack Problems, 2004, §11.5).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_MOST_CELLS = 1 << 17
"""Of the table over bytes; for each layer each of them takes a byte of memory."""


class Setting(NamedTuple):
    """What a layer costs with a setting: bytes, and error in any unit in which layers' errors add up."""

    size: int
    error: float


def least_error(layers: Sequence[Sequence[Setting]], budget: float) -> list[int] | None:
    """Index of the setting of each layer, of the least error in sum whose bytes are within ``budget``; None: the smallest are not.

    Of equal ones the first. It is the optimum as long as the table has a cell for each multiple of the bytes' common divisor. Else bytes
    are rounded up to cells: the budget holds, and up to a cell (1/131072 of what there is to spend) for each layer is wasted.
    """
    least = [min(setting.size for setting in layer) for layer in layers]
    extra = [[setting.size - low for setting in layer] for layer, low in zip(layers, least, strict=True)]
    room = min(budget - sum(least), sum(map(max, extra)))
    if room < 0:
        return None
    cell = max(1, math.gcd(*(size for layer in extra for size in layer)), math.ceil(room / _MOST_CELLS))
    cells = int(room // cell)
    total = np.zeros(cells + 1)  # least error of the layers so far, by cells that they may take
    chosen = []
    for layer, sizes in zip(layers, extra, strict=True):
        found = np.full((len(layer), cells + 1), np.inf)
        for index, (setting, size) in enumerate(zip(layer, sizes, strict=True)):
            taken = -(-size // cell)
            if taken <= cells:
                found[index, taken:] = total[: cells + 1 - taken] + setting.error
        chosen.append(found.argmin(axis=0).astype(np.int8))
        total = found.min(axis=0)
    left, answer = cells, []
    for best, sizes in zip(reversed(chosen), reversed(extra), strict=True):
        answer.append(int(best[left]))
        left -= -(-sizes[answer[-1]] // cell)
    return answer[::-1]
