"""Rules about what a product multiplies in TensorRT."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from .operands import int8_products, is_activation, scale_of
from .rule import Hit
from .view import BYTE_CODES, View

_SCALED_IN_BLOCKS = (ir.DataType.FLOAT4E2M1,)  # by an operator that computes them, as FP4 kernels take it


def computed_scale_conv(view: View) -> Iterator[Hit]:
    """TensorRT-RTX dies of a segmentation fault when a scale before a Conv is computed at run time, the activation's or the weight's.

    Built: patterns ``conv-computed-scale`` and ``conv-computed-weight-scale``, every time; through a Transpose, Pad or MaxPool as well
    (``conv-computed-scale-padded``). Through a Concat the compiler refuses it (``conv-computed-scale-concatenated``).
    """
    yield from _computed_scales(view, ("Conv",))


def computed_scale_matmul(view: View) -> Iterator[Hit]:
    """TensorRT-RTX builds it without a word, and multiplies in FP32.

    Built: patterns ``matmul-computed-scale``, ``gemm-computed-scale``, ``matmul-computed-weight-scale`` and
    ``conv-transpose-computed-scale``.
    """
    yield from _computed_scales(view, ("MatMul", "Gemm", "ConvTranspose"))


def _computed_scales(view: View, ops: tuple[str, ...]) -> Iterator[Hit]:
    for product in view.products:
        scales = [node.inputs[1] for operand in product.operands for node in operand.sources if view.codes(node) not in _SCALED_IN_BLOCKS]
        computed = list(dict.fromkeys(str(s.name) for s in scales if s is not None and not view.is_constant(s)))
        if product.node.op_type in ops and computed:
            text = f"it multiplies what was dequantized with a scale that is computed at run time: {', '.join(computed)}"
            yield Hit(product.node, text, {"scales": computed})


def float_activation(view: View) -> Iterator[Hit]:
    """An INT8 weight beside an activation that is not quantized (or no longer: behind a Relu) is multiplied in float by TensorRT-RTX.

    Built: pattern ``conv-activation-changed``. Right for a weight that is only meant to be smaller, and INT8 lost for any other.
    """
    for product in view.products:
        for weight, other in (product.operands, product.operands[::-1]):
            node = weight.dequantize
            if node is None or view.codes(node) not in BYTE_CODES or not view.is_constant(node.inputs[0]):
                continue
            if not other.constant and other.dequantize is None:
                yield Hit(product.node, "its weight is INT8, and its activation is a float")


def per_channel_activation(view: View) -> Iterator[Hit]:
    """An activation scale for each channel or token cannot be taken out of an integer sum: TensorRT-RTX multiplies in FP32.

    Built: patterns ``conv-per-channel-activation`` and ``matmul-per-token-activation``.
    """
    for product in view.products:
        for operand in product.operands:
            if is_activation(view, operand) and (scale := view.array(scale_of(operand))) is not None and scale.size > 1:
                text = f"its activation was dequantized with {scale.size} scales ({scale_of(operand).name}); an integer product takes one"
                yield Hit(product.node, text, {"scales": scale.size})


def weight_scale_axis(view: View) -> Iterator[Hit]:
    """Weight scales along anything but the output channel cannot be taken out of the sum: TensorRT-RTX multiplies in FP32.

    Built: patterns ``conv-weight-scale-axis`` and ``matmul-weight-scale-axis``.
    """
    for product, weight in int8_products(view):
        node = weight.dequantize
        scale = view.array(scale_of(weight))
        if node is None or weight.moves or scale is None or scale.size == 1 or scale.ndim != 1:
            continue
        shape = node.inputs[0].shape if node.inputs[0] is not None else None
        expected = _output_axis(product.node, len(shape) if shape is not None else 0)
        axis = node.attributes.get_int("axis", 1)
        axis += len(shape) if axis < 0 and shape is not None else 0
        if expected is not None and axis != expected:
            text = f"the scales of its weight lie along axis {axis}, and its output channels along axis {expected}"
            yield Hit(product.node, text, {"axis": axis, "output_axis": expected})


def _output_axis(node: ir.Node, rank: int) -> int | None:
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        return 0 if node.attributes.get_int("transB", 0) else 1
    return rank - 1 if node.op_type == "MatMul" and rank else None
