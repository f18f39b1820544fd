"""Rules about INT4 and block-wise weights in TensorRT."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from .operands import int8_products, scale_of
from .rule import Hit
from .view import NIBBLE_CODES, ProductOperand, View

_HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def block_wise_int8_activation(view: View) -> Iterator[Hit]:
    """TensorRT-RTX refuses block-wise weight scales beside INT8 activations ("CHECK(is_constant()) failed"), INT8 codes as INT4 ones.

    Built: patterns ``matmul-int4-blocks-int8`` and ``matmul-int8-blocks-int8``. With float activations it builds.
    """
    for product, weight in int8_products(view):
        assert weight.dequantize is not None
        if size := weight.dequantize.attributes.get_int("block_size", 0):
            yield Hit(
                product.node, f"its weight has one scale for each block of {size}, and its activation is quantized", {"block_size": size}
            )


def int4_conv_int8_activation(view: View) -> Iterator[Hit]:
    """TensorRT-RTX refuses a Conv of INT8 activations whose weight is dequantized from INT4 directly ("CHECK(dtype == W.type())").

    Built: pattern ``conv-int4-int8``. With float activations it builds.
    """
    for product, weight in int8_products(view):
        if product.node.op_type in ("Conv", "ConvTranspose") and _from_int4(view, weight) and not _block_size(weight):
            yield Hit(product.node, "its weight is dequantized from INT4 directly, and its activation is INT8")


def int4_per_tensor_int8_activation(view: View) -> Iterator[Hit]:
    """TensorRT-RTX refuses a MatMul of INT8 activations and INT4 weights that have one scale ("Input and filter have to be the same type").

    Built: pattern ``matmul-int4-per-tensor-int8``. With a scale for each output channel it builds, as an INT8 GEMM.
    """
    for product, weight in int8_products(view):
        scale = view.array(scale_of(weight))
        if product.node.op_type in ("MatMul", "Gemm") and _from_int4(view, weight) and scale is not None and scale.ndim == 0:
            yield Hit(product.node, "its INT4 weight has one scale for the whole tensor, and its activation is INT8")


def _from_int4(view: View, operand: ProductOperand) -> bool:
    return operand.dequantize is not None and view.codes(operand.dequantize) in NIBBLE_CODES


def _block_size(operand: ProductOperand) -> int:
    return operand.dequantize.attributes.get_int("block_size", 0) if operand.dequantize is not None else 0


def int4_requantize_uncast(view: View) -> Iterator[Hit]:
    """INT4 DequantizeLinear → QuantizeLinear(int8) needs a Cast to fp16 or bf16 between, or TensorRT-RTX refuses it ("i8 vs. int4").

    Built: patterns ``conv-int4-requantized-uncast`` and ``conv-int4-requantized-fp32-cast`` (refused) beside ``conv-int4-requantized``.
    A Cast to fp32 alone, even from fp16, does not do.
    """
    for node, casts in _requantized_int4(view):
        narrowed = any(view.dtype(cast.outputs[0]) in _HALVES and view.dtype(cast.inputs[0]) not in _HALVES for cast in casts)
        if not narrowed:
            found = ", ".join(str(view.dtype(cast.outputs[0])) for cast in reversed(casts)) or "none"
            yield Hit(node, f"it quantizes to INT8 what was dequantized from INT4; casts between: {found}", {"casts": len(casts)})


def int4_requantize_matmul(view: View) -> Iterator[Hit]:
    """TensorRT-RTX dies of a segmentation fault on a MatMul whose INT4 weight is requantized to INT8, with casts and without.

    Built: patterns ``matmul-int4-requantized`` and ``matmul-int4-requantized-uncast``. The same detour is what a Conv needs.
    """
    requantized = {node for node, _ in _requantized_int4(view)}
    for product, weight in int8_products(view):
        assert weight.dequantize is not None
        codes = weight.dequantize.inputs[0]
        if product.node.op_type in ("MatMul", "Gemm") and codes is not None and codes.producer() in requantized:
            yield Hit(product.node, "its weight is INT4 that was requantized to INT8")


def _requantized_int4(view: View) -> Iterator[tuple[ir.Node, list[ir.Node]]]:
    """(QuantizeLinear, casts behind it) of every INT4 weight that is quantized again."""
    for node in view.quantizers:
        casts: list[ir.Node] = []
        above = node.inputs[0].producer() if node.op_type == "QuantizeLinear" and node.inputs[0] is not None else None
        while above is not None and above.op_type == "Cast" and above.inputs[0] is not None:
            casts.append(above)
            above = above.inputs[0].producer()
        if above is not None and above.op_type == "DequantizeLinear" and view.codes(above) in NIBBLE_CODES:
            yield node, casts


def int4_cast(view: View) -> Iterator[Hit]:
    """TensorRT takes INT4 into DequantizeLinear only: a Cast of it is refused ("datatype Int4 but is not consumed by …").

    Built: pattern ``matmul-int4-cast``.
    """
    for node in view.nodes:
        if node.op_type == "Cast" and view.dtype(node.inputs[0]) in NIBBLE_CODES:
            yield Hit(node, f"it casts {view.dtype(node.inputs[0])} codes to {ir.DataType(node.attributes.get_int('to', 0))}")
