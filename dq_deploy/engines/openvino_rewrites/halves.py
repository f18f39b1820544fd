"""A skip connection's halves without the tensor that joins them.

A convolution of concatenated channels is quantized in halves (docs/decisions/skip-halves.md): Concat → GroupNorm → SiLU → two Slices.
Everything in between works channel by channel, so each half can be computed from its own part.
"""

from __future__ import annotations

from typing import Any

from .graph import array_of, channel_parts, inputs, kind, of_type, opset, replace, shape_of


def halves_without_concat(model: Any) -> None:
    """See the module."""
    known: dict[tuple[str, int, int, int], Any] = {}
    for node in of_type(model, "Slice"):
        if (channels := _channels(node)) and (part := _part(node.input_value(0), *channels, known)) is not None:
            replace(node.output(0), part)


def _channels(node: Any) -> tuple[int, int] | None:
    """Which channels a Slice takes, None if it is not a constant range of them."""
    start, stop, step, axis = (array_of(value) for value in inputs(node)[1:5]) if node.get_input_size() == 5 else [None] * 4
    if start is None or stop is None or step is None or axis is None or (axis.tolist(), step.tolist()) != ([1], [1]):
        return None
    return slice(int(start.item()), int(stop.item())).indices(shape_of(node.input_value(0))[1])[:2]


def _part(value: Any, start: int, stop: int, known: dict[tuple[str, int, int, int], Any]) -> Any:
    """Channels ``start`` to ``stop`` of a value from parts that exist, None if there are none."""
    key = (value.get_node().get_name(), value.get_index(), start, stop)
    if key not in known:
        known[key] = _computed(value, start, stop, known)
    return known[key]


def _computed(value: Any, start: int, stop: int, known: dict[tuple[str, int, int, int], Any]) -> Any:
    shape, node = shape_of(value), value.get_node()
    if len(shape) < 2 or shape[1] == 1:
        return value
    if joined := channel_parts(value):
        first = 0
        for part in joined:
            last = first + shape_of(part)[1]
            if (first, last) == (start, stop):
                return part
            first = last
        return None
    again = {
        "Add": opset().add,
        "Multiply": opset().multiply,
        "Sigmoid": opset().sigmoid,
        "Convert": lambda part: opset().convert(part, node.get_element_type().get_type_name()),
    }.get(kind(value))
    parts = [_part(source, start, stop, known) for source in inputs(node)] if again else [None]
    return None if again is None or any(part is None for part in parts) else again(*parts).output(0)
