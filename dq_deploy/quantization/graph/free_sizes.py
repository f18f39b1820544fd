"""Which dimensions of a graph's inputs are free beside the batch: those in which examples of several sizes differ, with names."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule

from ...errors import UsageError

Examples = Mapping[str, torch.Tensor]
_OF_SAMPLES: dict[int, dict[int, str]] = {
    3: {1: "picture_tokens", 2: "length"},
    4: {2: "height", 3: "width"},
    5: {1: "frames", 2: "frames", 3: "height", 4: "width"},
}
"""By a sample's rank, with the batch: what its dimensions are called."""
_EDGES = ("height", "width", "picture_tokens")
"""Of these a condition may have a ratio."""
_LEAST = 3
"""torch.export takes a size of 0 or 1 for a constant, and a model is captured with a batch of 2."""
_MULTIPLES = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True)
class FreeSize:
    """A free dimension: its ``values`` at each calibrated size, where it stands, and what a size must be a ``multiple`` of.

    One that follows another (a ControlNet's residual, the height) is always ``ratio`` times the dimension ``of``.
    """

    name: str
    values: tuple[int, ...]
    axes: tuple[tuple[str, int], ...] = ()  # (input, dimension with the batch)
    multiple: int = 1
    of: str | None = None
    ratio: Fraction = Fraction(1)

    def record(self) -> dict[str, Any]:
        """What the manifest says."""
        follows = {} if self.of is None else {"of": self.of, "ratio": [self.ratio.numerator, self.ratio.denominator]}
        return {"values": list(self.values), "axes": [list(axis) for axis in self.axes], "multiple": self.multiple, **follows}


@dataclass
class _Namer:
    sample: str
    found: dict[str, FreeSize] = field(default_factory=dict)

    def add(self, name: str, axis: tuple[str, int], values: tuple[int, ...]) -> None:
        size = self.found.get(name, FreeSize(name, values))
        self.found[name] = replace(size, axes=(*size.axes, axis))

    def follow(self, edge: str, axis: tuple[str, int], values: tuple[int, ...], ratio: Fraction) -> None:
        """The edge itself, or what is always a ratio of it."""
        if ratio == 1:
            self.add(edge, axis, values)
        else:
            own = _own(axis)
            self.found[own] = FreeSize(own, values, (axis,), of=edge, ratio=ratio)

    def ratio(self, edges: Mapping[int, str], shapes: Sequence[tuple[int, ...]]) -> Fraction | None:
        """What an input's edges are of the sample's: the same for both of a picture and at every size; None where it differs."""
        ratios = {Fraction(shape[dim], self.found[edge].values[at]) for dim, edge in edges.items() for at, shape in enumerate(shapes)}
        return ratios.pop() if len(ratios) == 1 else None

    def name(self, axis: tuple[str, int], values: tuple[int, ...]) -> str:
        """That of a size which is always the same, or of its own."""
        taken = {name for name, size in self.found.items() if any(input_ == axis[0] for input_, _ in size.axes)}
        same = [name for name, size in self.found.items() if size.values == values and name not in taken]
        own = "tokens" if axis[1] == 1 and "tokens" not in self.found else _own(axis)
        return next(iter(same), own)


def _own(axis: tuple[str, int]) -> str:
    return f"{axis[0]}_{axis[1]}"


