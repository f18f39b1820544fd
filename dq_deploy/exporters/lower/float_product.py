"""A product that stays in float."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ..emitter import Emitter, options


def float_product(emit: Emitter, node: ir.Node) -> ir.Value:
    """The operator that a placeholder stands for. The bias is an Add where ONNX has no input for it."""
    inputs = [v for v in node.inputs if v is not None]
    if node.op_type in ("Conv", "MatMul"):
        return emit.op(node.op_type, inputs, **options(node))
    weight = inputs[1].const_value
    assert weight is not None
    transposed = emit.constant(f"{inputs[1].name}.T", np.ascontiguousarray(weight.numpy().T))
    y = emit.op("MatMul", [inputs[0], transposed])
    return y if len(inputs) < 3 else emit.op("Add", [y, inputs[2]])
