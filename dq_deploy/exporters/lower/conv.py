"""A convolution of a quantized activation [N, C, H, W] with a weight [O, C, kh, kw]."""

from __future__ import annotations

import onnx_ir as ir

from ...quantization.weights import QuantizedConv2d
from ..emitter import Emitter, attributes, options
from ..patches import Window, matrix, patches
from ..weights import dequantized_weight
from .integers import weighted
from .kinds import Place, integer_product, qdq_product
from .qdq import rescaled


@qdq_product.register
def dequantized_conv(layer: QuantizedConv2d, at: Place) -> ir.Value:
    """A Conv, which does not pad what is padded already."""
    (x,), emit, geometry = at.operands, at.emitter(), options(at.node)
    if x.padded:
        geometry["pads"] = [0] * len(geometry["pads"])
    y = emit.op(
        "Conv", [x.value, dequantized_weight(emit, layer, at.name, beside=x.codes, transpose=False, int4=at.target.int4)], **geometry
    )
    return rescaled(emit, at, layer, y, (1, -1, 1, 1))


@integer_product.register
def integer_conv(layer: QuantizedConv2d, at: Place) -> ir.Value:
    """A MatMulInteger of the patches, channels last, and a Transpose back (``patches`` says why)."""
    weight = layer.stored.codes.numpy()
    codes = _patches(at, Window.of(at.node, weight.shape))
    y = weighted(at, layer, codes, matrix(weight, attributes(at.node)["group"]), None)
    return at.emitter().op("Transpose", [y], name="channels_first", output=f"{at.name}/output", perm=[0, 3, 1, 2])


def _patches(at: Place, window: Window) -> ir.Value:
    """The operand's patches; layers that look through one window share them."""
    (x,) = at.operands
    key = f"dq_deploy.patches_{window}"
    if key not in x.value.meta:
        assert x.value.shape is not None
        assert x.zero_point is not None
        assert at.node.graph is not None
        shape = [size if isinstance(size, int) else None for size in x.value.shape[1:]]
        emit = Emitter(at.node.graph, f"{x.name}/patches_{window}", after=x.value.producer())
        x.value.meta[key] = patches(emit, x.value, shape, x.zero_point, window)
    found: ir.Value = x.value.meta[key]
    return found
