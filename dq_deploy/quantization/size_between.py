"""A size between the calibrated ones, which is kept in the checkpoint to be judged: nothing was fitted there."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product

from ..errors import UsageError
from .calibration.sized_source import Size, SizedSource, alike
from .graph.free_sizes import FreeSize

_HALVINGS = 4


def with_one_between(calibration: SizedSource, free: Mapping[str, FreeSize]) -> SizedSource:
    """With the most central size that is not calibrated, where there is one that the network takes and its pipeline draws."""
    first = calibration.sizes[0]
    edges = list(dict.fromkeys(size.edges for size in calibration.sizes if size.edges is not None))
    tokens = _middle([size.tokens for size in calibration.sizes if size.tokens is not None])
    for central in candidates(edges, free) if len(edges) > 1 else [first.edges]:
        size = Size(central, tokens)
        try:
            between = calibration.at(size)
        except UsageError:  # a pipeline may draw only at sizes of its own
            continue
        if any(alike(between, source) for source in calibration.sources):
            continue
        if free or between.shape == calibration.first.shape:  # where nothing is free, the graph takes no other number of tokens
            return replace(calibration, between=between, size_between=size)
    return calibration


def _middle(tokens: Sequence[int]) -> int | None:
    """Between the least and the largest length of text; the first where nothing lies there that is not calibrated."""
    middle = (min(tokens) + max(tokens)) // 2 if tokens else None
    return tokens[0] if middle in tokens else middle


def candidates(sizes: Sequence[tuple[int, int]], free: Mapping[str, FreeSize]) -> Iterator[tuple[int, int]]:
    """The most central size in steps of what divides all edges, and of a half, a quarter and an eighth of that."""
    divisor = math.gcd(*(edge for size in sizes for edge in size))
    bounds = [(min(edges), max(edges)) for edges in zip(*sizes, strict=True)]
    for step in (divisor >> halved for halved in range(_HALVINGS) if divisor % (1 << halved) == 0):
        heights, widths = (
            [edge for edge in range(low, high + 1, step) if _fits(edge, sizes[0][axis], free.get(name))]
            for axis, (name, (low, high)) in enumerate(zip(("height", "width"), bounds, strict=True))
        )
        found = [size for size in product(heights, widths) if size not in sizes]
        if found:
            yield min(found, key=lambda size: sum(abs(2 * edge - sum(bound)) for edge, bound in zip(size, bounds, strict=True)))


def _fits(edge: int, first: int, free: FreeSize | None) -> bool:
    """Whether an edge is a whole number of what the network takes, of which the ``first`` calibrated edge has ``free.values[0]``.

    A network that gets its pictures as tokens has no edges, and takes any that its pipeline draws.
    """
    return free is None or edge * free.values[0] % (first * free.multiple) == 0
