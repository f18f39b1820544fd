"""What integer products share: MatMulInteger(codes, codes, zero-points) → Cast → · (s_t · s_w), which ONNX Runtime runs as one kernel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ...formats.tables import CODES, WEIGHT_SCALE, WEIGHT_SUM
from ...quantization.weights import QuantizedWeight
from ..emitter import Emitter
from ..weights import bias, weight_sums
from .kinds import Place


def scaled_sums(emit: Emitter, factors: Sequence[ir.Value], scales: Sequence[ir.Value], output: str | None) -> ir.Value:
    """An integer product times both sides' scales. ONNX Runtime fuses it in this order of operations alone."""
    sums = emit.op("MatMulInteger", factors, dtype=ir.DataType.INT32)
    y = emit.op("Cast", [sums], to=ir.DataType.FLOAT.value)
    return emit.op("Mul", [y, emit.op("Mul", scales, name="scales")], name="scaled", output=output)


def weighted(at: Place, layer: QuantizedWeight, codes: ir.Value, matrix: np.ndarray, output: str | None) -> ir.Value:
    """Codes [..., C] of the operand times a weight's codes [C, O], scaled, with the layer's bias; ``output`` names the result."""
    (x,), emit = at.operands, at.emitter()
    assert x.zero_point is not None
    scales = [x.scale, emit.constant(f"{at.name}.{WEIGHT_SCALE}", layer.stored.scale.numpy())]
    factors = [codes, emit.constant(f"{at.name}.{CODES}", matrix), x.zero_point]
    last = "bias" if layer.bias is not None else "tokens" if x.token_scale is not None else "sums"
    y = scaled_sums(emit, factors, scales, output if last == "sums" else None)
    if x.token_shift is not None:
        sums = emit.constant(f"{at.name}.{WEIGHT_SUM}", weight_sums(layer))
        y = emit.op("Sub", [y, emit.op("Mul", [x.token_shift, sums], name="zero_point_sum")])
    if x.token_scale is not None:
        y = emit.op("Mul", [y, x.token_scale], name="token_scale", output=output if last == "tokens" else None)
    if layer.bias is None:
        return y
    return emit.op("Add", [y, bias(emit, layer, at.name)], output=output)