def free_sizes(inputs: Examples, others: Sequence[Examples]) -> dict[str, FreeSize]:
    """The free dimensions of a graph with the examples ``inputs`` [2, ...], whose first is the sample, and ``others`` at other sizes.

    Of a picture both height and width are free as soon as one differs. So are those of a condition that is one too (residuals, a control
    picture), which follow the sample's where their ratio is the same at every size. Raises UsageError for examples that differ in more
    than sizes, and for sizes that cannot be captured.
    """
    sample = next(iter(inputs))
    namer = _Namer(sample)
    for name, tensor in inputs.items():
        shapes = [tuple(example[name].shape) for example in (inputs, *others)]
        if len({len(shape) for shape in shapes}) > 1:
            raise UsageError(f"the input '{name}' has the shapes {', '.join(str(list(s[1:])) for s in shapes)} at these sizes", "give one")
        edges = _spatial(shapes)
        following = {} if name == sample else {dim: edge for dim, edge in edges.items() if edge in _EDGES and edge in namer.found}
        ratio = namer.ratio(following, shapes)
        for dim in range(1, tensor.dim()):
            values = tuple(shape[dim] for shape in shapes)
            if name == sample and dim in edges:
                namer.add(edges[dim], (name, dim), values)
            elif ratio is not None and dim in following:
                namer.follow(following[dim], (name, dim), values, ratio)
            elif len(set(values)) > 1:
                namer.add(namer.name((name, dim), values), (name, dim), values)
    small = {size.name: min(size.values) for size in namer.found.values() if min(size.values) < _LEAST}
    if small:
        what = ", ".join(f"a {name} of {value}" for name, value in small.items())
        raise UsageError(
            f"{what} cannot be free: of sizes that are, the least is {_LEAST}, as the network gets it", "give larger --sizes or --tokens"
        )
    return namer.found


def _spatial(shapes: Sequence[tuple[int, ...]]) -> dict[int, str]:
    """What free dimensions are called in a sample of these shapes."""
    names = _OF_SAMPLES.get(len(shapes[0]), {})
    differing = {dim for dim in range(1, len(shapes[0])) if len({shape[dim] for shape in shapes}) > 1}
    pictured = {dim for dim, name in names.items() if name in ("height", "width")}
    differing |= pictured if differing & pictured else set()
    return {dim: names.get(dim, f"sample_{dim}") for dim in sorted(differing)}


def with_multiples(graph_module: GraphModule, inputs: Examples, sizes: Mapping[str, FreeSize]) -> dict[str, FreeSize]:
    """The sizes with what each must be a multiple of, found by running the graph on tensors without values.

    What follows another is found with it, and has no multiple of its own.
    """
    groups = {name: [size, *(other for other in sizes.values() if other.of == name)] for name, size in sizes.items() if size.of is None}
    found = {name: replace(sizes[name], multiple=_multiple(graph_module, inputs, group)) for name, group in groups.items()}
    return {name: found.get(name, size) for name, size in sizes.items()}


def _multiple(graph_module: GraphModule, inputs: Examples, group: Sequence[FreeSize]) -> int:
    size = group[0]
    whole = [other.ratio.denominator for other in group]
    fitting = [multiple for multiple in _MULTIPLES if all(value % multiple == 0 for value in size.values)]
    for multiple in fitting:
        tried = [size.values[0] + times * multiple for times in (1, 3)]
        if not any(value % part for value in tried for part in whole) and all(_runs(graph_module, inputs, group, v) for v in tried):
            return multiple
    return fitting[-1]


def _runs(graph_module: GraphModule, inputs: Examples, group: Sequence[FreeSize], value: int) -> bool:
    """Whether the graph runs with the dimension at that size, and gives as many more of its output as of its sample."""
    sample, size = next(iter(inputs)), group[0]
    dim = dict(size.axes).get(sample)
    try:
        had, has = (_output_shape(graph_module, inputs, group, given) for given in (size.values[0], value))
    except Exception:  # noqa: BLE001  operators raise as many kinds as there are
        return False
    return dim is None or len(had) != inputs[sample].dim() or had[dim] * value == has[dim] * size.values[0]


def _output_shape(graph_module: GraphModule, inputs: Examples, group: Sequence[FreeSize], value: int) -> tuple[int, ...]:
    lengths = {axis: int(value * size.ratio) for size in group for axis in size.axes}
    with _without_log(), FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        output: torch.Tensor = graph_module(*(_resized(name, tensor, lengths) for name, tensor in inputs.items()))
    return tuple(output.shape)


@contextmanager
def _without_log() -> Iterator[None]:
    """Torch logs with a traceback what an operator refuses, and raises it too."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _resized(name: str, tensor: torch.Tensor, lengths: Mapping[tuple[str, int], int]) -> torch.Tensor:
    shape = [lengths.get((name, dim), length) for dim, length in enumerate(tensor.shape)]
    return torch.empty(shape, dtype=tensor.dtype)
