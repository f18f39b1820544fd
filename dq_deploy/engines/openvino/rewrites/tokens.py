"""Linear layers on the pixels of a picture as 1 × 1 convolutions, which need not list the pixels.

Attention of a UNet lists pixels as [N, H · W, C] and puts them back. INT8 convolutions have their channels last already, but OpenVINO
takes the lists for another order, copies them, and then computes the residual blocks that follow in that order too, which is slow.
"""

from __future__ import annotations

from math import prod
from typing import Any

from .graph import QUANTIZER, array_of, inputs, kind, of_type, only_chain, opset, readers, replace, reshaped, shape_of, transposed
from .linear import Linear, followed, is_table_row, linear_of, weight_of

_TO_TOKENS, _TO_PICTURE = (0, 2, 3, 1), (0, 3, 1, 2)


def pixels_by_convolutions(model: Any) -> None:
    """See the module."""
    for node in of_type(model, "Transpose"):
        if _order(node) == [0, 2, 1]:
            _first_layer(node)
            _last_layer(node)


def _order(transpose: Any) -> list[int]:
    order = array_of(transpose.input_value(1))
    return [] if order is None else [int(axis) for axis in order]


def _first_layer(transpose: Any) -> None:
    """Picture → list → quantizer → product becomes picture → quantizer → convolution → list."""
    flat = transpose.input_value(0)
    picture = flat.get_node().input_value(0) if kind(flat) == "Reshape" else None
    chain = list(only_chain(transpose.output(0), QUANTIZER))
    after = readers(chain[-1].output(0)) if chain else []
    linear = linear_of(after[0]) if len(after) == 1 else None
    operands = [(node, index, operand) for node in chain for index, operand in enumerate(inputs(node)) if index]
    rows = all(is_table_row(operand, rank=3) for _, _, operand in operands)
    if picture is None or linear is None or not rows or not _lists(shape_of(picture), shape_of(flat)):
        return
    chain[0].input(0).replace_source_output(picture)
    for node, index, operand in operands:
        if shape_of(operand):
            node.input(index).replace_source_output(_row(operand))
    for node in chain:
        node.validate_and_infer_types()
    end, tokens = linear.end, shape_of(linear.end)
    replace(end, reshaped(transposed(_convolved(chain[-1].output(0), linear), _TO_TOKENS), tokens))


def _last_layer(transpose: Any) -> None:
    """Product → picture becomes picture of the product's input → convolution."""
    after = readers(transpose.output(0))
    picture = after[0].output(0) if len(after) == 1 and after[0].get_type_name() == "Reshape" else None
    linear = _ending_at(transpose.input_value(0))
    if picture is None or linear is None or not _lists(shape_of(picture), shape_of(transpose.output(0))):
        return
    batch, _, height, width = shape_of(picture)
    tokens = linear.product.input_value(0)
    pixels = reshaped(tokens, [batch, height, width, shape_of(tokens)[-1]])
    replace(picture, _convolved(transposed(pixels, _TO_PICTURE), linear))


def _ending_at(value: Any) -> Linear | None:
    """The layer whose last step makes a value that nothing else reads."""
    node = value.get_node()
    while node.get_type_name() in ("Subtract", "Multiply", "Add"):
        node = node.input_value(0).get_node()
    linear = linear_of(node)
    return linear if linear and linear.end == value and len(readers(value)) == 1 else None


def _convolved(picture: Any, linear: Linear) -> Any:
    weight = weight_of(linear, lambda values: values.T[:, :, None, None])
    convolution = opset().convolution(picture, weight, [1, 1], [0, 0], [0, 0], [1, 1])
    convolution.set_friendly_name(linear.product.get_friendly_name())
    return followed(convolution.output(0), linear, _row, lambda channels: channels[None, :, None, None])


def _row(value: Any) -> Any:
    """[N, 1, 1, 1] of a timestep's row [N, 1, 1] or of one number."""
    return reshaped(value, [shape_of(value)[0], 1, 1, 1])


def _lists(picture: list[int], flat: list[int]) -> bool:
    """Whether ``flat`` [N, C, H · W] are the sizes of ``picture`` [N, C, H, W] with its pixels in a row."""
    return len(picture) == 4 and [*picture[:2], prod(picture[2:])] == flat
