"""Quantizers that round once.

A zero-point is added after rounding, so what reaches QuantizeLinear is an integer already. OpenVINO reads QuantizeLinear as FakeQuantize,
which scales, rounds and scales back once more. A clamp does the same to an integer, and where the zero-point is the lowest code
(attention's probabilities), a FakeQuantize of the right range does all of it alone.
"""

from __future__ import annotations

from typing import Any

from .graph import array_of, constant, inputs, kind, of_type, only_chain, opset, readers, replace

_CODES = 256
_RANGES = ((-128.0, 127.0), (0.0, 255.0))
_UNPACKING = ("Convert", "Subtract", "Multiply")


def rounding_once(model: Any) -> None:
    """See the module.

    Only quantizers of convolutions are clamped: the fused kernel of an attention is recognized by its FakeQuantize. One FakeQuantize of
    the graph has to stay: without any, OpenVINO takes the whole graph for a float one.
    """
    found = [node for node in of_type(model, "FakeQuantize") if _code_range(node)]
    clamped = [node for node in found if _integers(node.input_value(0)) and _feeds_a_convolution(node)]
    for node in clamped[1 if len(clamped) == len(of_type(model, "FakeQuantize")) else 0 :]:
        replace(node.output(0), opset().clamp(node.input_value(0), *_code_range(node)).output(0))
    for node in found:
        _scale_inside(node)


def _code_range(node: Any) -> tuple[float, float] | tuple[()]:
    """The codes that a FakeQuantize rounds to and clips at, where it changes no scale: QuantizeLinear's, or those. () for another one."""
    ends = [array_of(value) for value in inputs(node)[1:]]
    found = tuple(end.item() for end in ends if end is not None and end.size == 1)
    alike = len(found) == 4 and found[:2] == found[2:] and found[:2] in _RANGES and node.get_attributes()["levels"] == _CODES
    return (found[0], found[1]) if alike else ()


def _integers(value: Any) -> bool:
    """Whether this is round(u) + z, or that clamped."""
    value = value.get_node().input_value(0) if kind(value) == "Clamp" else value
    return kind(value) == "Add" and kind(value.get_node().input_value(0)) == "Round"


def _feeds_a_convolution(node: Any) -> bool:
    last = [node, *only_chain(node.output(0), _UNPACKING)][-1]
    return all(reader.get_type_name() == "Convolution" for reader in readers(last.output(0)))


def _scale_inside(node: Any) -> None:
    """round(x · k) + z with the lowest code as z: a FakeQuantize of [0, 255 / k], which is what an unsigned one means."""
    codes = _code_range(node)
    assert codes
    low, high = codes
    shifted = node.input_value(0)
    if not _integers(shifted) or kind(shifted) == "Clamp":
        return
    rounded, zero_point = inputs(shifted.get_node())
    scaled, shift = rounded.get_node().input_value(0), array_of(zero_point)
    factor = array_of(scaled.get_node().input_value(1)) if kind(scaled) == "Multiply" else None
    if factor is None or shift is None or factor.size != 1 or shift.size != 1 or shift.item() != low:
        return
    top = constant((_CODES - 1) / factor.item())
    ends = (constant(0), top, constant(low), constant(high))
    replace(node.output(0), opset().fake_quantize(scaled.get_node().input_value(0), *ends, _CODES).output(0))
