"""What the rules about products ask of an operand."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from .view import BYTE_CODES, Product, ProductOperand, View


def is_activation(view: View, operand: ProductOperand) -> bool:
    """Whether an operand is an activation with 8-bit codes."""
    node = operand.dequantize
    return node is not None and not operand.constant and not view.is_constant(node.inputs[0]) and view.codes(node) in BYTE_CODES


def scale_of(operand: ProductOperand) -> ir.Value:
    """The scale of an operand that was dequantized."""
    assert operand.dequantize is not None
    scale = operand.dequantize.inputs[1]
    assert scale is not None
    return scale


def int8_products(view: View) -> Iterator[tuple[Product, ProductOperand]]:
    """(product, weight) where an 8-bit activation meets a dequantized constant."""
    for product in view.products:
        for operand, other in (product.operands, product.operands[::-1]):
            if is_activation(view, operand) and other.dequantize is not None and view.is_constant(other.dequantize.inputs[0]):
                yield product, other
