"""A product of two quantized activations, q·kᵀ or P·v of attention; the right one is symmetric."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ...quantization.weights import QuantizedMatmul
from .integers import scaled_sums
from .kinds import Place, integer_product, qdq_product


@qdq_product.register
def dequantized_matmul(layer: QuantizedMatmul, at: Place) -> ir.Value:  # noqa: ARG001
    """A MatMul · s_a s_b; the left's zero-point (of probabilities) is corrected by the right's column sums."""
    (left, right), emit = at.operands, at.emitter()
    y = emit.op("MatMul", [left.value, right.value])
    if left.zero_point is not None:
        outside = at.emitter("_correction")
        axis = outside.constant("dq_deploy.axis_rows", np.array([-2], dtype=np.int64))
        sums = outside.op("ReduceSum", [right.value, axis], keepdims=1)
        y = emit.op("Sub", [y, outside.op("Mul", [sums, outside.unsqueeze(left.zero_point, at.rank, "zero_point")])])
    # Multiplied as [N], before the reshape.
    scale = emit.unsqueeze(emit.product(left.scale, right.scale, "scales"), at.rank, "scale")
    return emit.op("Mul", [y, scale], output=f"{at.name}/output")


@integer_product.register
def integer_matmul(layer: QuantizedMatmul, at: Place) -> ir.Value:  # noqa: ARG001
    """A MatMulInteger, without a zero-point that is 0."""
    zero_points = [x.zero_point for x in at.operands if x.zero_point is not None]
    factors = [*(x.value for x in at.operands), *zero_points]
    return scaled_sums(at.emitter(), factors, [x.scale for x in at.operands], f"{at.name}/output")
