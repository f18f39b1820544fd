"""Rules about FP8 (E4M3) codes."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from .rule import Hit
from .view import View

_FP8 = (ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT8E5M2)
FP8_OPSET = 19


def fp8_opset(view: View) -> Iterator[Hit]:
    """FP8 came with opset 19: below it the graph is not ONNX, and every parser reads it in its own way.

    Built and opened: pattern ``matmul-fp8-opset-18``.
    """
    if view.opset >= FP8_OPSET:
        return
    for node in view.quantizers:
        if view.codes(node) in _FP8:
            yield Hit(node, f"its codes are FP8, and the graph's opset is {view.opset}", {"opset": view.opset, "lowest": FP8_OPSET})


def fp8_half_scale(view: View) -> Iterator[Hit]:
    """With weight scales in fp16 TensorRT-RTX's GEMM writes fp16 sums of FP8 codes before it scales them: beyond 65504 they are infinite.

    Built: pattern ``matmul-fp8-half-scale``; with scales in fp32 it writes fp32. 448² of one product is 200704 already.
    """
    for product in view.products:
        for operand in product.operands:
            node = operand.dequantize
            if node is not None and view.codes(node) in _FP8 and view.dtype(node.inputs[1]) == ir.DataType.FLOAT16:
                yield Hit(product.node, f"the scale of its FP8 codes ({node.inputs[1].name if node.inputs[1] else ''}) is fp16")


def fp8_unsaturated(view: View) -> Iterator[Hit]:
    """With ``saturate`` 0 what is beyond 448 becomes NaN, which no later layer mends.

    Opened: pattern ``matmul-fp8-unsaturated``. By default QuantizeLinear and Cast saturate.
    """
    for node in view.nodes:
        to_fp8 = (node.op_type == "QuantizeLinear" and view.codes(node) in _FP8) or (
            node.op_type == "Cast" and ir.DataType(node.attributes.get_int("to", 0)) in _FP8
        )
        if to_fp8 and not node.attributes.get_int("saturate", 1):
            yield Hit(node, "it does not saturate: values beyond FP8's largest become NaN")
