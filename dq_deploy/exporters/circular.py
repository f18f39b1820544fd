"""Circular padding as slices of the tensor put together: OpenVINO reads no Pad that wraps around."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .emitter import Emitter, attributes, replace

_END = np.iinfo(np.int64).max


def circular_pads(graph: ir.Graph) -> None:
    """Rewrite every Pad of mode wrap by constant amounts, in place: x[-p:], x, x[:q] along each axis that is padded."""
    for node in list(graph):
        if node.op_type != "Pad" or node.domain or attributes(node).get("mode") != "wrap":
            continue
        x, amounts, _, axes = (*node.inputs, None, None)[:4]
        if x is None or amounts is None or amounts.const_value is None or (axes is not None and axes.const_value is None):
            continue
        before, after = amounts.const_value.numpy().reshape(2, -1).tolist()
        along = range(len(before)) if axes is None or axes.const_value is None else axes.const_value.numpy().tolist()
        emit, dtype = Emitter(graph, str(node.name), node, fp32=False), x.dtype or ir.DataType.FLOAT
        for axis, p, q in zip(along, before, after, strict=True):
            parts = [x]
            if p:
                parts.insert(0, _part(emit, x, axis, (-p, _END), f"before_{axis}", dtype))
            if q:
                parts.append(_part(emit, x, axis, (0, q), f"after_{axis}", dtype))
            if len(parts) > 1:
                x = emit.op("Concat", parts, name=f"circular_{axis}", dtype=dtype, axis=axis)
        replace(node, x if any(before + after) else emit.op("Identity", [x], dtype=dtype))


def _part(emit: Emitter, x: ir.Value, axis: int, span: tuple[int, int], name: str, dtype: ir.DataType) -> ir.Value:
    start, end, along = map(emit.sizes, (*span, axis))
    return emit.op("Slice", [x, start, end, along], name=name, dtype=dtype)
