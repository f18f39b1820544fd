"""Calibration at several sizes: a source for each, the first of which is the one that stands for all where one is enough."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from typing import Any, NamedTuple

import torch

from ...artifacts.details import size_in_words
from ...errors import UsageError
from ...progress import Progress
from ..calling import CallForm, OutputForm
from .choice import Choice
from .source import CalibrationSource
from .trajectories import Answer, Conditions, Model, Trajectories


class Size(NamedTuple):
    """A height and a width, a length of the text in tokens, or both; None is the source's own."""

    edges: tuple[int, int] | None
    tokens: int | None = None

    def __str__(self) -> str:
        return size_in_words(self.edges, self.tokens)

    def record(self) -> dict[str, Any]:
        """What the manifest says."""
        said: dict[str, Any] = {} if self.edges is None else {"size": list(self.edges)}
        return said if self.tokens is None else {**said, "tokens": self.tokens}


def sizes_of(edges: Sequence[tuple[int, int]], tokens: Sequence[int]) -> list[Size]:
    """Every size at the first length, and every further length at the first size: each varies by itself."""
    return [
        *(Size(size, next(iter(tokens), None)) for size in (edges or (None,))),
        *(Size(next(iter(edges), None), length) for length in tokens[1:]),
    ]


@dataclass(frozen=True)
class SizedSource:
    """``sources`` of one model at ``sizes``; ``at`` makes one at another size, and ``between`` is one that calibration does not see.

    ``whole`` is what they are parts of, where each has its share of the prompts.
    """

    sources: tuple[CalibrationSource, ...]
    sizes: tuple[Size, ...]
    at: Callable[[Size], CalibrationSource]
    between: CalibrationSource | None = None
    size_between: Size | None = None
    whole: CalibrationSource | None = None

    def __post_init__(self) -> None:
        """Raises UsageError where the model is called in another way at another size, and where two sizes are one to it."""
        for source, size in zip(self.sources, self.sizes, strict=True):
            if source.form != self.first.form:
                raise UsageError(
                    f"the network is called otherwise for {size} than for {self.sizes[0]}, and a graph is made for one: "
                    f"{_difference(self.first, source)}",
                    "leave --sizes and --tokens out, and quantize it once for each",
                )
        for (size, source), (other, again) in combinations(zip(self.sizes, self.sources, strict=True), 2):
            if alike(source, again):
                raise UsageError(
                    f"the network is called with the same shapes for {size} and {other}: to it they are one size",
                    "leave one out",
                )

    @property
    def first(self) -> CalibrationSource:
        """The source of the first size."""
        return self.sources[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the first size."""
        return self.first.shape

    @property
    def examples(self) -> Conditions:
        """Of the first size."""
        return self.first.examples

    @property
    def form(self) -> CallForm | None:
        """Of all sizes."""
        return self.first.form

    @property
    def choice(self) -> Choice:
        """Of all sizes."""
        return self.first.choice

    def each(self) -> list[tuple[Size, CalibrationSource]]:
        """Every size with its source, that between them last."""
        more = [(self.size_between, self.between)] if self.size_between and self.between else []
        return [*zip(self.sizes, self.sources, strict=True), *more]

    def try_out(self, model: Model) -> None:
        """First steps at every size."""
        for source in self.sources:
            source.try_out(model)

    def collect(self, model: Model, seeds: range, progress: Progress, part: slice = slice(None)) -> Trajectories:
        """Trajectories of the first size."""
        return self.first.collect(model, seeds, progress, part)

    def calibration(self, model: Model, seeds: range, progress: Progress) -> Trajectories:
        """Trajectories of each size from its share of the seeds, as one."""
        own = zip(self.sources, _shares(seeds, len(self.sources)), strict=True)
        return _together([source.collect(model, dealt, progress) for source, dealt in own])

    def reference(self, model: Model, seeds: range, progress: Progress) -> Trajectories:
        """Trajectories of each size, and of that between them, from the same seeds, as one."""
        return _together([source.collect(model, seeds, progress) for _, source in self.each()])

    def final_samples(self, answer: Answer, seeds: range, part: slice, runs: int, output: OutputForm) -> torch.Tensor:
        """As the protocol says, of the first size."""
        return self.first.final_samples(answer, seeds, part, runs, output)

    def record(self) -> dict[str, Any]:
        """The whole's or the first source's, and the sizes are the configuration's."""
        return (self.whole or self.first).record()


def alike(source: CalibrationSource, other: CalibrationSource) -> bool:
    """Whether a network cannot tell two sources apart: its samples have one shape, and its conditions are the same."""
    same = source.examples.keys() == other.examples.keys()
    return (
        source.shape == other.shape and same and all(torch.equal(source.examples[name], other.examples[name]) for name in source.examples)
    )


def _together(found: Sequence[Trajectories]) -> Trajectories:
    return replace(found[0], others=tuple(found[1:]))


def _shares(seeds: range, count: int) -> list[range]:
    """Seeds dealt to ``count`` sizes, each as many as the others or one more."""
    bounds = [len(seeds) * index // count for index in range(count + 1)]
    return [seeds[low:high] for low, high in pairwise(bounds)]


def _difference(first: CalibrationSource, other: CalibrationSource) -> str:
    """The arguments in which two forms of a call differ."""
    trees = [dict(source.form.arguments) if source.form else {} for source in (first, other)]
    names = sorted(name for name in trees[0].keys() | trees[1].keys() if trees[0].get(name) != trees[1].get(name))
    return f"its {' and '.join(names)} has the size in it as a number" if names else "in the structure of its arguments"
