"""Padding inside the convolution instead of before its quantizer.

The exporter pads first, so that what is added becomes the zero-point's code and ``− z · Σ W`` is right for every pixel. A convolution that
pads its codes with 0 adds nothing for those pixels instead, so the sum to take off is that of the weights which met a real one: a constant
for each pixel of the output. The integers are the same, the padded copy of the activation is gone, and the quantizer joins the kernel of
what comes before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .graph import (
    QUANTIZER,
    Array,
    array_of,
    constant,
    hand_over,
    inputs,
    kind,
    of_type,
    only_chain,
    opset,
    readers,
    replace,
    same,
    shape_of,
    unwrapped,
)


@dataclass(frozen=True)
class _Corrected:
    """A convolution of codes and the ``− z · Σ W`` that follows."""

    convolution: Any
    subtraction: Any
    zero_point: Any
    weights: Array  # Σ over input channels [O, kh, kw]


def padding_inside_convolutions(model: Any) -> None:
    """See the module. A padding with anything unexpected behind it is left alone."""
    found = [(pad, quantizer, layers) for pad in of_type(model, "Pad") if (quantizer := _quantizer(pad)) and (layers := _layers(quantizer))]
    for pad, quantizer, _ in found:
        hand_over(pad.output(0), pad.input_value(0))
        for node in quantizer:
            node.validate_and_infer_types()
    for pad, _, layers in found:
        before, after = (_amounts(pad, index)[2:] for index in (1, 2))
        size = shape_of(pad.input_value(0))[2:]
        for layer in layers:
            _pad_inside(layer, size, before, after)


def _amounts(pad: Any, index: int) -> list[int]:
    amounts = array_of(pad.input_value(index))
    return [-1] if amounts is None else [int(amount) for amount in amounts]


def _quantizer(pad: Any) -> list[Any]:
    """What is between a padding with zeros of an image and its convolutions; empty if it is not one of our quantizers."""
    amounts = _amounts(pad, 1) + _amounts(pad, 2)
    value = array_of(pad.input_value(3)) if pad.get_input_size() > 3 else np.zeros(1)
    zeros = pad.get_attributes()["pad_mode"] == "constant" and value is not None and not value.any()
    image = len(amounts) == 8 and min(amounts) >= 0 and not any(amounts[:2] + amounts[4:6])
    chain = list(only_chain(pad.output(0), QUANTIZER))
    others = [value for node in chain for value in inputs(node)[1:]]
    flat = all(size == 1 for value in others for size in shape_of(value)[-2:])  # the same for all pixels
    return chain if zeros and image and flat else []


def _layers(quantizer: list[Any]) -> list[_Corrected]:
    """All readers of a quantizer, if each is a convolution without padding of its own whose correction we understand."""
    shifts = [node.input_value(1) for node in quantizer if node.get_type_name() == "Add"]
    found = [_layer(node, shifts[0]) for node in readers(quantizer[-1].output(0))] if len(shifts) == 1 else []
    layers = [layer for layer in found if layer]
    return layers if len(layers) == len(found) else []


def _layer(convolution: Any, shift: Any) -> _Corrected | None:
    """A convolution and its correction; None if it is another one, or if what is taken off is not z · Σ W."""
    after = readers(convolution.output(0))
    if convolution.get_type_name() != "Convolution" or len(after) != 1 or after[0].get_type_name() != "Subtract":
        return None
    weight, taken = array_of(convolution.input_value(1)), _per_zero_point(after[0].input_value(1), shift)
    if weight is None or taken is None or any(convolution.get_attributes()["pads_begin"]):
        return None
    taps = weight.astype(np.float64).sum(axis=1)
    expected, zero_point = taken[0].ravel(), taken[1]
    understood = np.allclose(taps.sum(axis=(1, 2)), expected, rtol=1e-4, atol=1e-4 * np.abs(weight).max())
    return _Corrected(convolution, after[0], zero_point, taps) if understood else None


def _per_zero_point(product: Any, shift: Any) -> tuple[Array, Any] | None:
    """Σ W and z of the product that is taken off. Where z is a constant, the exporter wrote the product."""
    whole, fixed = array_of(product), array_of(shift)
    if whole is not None and fixed is not None:
        return (whole / fixed.item(), shift) if fixed.size == 1 and fixed.item() else None
    if kind(product) != "Multiply":
        return None
    one, other = inputs(product.get_node())
    zero_point, sums = (one, other) if same(unwrapped(one), unwrapped(shift)) else (other, one)
    found = array_of(sums)
    return (found, zero_point) if found is not None and same(unwrapped(zero_point), unwrapped(shift)) else None


def _pad_inside(layer: _Corrected, size: list[int], before: list[int], after: list[int]) -> None:
    options, codes, weight = layer.convolution.get_attributes(), layer.convolution.input_value(0), layer.convolution.input_value(1)
    strides, dilations = options["strides"], options["dilations"]
    padded = opset().convolution(codes, weight, strides, before, after, dilations)
    padded.set_friendly_name(layer.convolution.get_friendly_name())
    sums = constant(_met(layer.weights, size, strides, dilations, before, after)[None])
    shift = opset().multiply(layer.zero_point, sums)
    replace(layer.subtraction.output(0), opset().subtract(padded, shift).output(0))


def _met(taps: Array, size: list[int], strides: list[int], dilations: list[int], before: list[int], after: list[int]) -> Array:
    """For each pixel of the output, the sum [O, H, W] of the weights [O, kh, kw] that met a real pixel."""
    real = []
    for axis, kernel in enumerate(taps.shape[1:]):
        reach = dilations[axis] * (kernel - 1) + 1
        count = (size[axis] + before[axis] + after[axis] - reach) // strides[axis] + 1
        at = np.arange(count) * strides[axis] - before[axis] + np.arange(kernel)[:, None] * dilations[axis]
        real.append(((at >= 0) & (at < size[axis])).astype(np.float64))
    met: Array = np.einsum("okl,ky,lx->oyx", taps, *real)
    return met
