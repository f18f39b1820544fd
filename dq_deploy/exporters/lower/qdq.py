"""What layers with weights share between Q/DQ pairs: y = Ŵ · (codes as floats) → [− z_t · Σ Ŵ_o] → · s_t → [+ bias]."""

from __future__ import annotations

import onnx_ir as ir

from ...formats.tables import WEIGHT_SUM
from ...quantization.weights import QuantizedWeight
from ..emitter import Emitter
from ..weights import bias, weight_sums
from .kinds import Place


def rescaled(emit: Emitter, at: Place, layer: QuantizedWeight, y: ir.Value, shape: tuple[int, ...]) -> ir.Value:
    """The output of a layer whose product is ``y``; ``shape`` is that in which a vector [O] broadcasts over it."""
    (x,) = at.operands
    if x.zero_point is not None:
        sums = emit.constant(f"{at.name}.{WEIGHT_SUM}", weight_sums(layer).reshape(shape))
        shift = emit.unsqueeze(x.zero_point, at.rank, "zero_point")
        y = emit.op("Sub", [y, emit.product(shift, sums, "zero_point_sum")])
    output = f"{at.name}/output"
    scaled = None if layer.bias is not None else output
    y = emit.op("Mul", [y, emit.unsqueeze(x.scale, at.rank, "scale")], output=scaled)
    if layer.bias is None:
        return y
    return emit.op("Add", [y, bias(emit, layer, at.name, shape)], output=output)
