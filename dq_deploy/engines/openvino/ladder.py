"""Ways to compile a graph for a CPU, best first: what OpenVINO refuses in one form it may take in another.

A refusal ends a run only where no way is left. Which way was taken is said once, and stands in the runner's ``details``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Way:
    """``rewritten`` for its kernels, at ``fixed`` sizes, quantized layers in ``integer`` kernels."""

    name: str
    rewritten: bool = False
    fixed: bool = True
    integer: bool = True


REWRITTEN = Way("rewritten", rewritten=True)
WAYS = (
    REWRITTEN,
    Way("as exported"),
    Way("with open sizes", fixed=False),
    Way("in float", integer=False),
)


def compile_somehow(compile_as: Callable[[Way], Any], *, integer: bool, openable: bool,
                    refused: Callable[[Way, str], None]) -> tuple[Any, Way]:  # fmt: skip
    """The compiled model, and the first way in which OpenVINO takes the graph.

    Without ``integer`` kernels every way is in float; ``openable`` says whether there are sizes that may stay open. ``refused`` gets each
    way that fails while one is left, and OpenVINO's words. Raises the RuntimeError of the first way where all fail.
    """
    ways = [way for way in WAYS if (way.integer or integer) and (way.fixed or openable)]
    first: RuntimeError | None = None
    for way in ways:
        try:
            return compile_as(way), way
        except RuntimeError as error:
            first = first or error
            if way is not ways[-1]:
                refused(way, " ".join(str(error).split())[-200:])
    assert first is not None
    raise first
