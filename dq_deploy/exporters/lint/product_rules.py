"""Rules about what a Conv, MatMul or Gemm multiplies."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from .rule import Hit
from .view import NIBBLE_CODES, Operand, Product, View, is_activation

_HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def computed_scale_conv(view: View) -> Iterator[Hit]:
    """TensorRT-RTX dies of a segmentation fault when a scale before a Conv is computed at run time, the activation's or the weight's.

    Built: patterns ``conv-computed-scale`` and ``conv-computed-weight-scale``, every time; through a Transpose as well.
    """
    yield from _computed_scales(view, ("Conv",))


def computed_scale_matmul(view: View) -> Iterator[Hit]:
    """TensorRT-RTX builds it without a word, and multiplies in FP32.

    Built: patterns ``matmul-computed-scale`` and ``gemm-computed-scale``; a ConvTranspose and the weight's scale behave the same.
    """
    yield from _computed_scales(view, ("MatMul", "Gemm", "ConvTranspose"))


def _computed_scales(view: View, ops: tuple[str, ...]) -> Iterator[Hit]:
    for product in view.products:
        scales = [_scale(o) for o in product.operands if o.dequantize is not None]
        computed = [str(s.name) for s in scales if not view.is_constant(s)]
        if product.node.op_type in ops and computed:
            text = f"it multiplies what was dequantized with a scale that is computed at run time: {', '.join(computed)}"
            yield Hit(product.node, text, {"scales": computed})


def _scale(operand: Operand) -> ir.Value:
    assert operand.dequantize is not None
    scale = operand.dequantize.inputs[1]
    assert scale is not None
    return scale


def per_channel_activation(view: View) -> Iterator[Hit]:
    """An activation scale for each channel or token cannot be taken out of an integer sum: TensorRT-RTX multiplies in FP32.

    Built: patterns ``conv-per-channel-activation`` and ``matmul-per-token-activation``.
    """
    for product in view.products:
        for operand in product.operands:
            if is_activation(view, operand) and (scale := view.array(_scale(operand))) is not None and scale.size > 1:
                text = (
                    f"its activation was dequantized with {scale.size} scales ({_scale(operand).name}), where an integer product takes one"
                )
                yield Hit(product.node, text, {"scales": scale.size})


def weight_scale_axis(view: View) -> Iterator[Hit]:
    """Weight scales along anything but the output channel cannot be taken out of the sum: TensorRT-RTX multiplies in FP32.

    Built: patterns ``conv-weight-scale-axis`` and ``matmul-weight-scale-axis``.
    """
    for product, weight in _int8_products(view):
        node = weight.dequantize
        scale = view.array(_scale(weight))
        if node is None or weight.moves or scale is None or scale.size == 1 or scale.ndim != 1:
            continue
        shape = node.inputs[0].shape if node.inputs[0] is not None else None
        wanted = _output_axis(product.node, len(shape) if shape is not None else 0)
        axis = node.attributes.get_int("axis", 1)
        axis += len(shape) if axis < 0 and shape is not None else 0
        if wanted is not None and axis != wanted:
            text = f"the scales of its weight lie along axis {axis}, and its output channels along axis {wanted}"
            yield Hit(product.node, text, {"axis": axis, "output_axis": wanted})


def _output_axis(node: ir.Node, rank: int) -> int | None:
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        return 0 if node.attributes.get_int("transB", 0) else 1
    return rank - 1 if node.op_type == "MatMul" and rank else None


def _int8_products(view: View) -> Iterator[tuple[Product, Operand]]:
    """(product, weight) where an 8-bit activation meets a dequantized constant."""
    for product in view.products:
        for operand, other in (product.operands, product.operands[::-1]):
            if is_activation(view, operand) and other.dequantize is not None and view.is_constant(other.dequantize.inputs[0]):
                yield product, other


def block_wise_int8_activation(view: View) -> Iterator[Hit]:
    """TensorRT-RTX refuses block-wise weight scales beside INT8 activations ("CHECK(is_constant()) failed"), INT8 codes as INT4 ones.

    Built: patterns ``matmul-int4-blocks-int8`` and ``matmul-int8-blocks-int8``. With float activations it builds.
    """
    for product, weight in _int8_products(view):
        assert weight.dequantize is not None
        if size := weight.dequantize.attributes.get_int("block_size", 0):
            yield Hit(
                product.node, f"its weight has one scale for each block of {size}, and its activation is quantized", {"block_size": size}
            )


def int4_conv_int8_activation(view: View) -> Iterator[Hit]:
    """TensorRT-RTX refuses a Conv of INT8 activations whose weight is dequantized from INT4 directly ("CHECK(dtype == W.type())").

    Built: pattern ``conv-int4-int8``. With float activations it builds.
    """
    for product, weight in _int8_products(view):
        if product.node.op_type in ("Conv", "ConvTranspose") and _from_int4(view, weight) and not _block_size(weight):
            yield Hit(product.node, "its weight is dequantized from INT4 directly, and its activation is INT8")


def int4_per_tensor_int8_activation(view: View) -> Iterator[Hit]:
    """TensorRT-RTX refuses a MatMul of INT8 activations and INT4 weights that have one scale ("Input and filter have to be the same type").

    Built: pattern ``matmul-int4-per-tensor-int8``. With a scale for each output channel it builds, as an INT8 GEMM.
    """
    for product, weight in _int8_products(view):
        scale = view.array(_scale(weight))
        if product.node.op_type in ("MatMul", "Gemm") and _from_int4(view, weight) and scale is not None and scale.ndim == 0:
            yield Hit(product.node, "its INT4 weight has one scale for the whole tensor, and its activation is INT8")


def _from_int4(view: View, operand: Operand) -> bool:
    return operand.dequantize is not None and view.codes(operand.dequantize) in NIBBLE_CODES


def _block_size(operand: Operand) -> int:
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
    for product, weight in _int8_products(view):
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


# ONNX Runtime


def moved_int8(view: View) -> Iterator[Hit]:
    """ONNX Runtime refuses the session: from opset 21 on it puts a broken Q/DQ pair behind what moves an int8 activation.

    "output_dtype INT8 does not match y_zero_point type UINT8", whatever the session options; uint8 and opset 19 load. Opened: patterns
    ``matmul-transposed-int8`` and ``matmul-transposed-uint8``; the same for Reshape, Squeeze, Unsqueeze and Slice.
    """
    if view.opset < 21:
        return
    for product in view.products:
        for operand in product.operands:
            if operand.moves and is_activation(view, operand) and operand.dequantize and view.codes(operand.dequantize) == ir.DataType.INT8:
                names = ", ".join(f"{n.name} ({n.op_type})" for n in operand.moves)
                yield Hit(product.node, f"its int8 activation is moved after it was dequantized: {names}", {"opset": view.opset})


def shared_weight(view: View) -> Iterator[Hit]:
    """ONNX Runtime refuses the session: with ``session.x64quantprecision``, which keeps sums exact on x86, it rewrites each weight once.

    "Attempt to replace the existing tensor". Opened: pattern ``shared-weight-zero-point``; shared codes and a shared DequantizeLinear
    behave the same. Without that option it loads.
    """
    users: dict[ir.Value, dict[ir.Node, None]] = {}
    for product, weight in _int8_products(view):
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
    for product, _ in _int8_products(view):
        users = [user.op_type for user, _ in product.node.outputs[0].uses()]
        if product.node.op_type == "Conv" and users != ["QuantizeLinear"]:
            yield Hit(product.node, f"its output is not quantized (read by: {', '.join(users) or 'the caller'}), so it runs in float")


def convolution_bias(view: View) -> Iterator[Hit]:
    """With scales from the graph ONNX Runtime makes no QLinearConv of a convolution that has a float bias.

    Opened: pattern ``conv-gathered-bias``, beside ``conv-gathered-output``, which has none.
    """
    for product, _ in _int8_products(view):
        scales = [_scale(o) for o in product.operands if o.dequantize is not None]
        if product.node.op_type == "Conv" and len(product.node.inputs) > 2 and not all(map(view.is_constant, scales)):
            yield Hit(product.node, "it has a float bias, and the scale of its activation is computed")


def shared_int8(view: View) -> Iterator[Hit]:
    """ONNX Runtime leaves products in float that share one int8 DequantizeLinear with a computed scale; with uint8 it fuses each.

    Opened: patterns ``shared-gathered-int8`` and ``shared-gathered-uint8``.
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
