"""Patches of a picture that a 1 × 1 convolution reads, as a convolution with strides: the same weights on the same codes.

A space-to-depth, [N, C, h · p, w · q] → [N, C · p · q, h, w], costs OpenVINO two copies of the fp32 picture in an order that its INT8
convolutions do not write. A quantizer with one scale for a sample may as well come first.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .graph import QUANTIZER, array_of, constant, inputs, kind, of_type, only_chain, opset, read_from, readers, replace, shape_of
from .linear import is_table_row

_UNPACKING = ("Multiply", "Subtract", "Convert")
_PATCHES_TO_CHANNELS = [0, 1, 3, 5, 2, 4]


def patches_by_strides(model: Any) -> None:
    """See the module."""
    for transpose in of_type(model, "Transpose"):
        order, after = array_of(transpose.input_value(1)), readers(transpose.output(0))
        if order is None or order.tolist() != _PATCHES_TO_CHANNELS or len(after) != 1 or after[0].get_type_name() != "Reshape":
            continue
        cut, deep = transpose.input_value(0), after[0].output(0)
        picture = cut.get_node().input_value(0) if kind(cut) == "Reshape" else None
        if picture is not None and _are_patches(shape_of(picture), shape_of(cut), shape_of(deep)):
            _convolve_with_strides(picture, deep, (shape_of(cut)[3], shape_of(cut)[5]))


def _are_patches(picture: list[int], cut: list[int], deep: list[int]) -> bool:
    if len(picture) != 4 or len(cut) != 6 or len(deep) != 4:
        return False
    batch, channels, rows, p, columns, q = cut
    return picture == [batch, channels, rows * p, columns * q] and deep == [batch, channels * p * q, rows, columns]


def _convolve_with_strides(picture: Any, deep: Any, patch: tuple[int, int]) -> None:
    """Let the quantizer behind ``deep`` read the picture, and its convolutions a patch of it at a time."""
    chain = list(only_chain(deep, QUANTIZER))
    layers = readers(chain[-1].output(0)) if chain else []
    operands = [operand for node in chain for operand in inputs(node)[1:]]
    codes = [_codes(layer) for layer in layers]
    if not layers or any(found is None for found in codes) or not all(is_table_row(operand, rank=4) for operand in operands):
        return
    read_from(chain, picture)
    for layer, found in zip(layers, codes, strict=True):
        outputs, deep_channels = shape_of(found)[:2]
        weights = found.get_node().data.reshape(outputs, deep_channels // (patch[0] * patch[1]), *patch)
        constant_codes = constant(weights, weights.dtype)
        replace(found, constant_codes)
        for node in only_chain(constant_codes, _UNPACKING):
            node.validate_and_infer_types()
        strided = opset().convolution(layer.input_value(0), layer.input_value(1), list(patch), [0, 0], [0, 0], [1, 1])
        replace(layer.output(0), strided.output(0))


def _codes(layer: Any) -> Any:
    """The constant INT8 codes [O, I, 1, 1] of a plain 1 × 1 convolution; None for any other node."""
    if layer.get_type_name() != "Convolution":
        return None
    options = layer.get_attributes()
    plain = {*options["strides"], *options["dilations"]} == {1} and not any([*options["pads_begin"], *options["pads_end"]])
    value = layer.input_value(1)
    while kind(value) in _UNPACKING and len(readers(value)) == 1:
        value = value.get_node().input_value(0)
    found = array_of(value) if kind(value) == "Constant" else None
    right = found is not None and found.dtype == np.int8 and found.ndim == 4 and found.shape[2:] == (1, 1)
    return value if plain and right and len(readers(value)) == 1 else None
