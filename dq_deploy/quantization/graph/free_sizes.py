"""Which dimensions of a graph's inputs are free beside the batch: those in which examples of several sizes differ, with names."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule

from ...errors import UsageError

Examples = Mapping[str, torch.Tensor]
_OF_SAMPLES: dict[int, dict[int, str]] = {
    3: {1: "tokens", 2: "length"},
    4: {2: "height", 3: "width"},
    5: {1: "frames", 2: "frames", 3: "height", 4: "width"},
}
"""By a sample's rank, with the batch: what its dimensions are called."""
_LEAST = 3
"""torch.export takes a size of 0 or 1 for a constant, and a model is captured with a batch of 2."""
_MULTIPLES = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True)
class FreeSize:
    """A free dimension: its ``values`` at each calibrated size, where it stands, and what a size must be a ``multiple`` of."""

    name: str
    values: tuple[int, ...]
    axes: tuple[tuple[str, int], ...] = ()  # (input, dimension with the batch)
    multiple: int = 1

    def record(self) -> dict[str, Any]:
        """What the manifest says."""
        return {"values": list(self.values), "axes": [list(axis) for axis in self.axes], "multiple": self.multiple}


@dataclass
class _Namer:
    sample: str
    found: dict[str, FreeSize] = field(default_factory=dict)

    def add(self, name: str, axis: tuple[str, int], values: tuple[int, ...]) -> None:
        size = self.found.get(name, FreeSize(name, values))
        self.found[name] = replace(size, axes=(*size.axes, axis))

    def name(self, axis: tuple[str, int], values: tuple[int, ...]) -> str:
        """That of a size which is always the same, or of its own."""
        taken = {name for name, size in self.found.items() if any(input_ == axis[0] for input_, _ in size.axes)}
        same = [name for name, size in self.found.items() if size.values == values and name not in taken]
        own = "tokens" if axis[1] == 1 and "tokens" not in self.found else f"{axis[0]}_{axis[1]}"
        return next(iter(same), own)


def free_sizes(inputs: Examples, others: Sequence[Examples]) -> dict[str, FreeSize]:
    """The free dimensions of a graph with the examples ``inputs`` [2, ...], whose first is the sample, and ``others`` at other sizes.

    Of a picture both height and width are free as soon as one differs. Raises UsageError for examples that differ in more than sizes, and
    for sizes that cannot be captured.
    """
    sample = next(iter(inputs))
    namer = _Namer(sample)
    for name, tensor in inputs.items():
        shapes = [tuple(example[name].shape) for example in (inputs, *others)]
        if len({len(shape) for shape in shapes}) > 1:
            raise UsageError(f"the input '{name}' has the shapes {', '.join(str(list(s[1:])) for s in shapes)} at these sizes", "give one")
        for dim in range(1, tensor.dim()):
            values = tuple(shape[dim] for shape in shapes)
            if name == sample and dim in (spatial := _spatial(shapes)):
                namer.add(spatial[dim], (name, dim), values)
            elif len(set(values)) > 1:
                namer.add(namer.name((name, dim), values), (name, dim), values)
    small = {size.name: min(size.values) for size in namer.found.values() if min(size.values) < _LEAST}
    if small:
        what = ", ".join(f"a {name} of {value}" for name, value in small.items())
        raise UsageError(f"{what} cannot be free: of sizes that are, the least is {_LEAST}, as the network gets it", "give larger --sizes")
    return namer.found


def _spatial(shapes: Sequence[tuple[int, ...]]) -> dict[int, str]:
    """The sample's free dimensions."""
    names = _OF_SAMPLES.get(len(shapes[0]), {})
    differing = {dim for dim in range(1, len(shapes[0])) if len({shape[dim] for shape in shapes}) > 1}
    pictured = {dim for dim, name in names.items() if name in ("height", "width")}
    differing |= pictured if differing & pictured else set()
    return {dim: names.get(dim, f"sample_{dim}") for dim in sorted(differing)}


def with_multiples(graph_module: GraphModule, inputs: Examples, sizes: Mapping[str, FreeSize]) -> dict[str, FreeSize]:
    """The sizes with what each must be a multiple of, found by running the graph on tensors without values."""
    return {name: replace(size, multiple=_multiple(graph_module, inputs, size)) for name, size in sizes.items()}


def _multiple(graph_module: GraphModule, inputs: Examples, size: FreeSize) -> int:
    fitting = [multiple for multiple in _MULTIPLES if all(value % multiple == 0 for value in size.values)]
    for multiple in fitting:
        if all(_runs(graph_module, inputs, size, size.values[0] + times * multiple) for times in (1, 3)):
            return multiple
    return fitting[-1]


def _runs(graph_module: GraphModule, inputs: Examples, size: FreeSize, value: int) -> bool:
    """Whether the graph runs with the dimension at that size, and gives as many more of its output as of its sample."""
    sample = next(iter(inputs))
    dim = dict(size.axes).get(sample)
    try:
        had, has = (_output_shape(graph_module, inputs, size, given) for given in (size.values[0], value))
    except Exception:  # noqa: BLE001  operators raise as many kinds as there are
        return False
    return dim is None or len(had) != inputs[sample].dim() or had[dim] * value == has[dim] * size.values[0]


def _output_shape(graph_module: GraphModule, inputs: Examples, size: FreeSize, value: int) -> tuple[int, ...]:
    with _without_log(), FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        output: torch.Tensor = graph_module(*(_resized(name, tensor, size, value) for name, tensor in inputs.items()))
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


def _resized(name: str, tensor: torch.Tensor, size: FreeSize, value: int) -> torch.Tensor:
    shape = [value if (name, dim) in size.axes else length for dim, length in enumerate(tensor.shape)]
    return torch.empty(shape, dtype=tensor.dtype)
