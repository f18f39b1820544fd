"""FP4 codes in blocks of 16 with scales in E4M3: TensorRT's dynamic quantization of activations, and the product of two such operands.

Activation:  TRT_FP4DynamicQuantize(x, g) → codes and block scales; DequantizeLinear(block scales, g) → DequantizeLinear(codes, blocks)
Weight:      DequantizeLinear(block scales, g) → DequantizeLinear(codes [O, C], blocks) → Transpose
Product:     MatMul → [+ bias], all fp32 but for the codes
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ...formats.fp4 import FP4_DOMAIN, FP4_OPERATOR
from ...formats.tables import BLOCK_SCALE, CODES, GLOBAL_SCALE, INVERSE_DILATION, WEIGHT_GLOBAL_SCALE
from ...quantization.quantizers import BlockQuantizer
from ...quantization.weights import Fp4Linear
from ..emitter import Emitter, number
from ..scales import inverse_dilation
from ..weights import bias
from .kinds import Operand, Place, qdq_product

_FP4, _FP8 = ir.DataType.FLOAT4E2M1, ir.DataType.FLOAT8E4M3FN


def in_blocks(emit: Emitter, x: ir.Value, quantizer: BlockQuantizer, name: str) -> Operand:
    """Emit the quantizer of x [N, ..., C], of 2 or 3 dimensions."""
    assert x.shape is not None
    if (factor := inverse_dilation(quantizer.dilation, quantizer.axis, len(x.shape))) is not None:
        x = emit.op("Mul", [x, emit.constant(f"{name}.{INVERSE_DILATION}", factor)], name="dilate")
    g, block = emit.constant(f"{name}.{GLOBAL_SCALE}", quantizer.global_scale.numpy()), quantizer.format.block
    codes, scales = emit.custom(FP4_DOMAIN, FP4_OPERATOR, [x, g], [_FP4, _FP8], "DynamicQuantize", axis=-1, block_size=block,
                                scale_type=_FP8.value)  # fmt: skip
    scale = emit.op("DequantizeLinear", [scales, g], name="DequantizeScale")
    value = emit.op("DequantizeLinear", [codes, scale], axis=-1, block_size=block)
    return Operand(name, value, codes, number("dq_deploy.one", np.array(1.0, dtype=np.float32)), None)


@qdq_product.register
def dequantized_fp4(layer: Fp4Linear, at: Place) -> ir.Value:
    """A MatMul."""
    (x,), emit, output = at.operands, at.emitter(), f"{at.name}/output"
    codes = emit.constant(f"{at.name}.{CODES}", layer.stored.codes.float().numpy().astype(_FP4.numpy()))
    scales = emit.constant(f"{at.name}.{BLOCK_SCALE}", layer.block_scale().float().numpy().astype(_FP8.numpy()))
    g = emit.constant(f"{at.name}.{WEIGHT_GLOBAL_SCALE}", layer.global_scale.numpy())
    scale = emit.op("DequantizeLinear", [scales, g], name="DequantizeScale")
    weight = emit.op("DequantizeLinear", [codes, scale], name="DequantizeWeight", axis=1, block_size=layer.block)
    weight = emit.op("Transpose", [weight], name="DequantizeWeight/Transpose", perm=[1, 0])
    y = emit.op("MatMul", [x.value, weight], output=output if layer.bias is None else None)
    return y if layer.bias is None else emit.op("Add", [y, bias(emit, layer, at.name)], output=output)
