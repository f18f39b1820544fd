"""Quantizers that round once.

A zero-point is added after rounding, so what reaches QuantizeLinear is an integer already. OpenVINO reads QuantizeLinear as FakeQuantize,
which scales, rounds and scales back once more. A clamp does the same to an integer, and where the zero-point is the lowest code
(attention's probabilities), a FakeQuantize of the right range does all of it alone.
"""

from __future__ import annotations

from typing import Any

from .graph import array_of, constant, inputs, kind, of_type, only_chain, opset, readers, replace

_LOWEST, _HIGHEST, _CODES = -128.0, 127.0, 256
_UNPACKING = ("Convert", "Subtract", "Multiply")


def rounding_once(model: Any) -> None:
    """See the module.

    Only quantizers of convolutions are clamped: the fused kernel of an attention is recognized by its FakeQuantize. One FakeQuantize of
    the graph has to stay: without any, OpenVINO takes the whole graph for a float one.
    """
    found = [node for node in of_type(model, "FakeQuantize") if _is_quantize_linear(node)]
    clamped = [node for node in found if _integers(node.input_value(0)) and _feeds_a_convolution(node)]
    for node in clamped[1 if len(clamped) == len(of_type(model, "FakeQuantize")) else 0 :]:
        replace(node.output(0), opset().clamp(node.input_value(0), _LOWEST, _HIGHEST).output(0))
    for node in found:
        _scale_inside(node)


def _is_quantize_linear(node: Any) -> bool:
    ranges = [array_of(value) for value in inputs(node)[1:]]
    wanted = (_LOWEST, _HIGHEST, _LOWEST, _HIGHEST)
    exact = all(found is not None and found.size == 1 and found.item() == end for found, end in zip(ranges, wanted, strict=True))
    return exact and node.get_attributes()["levels"] == _CODES


def _integers(value: Any) -> bool:
    """Whether this is round(u) + z, or that clamped."""
    value = value.get_node().input_value(0) if kind(value) == "Clamp" else value
    return kind(value) == "Add" and kind(value.get_node().input_value(0)) == "Round"


def _feeds_a_convolution(node: Any) -> bool:
    last = [node, *only_chain(node.output(0), _UNPACKING)][-1]
    return all(reader.get_type_name() == "Convolution" for reader in readers(last.output(0)))


def _scale_inside(node: Any) -> None:
    """round(x · k) + z with the lowest code as z: a FakeQuantize of [0, 255 / k], which is what an unsigned one means."""
    shifted = node.input_value(0)
    if not _integers(shifted) or kind(shifted) == "Clamp":
        return
    rounded, zero_point = inputs(shifted.get_node())
    scaled, shift = rounded.get_node().input_value(0), array_of(zero_point)
    factor = array_of(scaled.get_node().input_value(1)) if kind(scaled) == "Multiply" else None
    if factor is None or shift is None or factor.size != 1 or shift.size != 1 or shift.item() != _LOWEST:
        return
    top = constant((_CODES - 1) / factor.item())
    ends = (constant(0), top, constant(_LOWEST), constant(_HIGHEST))
    replace(node.output(0), opset().fake_quantize(scaled.get_node().input_value(0), *ends, _CODES).output(0))
