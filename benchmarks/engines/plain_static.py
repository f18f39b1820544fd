"""The graph that static quantization is usually exported as: Q/DQ with the scale itself, nothing multiplied before or after.

Made from a bundle whose scales are static and symmetric at 8 bits, so that it can be compared with what dq-deploy writes. The softmax
output keeps its form, having a zero-point.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes


def plain_static(model: ir.Model) -> None:
    """Rewrite in place."""
    graph = model.graph
    scales: dict[ir.Value, ir.Value] = {}  # dequantized activation → its scale, where Q/DQ have it now
    for node in list(graph):
        if node.op_type == "QuantizeLinear":
            _into_quantizer(node, scales)
    for node in list(graph):
        if node.op_type in ("Conv", "MatMul"):
            _out_of_product(graph, node, scales)
    passes.RemoveUnusedNodesPass()(model)


def _into_quantizer(node: ir.Node, scales: dict[ir.Value, ir.Value]) -> None:
    units = node.inputs[0].producer() if node.inputs[0] else None
    inverse = units.inputs[1] if units is not None and units.op_type == "Mul" else None
    if units is None or inverse is None or not str(inverse.name).endswith(".inverse_scale"):
        return
    assert inverse.const_value is not None
    scale = _constant(node.graph, str(inverse.name).replace("inverse_scale", "plain_scale"), 1 / inverse.const_value.numpy())
    node.replace_input_with(0, units.inputs[0])
    node.replace_input_with(1, scale)
    for reader, _ in list(node.outputs[0].uses()):
        reader.replace_input_with(1, scale)
        scales[reader.outputs[0]] = scale


def _out_of_product(graph: ir.Graph, node: ir.Node, scales: dict[ir.Value, ir.Value]) -> None:
    """Divide the constant behind the product by the scales that Q/DQ apply now, and drop it where nothing is left."""
    taken = [scales[value] for value in node.inputs if value in scales]
    after = node
    while taken and after.op_type != "Mul":
        (after,) = [reader for reader, _ in after.outputs[0].uses()]
    if not taken:
        return
    factor = after.inputs[1]
    assert factor is not None
    assert factor.const_value is not None
    left = factor.const_value.numpy() / np.prod([value.const_value.numpy() for value in taken if value.const_value], dtype=np.float32)
    if np.allclose(left, 1, rtol=1e-5):
        source = after.inputs[0]
        assert source is not None
        ir.convenience.replace_all_uses_with(after.outputs[0], source)
        graph.remove(after, safe=True)
    else:
        after.replace_input_with(1, _constant(graph, f"{factor.name}.rest", left))


def _constant(graph: ir.Graph | ir.Function | None, name: str, array: np.ndarray) -> ir.Value:
    assert isinstance(graph, ir.Graph)
    if name not in graph.initializers:
        tensor = ir.tensor(np.asarray(array, dtype=np.float32), name=name)
        value = ir.Value(name=name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor)
        graph.register_initializer(value)
    return graph.initializers[name]
