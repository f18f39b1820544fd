"""Queries, keys and values that an attention on pixels takes out of a picture, by way of the order that the picture has in memory.

[N, C, H, W] → [N, heads, C / heads, H · W] → its last two axes in turn: a convolution wrote the channels last, so OpenVINO puts them first
and then last again, two copies of an fp32 tensor. As [N, H, W, C] → [N, H · W, heads, C / heads] → its middle axes in turn there is one,
and none for a single head. The same on the way back.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from .graph import array_of, constant, inputs, kind, of_type, only_chain, opset, replace, shape_of
from .linear import is_table_row

_QUANTIZER = ("Multiply", "Round", "Add", "Clamp", "FakeQuantize", "Convert", "Subtract")
_SHAPING = ("Reshape", "Squeeze", "Unsqueeze")
_CHANNELS_LAST, _CHANNELS_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


def heads_out_of_pictures(model: Any) -> None:
    """See the module."""
    for node in of_type(model, "Transpose"):
        if _swaps_the_last_two(node) and not _out_of_a_picture(node):
            _into_a_picture(node)


def _swaps_the_last_two(transpose: Any) -> bool:
    order = array_of(transpose.input_value(1))
    rank = len(shape_of(transpose.output(0)))
    return order is not None and rank >= 3 and order.tolist() == [*range(rank - 2), rank - 1, rank - 2]


def _out_of_a_picture(transpose: Any) -> bool:
    value, factors = transpose.input_value(0), []
    while kind(value) == "Multiply" and len(factor := [one for one in inputs(value.get_node()) if shape_of(one) == []]) == 1:
        factors.append(factor[0])
        value = next(one for one in inputs(value.get_node()) if shape_of(one) != [])
    while (kind(value) in _SHAPING and len(shape_of(value)) != 4) or _is_listed(value):
        value = value.get_node().input_value(0)
    picture, shape = shape_of(value), shape_of(transpose.output(0))
    width, pixels = shape[-1], shape[-2]
    if not _fits(picture, pixels, width) or kind(value) in _SHAPING or value == transpose.input_value(0):
        return False
    batch, channels = picture[:2]
    last = opset().transpose(value, constant(_CHANNELS_LAST, np.int64)).output(0)
    heads = _in_turn(last, [batch, pixels, channels // width, width])
    found = opset().reshape(heads, constant(shape, np.int64), False).output(0)
    for factor in reversed(factors):
        found = opset().multiply(found, factor).output(0)
    replace(transpose.output(0), found)
    return True


def _is_listed(value: Any) -> bool:
    return kind(value) in _SHAPING and len(shape_of(value)) == 4 and 1 in shape_of(value)[2:]


def _into_a_picture(transpose: Any) -> None:
    chain = list(only_chain(transpose.output(0), _SHAPING))
    picture = next((node for node in chain if len(shape_of(node.output(0))) == 4 and min(shape_of(node.output(0))[2:]) > 1), None)
    before = shape_of(transpose.input_value(0))
    pixels, width = before[-2:]
    if picture is None or not _fits(shape_of(picture.output(0)), pixels, width) or prod(shape_of(picture.output(0))[2:]) != pixels:
        return
    batch, channels, *size = shape_of(picture.output(0))
    heads = opset().reshape(transpose.input_value(0), constant([batch, channels // width, pixels, width], np.int64), False).output(0)
    last = opset().reshape(_in_turn(heads, shape_of(heads)), constant([batch, *size, channels], np.int64), False)
    _quantized_before(last.output(0), picture.output(0))


def _quantized_before(last: Any, picture: Any) -> None:
    """Put channels first in the place of ``picture``: after the quantizer that reads it alone, if there is one, so that codes are moved."""
    chain = list(only_chain(picture, _QUANTIZER))
    if not all(is_table_row(operand, rank=4) for node in chain for operand in inputs(node)[1:]):
        chain = []
    end = chain[-1].output(0) if chain else picture
    targets = list(end.get_target_inputs())
    if chain:
        chain[0].input(0).replace_source_output(last)
        for node in chain:
            node.validate_and_infer_types()
    first = opset().transpose(end if chain else last, constant(_CHANNELS_FIRST, np.int64)).output(0)
    for target in targets:
        target.replace_source_output(first)


def _fits(picture: list[int], pixels: int, width: int) -> bool:
    """Whether a picture's channels are heads of this width, and its pixels as many."""
    return len(picture) == 4 and min(picture[2:]) > 1 and prod(picture[2:]) == pixels and picture[1] % width == 0


def _in_turn(value: Any, shape: list[int]) -> Any:
    """[N, a, b, width] of a value as [N, b, a, width]; a reshape where one of the two is 1."""
    reshaped = opset().reshape(value, constant(shape, np.int64), False).output(0)
    if 1 in shape[1:3]:
        return opset().reshape(reshaped, constant([shape[0], shape[2], shape[1], shape[3]], np.int64), False).output(0)
    return opset().transpose(reshaped, constant((0, 2, 1, 3), np.int64)).output(0)
