"""Convolutions whose output is split along its channels (q, k and v of an attention on pixels), as a convolution for each part.

Also where the channels are in heads first, or q, k and v of a channel side by side.

An INT8 convolution writes its channels last, and OpenVINO splits such a tensor with its reference kernel, which takes longer than the
convolution. The weights are split instead, when the model is compiled, and so is whatever is the same for all pixels behind the product.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import prod
from typing import Any

import numpy as np

from .graph import SHAPING, Array, array_of, inputs, kind, only_chain, opset, readers, replace, reshaped, shape_of

_STEPS = ("Subtract", "Multiply", "Add", "Convert")


@dataclass(frozen=True)
class _Piece:
    """A value that is some channels of a picture, in this order, in whatever shape."""

    value: Any
    channels: list[int]


def convolutions_in_parts(model: Any) -> None:
    """See the module. A picture of which anything else is read stays whole."""
    for node in model.get_ordered_ops():
        pieces = _pieces(node)
        whole = node.input_value(0) if pieces else None
        product = _product(whole) if pieces else None
        parts = [_part(whole, product, piece.channels) for piece in pieces] if product is not None else [None]
        if all(part is not None for part in parts):
            for piece, part in zip(pieces, parts, strict=True):
                shape = shape_of(piece.value)
                replace(piece.value, part if shape_of(part) == shape else reshaped(part, shape))


def _pieces(node: Any) -> list[_Piece]:
    """What is made of a picture of more than one pixel, if all of it is split along the channels; [] if it is not."""
    shape = shape_of(node.input_value(0)) if node.get_input_size() else []
    if len(shape) != 4 or prod(shape[2:]) <= 1:
        return []
    if node.get_type_name() in ("Split", "VariadicSplit"):
        return _split(node, np.arange(prod(shape[:2])).reshape(shape[:2]), shape[1])
    last = [node, *only_chain(node.output(0), SHAPING)][-1]
    listed = shape_of(last.output(0)) if node.get_type_name() in SHAPING else []
    if len(listed) < 3 or listed[-1] != prod(shape[2:]) or len(readers(node.input_value(0))) != 1:
        return []
    rows = np.arange(prod(shape[:2])).reshape(listed[:-1])  # sample · C + channel
    found = [_split(reader, rows, shape[1]) for reader in readers(last.output(0))]
    return [piece for pieces in found for piece in pieces] if found and all(found) else []


def _split(node: Any, rows: Array, channels: int) -> list[_Piece]:
    """The pieces that a Split or Slice makes of a value with these (samples · C + channels) before its pixels; [] if it is no such node."""
    found = [_same_for_all_samples(part, channels) for part in _cut(node, rows)]
    if not found or any(part is None for part in found):
        return []
    return [_Piece(value, part) for value, part in zip(node.outputs(), found, strict=True) if part is not None]


def _cut(node: Any, rows: Array) -> list[Array]:
    shape = shape_of(node.input_value(0))
    if node.get_type_name() in ("Split", "VariadicSplit"):
        axis = array_of(node.input_value(1))
        at = -1 if axis is None else int(axis.item()) % len(shape)
        ends = [0, *accumulate(shape_of(part)[at] for part in node.outputs())]
        return [rows.take(range(*ends_), axis=at) for ends_ in pairwise(ends)] if 0 <= at < rows.ndim else []
    if node.get_type_name() != "Slice" or node.get_input_size() != 5:
        return []
    start, stop, step, axes = (array_of(value) for value in inputs(node)[1:])
    if start is None or stop is None or axes is None or step is None or axes.size != 1 or step.tolist() != [1]:
        return []
    at = int(axes.item()) % len(shape)
    first, last, _ = slice(int(start.item()), int(stop.item())).indices(shape[at])
    return [rows.take(range(first, last), axis=at)] if at < rows.ndim else []


def _same_for_all_samples(rows: Array, channels: int) -> list[int] | None:
    """The channels that (samples · C + channels) are of every sample, in their order; None where samples differ or are mixed."""
    samples = rows.reshape(-1)
    first: list[int] = samples[samples < channels].tolist()
    count = len(samples) // len(first) if first else 0
    alike = count and np.array_equal(samples, (np.arange(count)[:, None] * channels + first).reshape(-1))
    return first if alike else None


def _product(value: Any) -> Any:
    """The convolution in one group that a value comes from, through steps that are the same for all pixels; None if there is none."""
    while kind(value) in _STEPS:
        if any(prod(shape_of(operand)[2:]) > 1 for operand in inputs(value.get_node())[1:]):
            return None
        value = value.get_node().input_value(0)
    return value.get_node() if kind(value) == "Convolution" else None


def _part(value: Any, product: Any, channels: list[int]) -> Any:
    """These output channels of a value that ``product`` and steps after it make; None where a step cannot be split."""
    node = value.get_node()
    if node == product:
        weight = _channels(node.input_value(1), 0, channels)
        options = node.get_attributes()
        geometry = [options[name] for name in ("strides", "pads_begin", "pads_end", "dilations")]
        if weight is None:
            return None
        again = opset().convolution(node.input_value(0), weight, *geometry)
        again.set_friendly_name(node.get_friendly_name())  # a layer report looks for it
        return again.output(0)
    before = _part(node.input_value(0), product, channels)
    others = [_channels(operand, 1, channels) for operand in inputs(node)[1:]]
    return None if before is None or any(other is None for other in others) else _same_operator(node, [before, *others])


def _channels(value: Any, axis: int, channels: list[int]) -> Any:
    """These indices of a constant's ``axis`` [..., C, ...], or of what constants and rows make; None for anything else."""
    shape, node = shape_of(value), value.get_node()
    if len(shape) <= axis or shape[axis] == 1:
        return value
    if kind(value) == "Constant":
        return opset().constant(np.ascontiguousarray(np.take(node.data, channels, axis))).output(0)
    if kind(value) == "Reshape":  # of a scale [C] to the rank of its weights
        source = node.input_value(0)
        if prod(shape) != shape[axis] or shape_of(source) != [shape[axis]]:
            return None
        sizes = [len(channels) if index == axis else 1 for index in range(len(shape))]
        return opset().reshape(_channels(source, 0, channels), np.array(sizes), False).output(0)
    if kind(value) not in _STEPS:
        return None
    aligned = [axis - len(shape) + len(shape_of(source)) for source in inputs(node)]
    parts = [source if at < 0 else _channels(source, at, channels) for source, at in zip(inputs(node), aligned, strict=True)]
    return None if any(part is None for part in parts) else _same_operator(node, parts)


def _same_operator(node: Any, operands: list[Any]) -> Any:
    name = node.get_type_name()
    if name == "Convert":
        return opset().convert(operands[0], node.get_element_type().get_type_name()).output(0)
    return getattr(opset(), name.lower())(*operands).output(0)
