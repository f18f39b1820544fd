"""Convolutions whose output is split along its channels (q, k and v of an attention on pixels), as a convolution for each part.

An INT8 convolution writes its channels last, and OpenVINO splits such a tensor with its reference kernel, which takes longer than the
convolution. The weights are split instead, when the model is compiled, and so is whatever is the same for all pixels behind the product.
"""

from __future__ import annotations

from itertools import accumulate, pairwise
from math import prod
from typing import Any

import numpy as np

from .graph import inputs, kind, of_type, opset, replace, shape_of

_STEPS = ("Subtract", "Multiply", "Add", "Convert")


def convolutions_in_parts(model: Any) -> None:
    """See the module."""
    for split in [*of_type(model, "Split"), *of_type(model, "VariadicSplit")]:
        whole = split.input_value(0)
        if not _along_channels(split, whole) or (product := _product(whole)) is None:
            continue
        ends = [0, *accumulate(shape_of(part)[1] for part in split.outputs())]
        parts = [_part(whole, product, start, stop) for start, stop in pairwise(ends)]
        if all(part is not None for part in parts):
            for old, new in zip(split.outputs(), parts, strict=True):
                replace(old, new)


def _along_channels(split: Any, whole: Any) -> bool:
    """Whether it splits the channels of a picture of more than one pixel."""
    shape = shape_of(whole)
    axis = split.input_value(1).get_node()
    return len(shape) == 4 and prod(shape[2:]) > 1 and axis.get_type_name() == "Constant" and int(axis.data.item()) % len(shape) == 1


def _product(value: Any) -> Any:
    """The convolution in one group that a value comes from, through steps that are the same for all pixels; None if there is none."""
    while kind(value) in _STEPS:
        if any(prod(shape_of(operand)[2:]) > 1 for operand in inputs(value.get_node())[1:]):
            return None
        value = value.get_node().input_value(0)
    return value.get_node() if kind(value) == "Convolution" else None


def _part(value: Any, product: Any, start: int, stop: int) -> Any:
    """Output channels ``start`` to ``stop`` of a value that ``product`` and steps after it make; None where a step cannot be split."""
    node = value.get_node()
    if node == product:
        weight = _channels(node.input_value(1), 0, start, stop)
        options = node.get_attributes()
        geometry = [options[name] for name in ("strides", "pads_begin", "pads_end", "dilations")]
        if weight is None:
            return None
        again = opset().convolution(node.input_value(0), weight, *geometry)
        again.set_friendly_name(node.get_friendly_name())  # a layer report looks for it
        return again.output(0)
    before = _part(node.input_value(0), product, start, stop)
    others = [_channels(operand, 1, start, stop) for operand in inputs(node)[1:]]
    return None if before is None or any(other is None for other in others) else _same_operator(node, [before, *others])


def _channels(value: Any, axis: int, start: int, stop: int) -> Any:
    """Indices ``start`` to ``stop`` of a constant's ``axis`` [..., C, ...], or of what constants and rows make; None for anything else."""
    shape, node = shape_of(value), value.get_node()
    if len(shape) <= axis or shape[axis] == 1:
        return value
    if kind(value) == "Constant":
        return opset().constant(np.ascontiguousarray(np.take(node.data, range(start, stop), axis))).output(0)
    if kind(value) == "Reshape":  # of a scale [C] to the rank of its weights
        source = node.input_value(0)
        if prod(shape) != shape[axis] or shape_of(source) != [shape[axis]]:
            return None
        sizes = [stop - start if index == axis else 1 for index in range(len(shape))]
        return opset().reshape(_channels(source, 0, start, stop), np.array(sizes), False).output(0)
    if kind(value) not in _STEPS:
        return None
    aligned = [axis - len(shape) + len(shape_of(source)) for source in inputs(node)]
    parts = [source if at < 0 else _channels(source, at, start, stop) for source, at in zip(inputs(node), aligned, strict=True)]
    return None if any(part is None for part in parts) else _same_operator(node, parts)


def _same_operator(node: Any, operands: list[Any]) -> Any:
    name = node.get_type_name()
    if name == "Convert":
        return opset().convert(operands[0], node.get_element_type().get_type_name()).output(0)
    return getattr(opset(), name.lower())(*operands).output(0)
