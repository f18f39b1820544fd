"""A convolution of a float activation [N, C, H, W] with integer codes, which are unpacked in front of it (benchmarks/patterns/RESULTS.md).

TensorRT has a DequantizeLinear; ONNX Runtime, which would run that every time, a Cast and a Mul, which it folds when it loads the graph.
"""

from __future__ import annotations

import onnx_ir as ir

from ...formats.tables import CODES, WEIGHT_SCALE
from ...quantization.weights import WeightOnlyConv2d
from ..emitter import Emitter, options
from ..weights import bias, stored
from .kinds import Place, integer_product, qdq_product


@qdq_product.register
@integer_product.register
def weight_only_conv(layer: WeightOnlyConv2d, at: Place) -> ir.Value:
    """A Conv with a weight [O, C, kh, kw] that is unpacked."""
    emit = at.emitter(fp32=False)
    inputs = [at.x, _weight(emit, layer, at)]
    if layer.bias is not None:
        inputs.append(bias(emit, layer, at.name))
    return emit.op("Conv", inputs, output=f"{at.name}/output", **options(at.node))


def _weight(emit: Emitter, layer: WeightOnlyConv2d, at: Place) -> ir.Value:
    codes, scale = (tensor.numpy() for tensor in layer.stored)
    packed = emit.constant(f"{at.name}.{CODES}", stored(codes, layer.bits, int4=at.target.int4))
    if not at.target.folds:
        return emit.op("DequantizeLinear", [packed, emit.constant(f"{at.name}.{WEIGHT_SCALE}", scale)], name="DequantizeWeight", axis=0)
    scales = emit.constant(f"{at.name}.{WEIGHT_SCALE}", layer.unpacking().detach().numpy())
    floats = emit.op("Cast", [packed], name="UnpackWeight", to=ir.DataType.FLOAT.value)
    return emit.op("Mul", [floats, scales], name="ScaleWeight")
