"""A skip connection's halves without the tensor that joins them.

A convolution of concatenated channels is quantized in halves (docs/decisions/skip-halves.md): Concat → GroupNorm → SiLU → two Slices.
Everything in between works channel by channel, so each half can be computed from its own part.
"""

from __future__ import annotations

from typing import Any

from .graph import array_of, channel_parts, inputs, kind, of_type, opset, replace, shape_of


def halves_without_concat(model: Any) -> None:
    """See the module."""
    parts = _Parts()
    for node in of_type(model, "Slice"):
        if (channels := _channels(node)) and (part := parts.of(node.input_value(0), *channels)) is not None:
            replace(node.output(0), part)


def _channels(node: Any) -> tuple[int, int] | None:
    """Which channels a Slice takes, None if it is not a constant range of them."""
    start, stop, step, axis = (array_of(value) for value in inputs(node)[1:5]) if node.get_input_size() == 5 else [None] * 4
    if start is None or stop is None or step is None or axis is None or (axis.tolist(), step.tolist()) != ([1], [1]):
        return None
    return slice(int(start.item()), int(stop.item())).indices(shape_of(node.input_value(0))[1])[:2]


class _Parts:
    """Ranges of channels of values, each computed once, from parts that exist."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int, int, int], Any] = {}

    def of(self, value: Any, start: int, stop: int) -> Any:
        """Channels ``start`` to ``stop`` of a value; None where there are no parts to compute them from."""
        key = (value.get_node().get_name(), value.get_index(), start, stop)
        if key not in self._known:
            self._known[key] = self._joined(value, start, stop) if channel_parts(value) else self._computed(value, start, stop)
        return self._known[key]

    def _joined(self, value: Any, start: int, stop: int) -> Any:
        first = 0
        for part in channel_parts(value):
            last = first + shape_of(part)[1]
            if (first, last) == (start, stop):
                return part
            first = last
        return None

    def _computed(self, value: Any, start: int, stop: int) -> Any:
        node, rank = value.get_node(), len(shape_of(value))
        again = {
            "Add": opset().add,
            "Multiply": opset().multiply,
            "Sigmoid": opset().sigmoid,
            "Convert": lambda part: opset().convert(part, node.get_element_type().get_type_name()),
        }.get(kind(value))
        same_rank = all(len(shape_of(source)) == rank or _has_one_channel(source, rank) for source in inputs(node))
        if again is None or not same_rank:
            return None
        parts = [source if _has_one_channel(source, rank) else self.of(source, start, stop) for source in inputs(node)]
        return again(*parts).output(0) if all(part is not None for part in parts) else None


def _has_one_channel(value: Any, rank: int) -> bool:
    """Whether an operand of a value of this rank is the same for all its channels."""
    shape = [1] * rank + shape_of(value)
    return shape[1 - rank] == 1
