"""Queries, keys and values that an attention on pixels takes out of a picture, by way of the order that the picture has in memory.

[N, C, H, W] → [N, heads, C / heads, H · W] → its last two axes in turn: a convolution wrote the channels last, so OpenVINO puts them first
and then last again, two copies of an fp32 tensor. As [N, H, W, C] → [N, H · W, heads, C / heads] → its middle axes in turn there is one,
and none for a single head. The same on the way back.
"""

from __future__ import annotations

from math import prod
from typing import Any

from .graph import (
    QUANTIZER,
    SHAPING,
    array_of,
    inputs,
    kind,
    of_type,
    only_chain,
    opset,
    read_from,
    replace,
    reshaped,
    shape_of,
    transposed,
)
from .linear import is_table_row

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
    while (kind(value) in SHAPING and len(shape_of(value)) != 4) or _is_listed(value):
        value = value.get_node().input_value(0)
    picture, shape = shape_of(value), shape_of(transpose.output(0))
    width, pixels = shape[-1], shape[-2]
    if not _fits(picture, pixels, width) or kind(value) in SHAPING or value == transpose.input_value(0):
        return False
    batch, channels = picture[:2]
    last = transposed(value, _CHANNELS_LAST)
    heads = _in_turn(last, [batch, pixels, channels // width, width])
    found = reshaped(heads, shape)
    for factor in reversed(factors):
        found = opset().multiply(found, factor).output(0)
    replace(transpose.output(0), found)
    return True


def _is_listed(value: Any) -> bool:
    return kind(value) in SHAPING and len(shape_of(value)) == 4 and 1 in shape_of(value)[2:]


def _into_a_picture(transpose: Any) -> None:
    chain = list(only_chain(transpose.output(0), SHAPING))
    picture = next((node for node in chain if len(shape_of(node.output(0))) == 4 and min(shape_of(node.output(0))[2:]) > 1), None)
    before = shape_of(transpose.input_value(0))
    pixels, width = before[-2:]
    if picture is None or not _fits(shape_of(picture.output(0)), pixels, width) or prod(shape_of(picture.output(0))[2:]) != pixels:
        return
    batch, channels, *size = shape_of(picture.output(0))
    heads = reshaped(transpose.input_value(0), [batch, channels // width, pixels, width])
    last = reshaped(_in_turn(heads, shape_of(heads)), [batch, *size, channels])
    _quantized_before(last, picture.output(0))


def _quantized_before(last: Any, picture: Any) -> None:
    """Put channels first in the place of ``picture``: after the quantizer that reads it alone, if there is one, so that codes are moved."""
    chain = list(only_chain(picture, QUANTIZER))
    if not all(is_table_row(operand, rank=4) for node in chain for operand in inputs(node)[1:]):
        chain = []
    end = chain[-1].output(0) if chain else picture
    targets = list(end.get_target_inputs())
    if chain:
        read_from(chain, last)
    first = transposed(end if chain else last, _CHANNELS_FIRST)
    for target in targets:
        target.replace_source_output(first)


def _fits(picture: list[int], pixels: int, width: int) -> bool:
    """Whether a picture's channels are heads of this width, and its pixels as many."""
    return len(picture) == 4 and min(picture[2:]) > 1 and prod(picture[2:]) == pixels and picture[1] % width == 0


def _in_turn(value: Any, shape: list[int]) -> Any:
    """[N, a, b, width] of a value as [N, b, a, width]; a reshape where one of the two is 1."""
    cut = reshaped(value, shape)
    return reshaped(cut, [shape[0], shape[2], shape[1], shape[3]]) if 1 in shape[1:3] else transposed(cut, (0, 2, 1, 3))
