"""A matrix product of a float activation [..., C] with integer codes: DequantizeLinear → MatMul, in the type of what is not quantized.

With a scale for each block of input channels it is a blocked DequantizeLinear (opset 21). TensorRT unpacks it inside the GEMM, ONNX Runtime
makes MatMulNBits of it.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from ...formats.tables import CODES, WEIGHT_SCALE
from ...quantization.weights import WeightOnlyLinear
from ..weights import bias, stored
from .kinds import Place, integer_product, qdq_product


@qdq_product.register
@integer_product.register
def weight_only_linear(layer: WeightOnlyLinear, at: Place) -> ir.Value:
    """A MatMul with a weight [C, O] that is unpacked."""
    emit, output = at.emitter(fp32=False), f"{at.name}/output"
    codes, scale = (tensor.numpy().T for tensor in layer.stored)  # [C, O], [B, O]
    axis: dict[str, Any] = {"axis": 0, "block_size": layer.block} if layer.block else {"axis": 1}
    inputs = [
        emit.constant(f"{at.name}.{CODES}", stored(codes, layer.bits, int4=at.target.int4)),
        emit.constant(f"{at.name}.{WEIGHT_SCALE}", scale if layer.block else scale[0]),
    ]
    weight = emit.op("DequantizeLinear", inputs, name="DequantizeWeight", **axis)
    y = emit.op("MatMul", [at.x, weight], output=output if layer.bias is None else None)
    return y if layer.bias is None else emit.op("Add", [y, bias(emit, layer, at.name)], output=output)
