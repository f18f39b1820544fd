"""A matrix product of a quantized activation [..., C] with a weight [O, C]."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ...quantization.weights import QuantizedLinear
from ..weights import dequantized_weight
from .integers import weighted
from .kinds import Place, integer_product, qdq_product
from .qdq import rescaled


@qdq_product.register
def dequantized_linear(layer: QuantizedLinear, at: Place) -> ir.Value:
    """A MatMul."""
    (x,), emit = at.operands, at.emitter()
    y = emit.op("MatMul", [x.value, dequantized_weight(emit, layer, at.name, beside=x.codes, transpose=True, int4=at.target.int4)])
    return rescaled(emit, at, layer, y, (-1,))


@integer_product.register
def integer_linear(layer: QuantizedLinear, at: Place) -> ir.Value:
    """A MatMulInteger."""
    return weighted(at, layer, at.operands[0].value, np.ascontiguousarray(layer.stored.codes.numpy().T), f"{at.name}/output")
