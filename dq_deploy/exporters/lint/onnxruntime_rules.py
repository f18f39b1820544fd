"""Rules about what ONNX Runtime refuses, and what it leaves in float."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from .operands import int8_products, is_activation, scale_of
from .rule import Hit
from .view import View

# Behind these ONNX Runtime was seen to insert its broken pair.
_MOVED_BY_ONNXRUNTIME = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Slice")


def moved_int8(view: View) -> Iterator[Hit]:
    """ONNX Runtime refuses the session: from opset 21 on it puts a broken Q/DQ pair behind what moves an int8 activation.

    "output_dtype INT8 does not match y_zero_point type UINT8", whatever the session options; uint8 and opset 19 load. Opened: patterns
    ``matmul-transposed-int8``, ``matmul-sliced-int8`` and ``matmul-transposed-uint8``; Reshape, Squeeze and Unsqueeze did the same.
    """
    if view.opset < 21:
        return
    for product in view.products:
        for operand in product.operands:
            moves = [node for node in operand.moves if node.op_type in _MOVED_BY_ONNXRUNTIME]
            if moves and is_activation(view, operand) and operand.dequantize and view.codes(operand.dequantize) == ir.DataType.INT8:
                names = ", ".join(f"{node.name} ({node.op_type})" for node in moves)
                yield Hit(product.node, f"its int8 activation is moved after it was dequantized: {names}", {"opset": view.opset})


def shared_weight(view: View) -> Iterator[Hit]:
    """ONNX Runtime refuses the session on an x86 CPU without VNNI: ``session.x64quantprecision`` keeps sums exact there.

    With it each weight is rewritten once: "Attempt to replace the existing tensor". Opened: patterns ``shared-weight-zero-point`` and
    ``shared-weight-codes``. Without that option it loads.
    """
    users: dict[ir.Value, dict[ir.Node, None]] = {}
    for product, weight in int8_products(view):
        assert weight.dequantize is not None
        for value in (weight.dequantize.inputs[0], *weight.dequantize.inputs[2:3]):
            if value is not None:
                users.setdefault(value, {})[product.node] = None
    for value, nodes in users.items():
        if len(nodes) > 1:
            names = [str(node.name) for node in nodes]
            yield Hit(
                next(iter(nodes)),
                f"{value.name} is the weight or zero-point of {len(nodes)} products: {', '.join(names)}",
                {"nodes": names},
            )


def float_convolution(view: View) -> Iterator[Hit]:
    """ONNX Runtime makes a QLinearConv only where the output is quantized too; else it dequantizes and multiplies in float.

    Opened: patterns ``conv-gathered`` and ``conv-gathered-output``. It is slower than the float model's convolution.
    """
    for product, _ in int8_products(view):
        users = [user.op_type for user, _ in product.node.outputs[0].uses()]
        if product.node.op_type == "Conv" and users != ["QuantizeLinear"]:
            yield Hit(product.node, f"its output is not quantized (read by: {', '.join(users) or 'the caller'}), so it runs in float")


def convolution_bias(view: View) -> Iterator[Hit]:
    """With scales from the graph ONNX Runtime makes no QLinearConv of a convolution that has a float bias.

    Opened: pattern ``conv-gathered-bias``, beside ``conv-gathered-output``, which has none.
    """
    for product, _ in int8_products(view):
        scales = [scale_of(o) for o in product.operands if o.dequantize is not None]
        if product.node.op_type == "Conv" and len(product.node.inputs) > 2 and not all(map(view.is_constant, scales)):
            yield Hit(product.node, "it has a float bias, and the scale of its activation is computed")


def shared_int8(view: View) -> Iterator[Hit]:
    """ONNX Runtime leaves products in float that share one int8 DequantizeLinear; with uint8 it fuses each.

    Opened: patterns ``shared-gathered-int8`` and ``shared-gathered-uint8``; with constant scales ``matmul-shared-quantizer``.
    """
    users: dict[ir.Node, list[str]] = {}
    for product in view.products:
        for operand in product.operands:
            node = operand.dequantize
            if node is not None and is_activation(view, operand) and view.codes(node) == ir.DataType.INT8:
                users.setdefault(node, []).append(str(product.node.name))
    for node, names in users.items():
        if len(names) > 1:
            yield Hit(node, f"{len(names)} products read its int8 activation: {', '.join(names)}", {"nodes": names})


def convolution_integer(view: View) -> Iterator[Hit]:
    """ONNX Runtime has no optimized ConvInteger: 2 to 4 times slower than the float convolution.

    Opened: pattern ``conv-integer``; the times are those of an earlier measurement.
    """
    for node in view.nodes:
        if node.op_type == "ConvInteger":
            yield Hit(node, "ConvInteger has no optimized kernel")


def scale_per_sample(view: View) -> Iterator[Hit]:
    """ONNX Runtime takes a computed scale [N], one for each sample, and fuses nothing with it: the product runs in float.

    Built: pattern ``scale-per-sample``.
    """
    for node in view.quantizers:
        scale = node.inputs[1]
        if node.op_type == "DequantizeLinear" and not view.is_constant(scale) and "axis" in node.attributes:
            yield Hit(node, f"its scale is computed and has one entry for each index of axis {node.attributes.get_int('axis', 1)}")


def bfloat16(view: View) -> Iterator[Hit]:
    """ONNX Runtime refuses the session on a CPU: it has no bfloat16 kernels there ("Could not find an implementation").

    Opened: pattern ``matmul-bfloat16``.
    """
    casts = [n for n in view.nodes if n.op_type == "Cast" and n.attributes.get_int("to", 0) == ir.DataType.BFLOAT16.value]
    if casts:
        yield Hit(casts[0], f"{len(casts)} casts to bfloat16, the first here", {"casts": len(casts)})
