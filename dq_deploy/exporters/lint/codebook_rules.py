"""Rules about weights of codewords in TensorRT."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from .operands import int8_products
from .rule import Hit
from .view import MOVES, View

_SUMS = ("Add", "Reshape", "Cast")
"""What may stand between a Gather of codewords and the QuantizeLinear, beside what moves numbers."""


def codebook_moved(view: View) -> Iterator[Hit]:
    """TensorRT-RTX dies of a segmentation fault where codewords are moved before they are quantized, or after they are dequantized.

    Built: patterns ``matmul-codebook-before`` and ``matmul-codebook-after``. Between the two it builds, as an INT8 GEMM.
    """
    for product, weight in int8_products(view):
        assert weight.dequantize is not None
        moves = _moves_of_codewords(view, weight.dequantize)
        if moves is None:
            continue
        for move in (*moves, *(node for node in weight.moves if node.op_type != "Reshape")):
            yield Hit(move, f"it moves the codewords of {product.node.name}'s weight {'before' if move in moves else 'after'} Q and DQ")


def codebook_unsigned(view: View) -> Iterator[Hit]:
    """uint8 indices of codewords that are cast are folded to int32: TensorRT-RTX stores four bytes for each.

    Built: pattern ``matmul-codebook-unsigned``. int8 ones behind a DequantizeLinear stay as they are.
    """
    for node in view.nodes:
        index = node.inputs[1].producer() if node.op_type == "Gather" and node.inputs[1] is not None else None
        constant = index is not None and index.op_type == "Cast" and view.is_constant(node.outputs[0])
        if index is not None and constant and view.dtype(index.inputs[0]) is ir.DataType.UINT8:
            yield Hit(node, "its indices are uint8 ones that are cast: stored as int32")


def _moves_of_codewords(view: View, dequantize: ir.Node) -> list[ir.Node] | None:
    """What moves the codewords that a weight's ``dequantize`` reads, before they are quantized; None where there are no codewords."""
    node = _producer(dequantize)
    while node is not None and node.op_type in MOVES:
        node = _producer(node)
    if node is None or node.op_type != "QuantizeLinear":
        return None
    moves, above, gathers = [], [node.inputs[0]], False
    while above:
        value = above.pop()
        node = value.producer() if value is not None else None
        if node is None or not view.is_constant(node.outputs[0]):
            continue
        if node.op_type == "Gather":
            gathers = True
        elif node.op_type in (*_SUMS, *MOVES):
            moves += [node] if node.op_type in MOVES and node.op_type != "Reshape" else []
            above += node.inputs
    return moves if gathers else None


def _producer(node: ir.Node) -> ir.Node | None:
    return node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
