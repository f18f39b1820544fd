"""Rules about FP4 (E2M1) codes and the operator that makes them of activations."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from ...formats.fp4 import FP4_DOMAIN, FP4_OPERATOR, FP4_OPSET, FP4_RANKS
from .rule import Hit
from .view import View

_FP4 = ir.DataType.FLOAT4E2M1


def fp4_opset(view: View) -> Iterator[Hit]:
    """FP4 came with opset 23: below it the graph is not ONNX, though TensorRT-RTX builds it.

    Built and opened: pattern ``matmul-fp4-opset-21``.
    """
    if view.opset >= FP4_OPSET:
        return
    for node in view.quantizers:
        if view.dtype(node.inputs[0]) == _FP4:
            yield Hit(node, f"its codes are FP4, and the graph's opset is {view.opset}", {"opset": view.opset, "lowest": FP4_OPSET})


def fp4_convolution(view: View) -> Iterator[Hit]:
    """TensorRT-RTX multiplies FP4 codes in matrix products alone: a convolution of theirs it builds, and multiplies in FP32.

    Built: pattern ``conv-fp4``. An image it refuses to quantize at all (``matmul-fp4-rank-4``).
    """
    for product in view.products:
        codes = [view.codes(node) for operand in product.operands for node in operand.sources]
        if product.node.op_type.startswith("Conv") and _FP4 in codes:
            yield Hit(product.node, "it is a convolution of FP4 codes")


def fp4_rank(view: View) -> Iterator[Hit]:
    """TensorRT-RTX's parser refuses dynamic quantization of anything but 2 or 3 dimensions.

    Built: pattern ``matmul-fp4-rank-4``.
    """
    for node in _dynamic(view):
        shape = node.inputs[0].shape if node.inputs[0] is not None else None
        if shape is not None and len(shape) not in FP4_RANKS:
            yield Hit(node, f"it quantizes a tensor of {len(shape)} dimensions", {"dimensions": len(shape)})


def fp4_global_scale(view: View) -> Iterator[Hit]:
    """TensorRT-RTX's parser refuses a global scale of FP4 codes that is no initializer.

    Built: pattern ``matmul-fp4-computed-global-scale``.
    """
    for node in _dynamic(view):
        scale = node.inputs[1] if len(node.inputs) > 1 else None
        if scale is None or not scale.is_initializer():
            yield Hit(node, f"its global scale ({scale.name if scale else ''}) is computed")


def _dynamic(view: View) -> Iterator[ir.Node]:
    yield from (node for node in view.nodes if (node.domain, node.op_type) == (FP4_DOMAIN, FP4_OPERATOR))
