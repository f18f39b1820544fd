"""GroupNormalization as ONNX Runtime computes it fastest: InstanceNormalization of the groups, and the affine part behind it.

ONNX Runtime expands the operator into eleven, among them casts from fp32 to fp32, in which a variance is the mean of the squares less the
square of the mean. Its InstanceNormalization is one kernel, and centres first.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .emitter import Emitter, attributes, replace


def group_norms_by_instance(graph: ir.Graph) -> None:
    """Rewrite every GroupNormalization of known rank, in place."""
    for node in list(graph):
        if node.op_type != "GroupNormalization" or node.domain:
            continue
        x, scale, bias = node.inputs[:3]
        shape = node.outputs[0].shape
        constants = [v.const_value.numpy() if v is not None and v.const_value is not None else None for v in (scale, bias)]
        if x is None or shape is None or any(c is None for c in constants):
            continue
        sizes = [size for size in shape[1:] if isinstance(size, int)]
        options = attributes(node)
        groups = options["num_groups"]
        emit = Emitter(graph, str(node.name), node, fp32=False)
        y = emit.op("Reshape", [x, emit.sizes(0, groups, -1)], name="groups")
        ones, zeros = (emit.constant(f"dq_deploy.{n}_{groups}", np.full(groups, v, np.float32)) for n, v in (("ones", 1), ("zeros", 0)))
        y = emit.op("InstanceNormalization", [y, ones, zeros], epsilon=options.get("epsilon", 1e-5))
        y.shape = ir.Shape([shape[0], groups, None])
        known = len(sizes) == len(shape) - 1
        before = emit.sizes(0, *sizes) if known else emit.op("Shape", [x], name="sizes", dtype=ir.DataType.INT64)
        y = emit.op("Reshape", [y, before], name="channels")
        for op, value, array in zip(("Mul", "Add"), (scale, bias), constants, strict=True):
            assert value is not None
            assert array is not None
            y.shape = shape.copy()
            y = emit.op(op, [y, emit.constant(f"{value.name}.per_channel_{len(shape)}", array.reshape(-1, *(1,) * (len(shape) - 2)))])
        name = node.outputs[0].name
        replace(node, y)
        y.name = name  # by which a manifest may know it
