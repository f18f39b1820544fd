"""Writing a handful of ONNX nodes in the place of a placeholder, with names that a person can follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

FP32_MARK = "dq_deploy.scale_arithmetic"
"""Metadata key of nodes that stay fp32 whatever the rest of the graph is."""
AS_WRITTEN = "as written"
"""Its value where a node's inputs have the very types it needs, half precision among them: no casts are put before it."""


class Emitter:
    """Inserts nodes before an anchor node, or one after the other behind ``after``. Node and value names start with ``prefix``."""

    def __init__(self, graph: ir.Graph, prefix: str, before: ir.Node | None = None, *, after: ir.Node | None = None,
                 fp32: bool = True) -> None:  # fmt: skip
        self.graph, self.prefix, self.before, self.after, self.fp32 = graph, prefix, before, after, fp32

    def op(self, op_type: str, inputs: Sequence[ir.Value], *, name: str | None = None, output: str | None = None,
           dtype: ir.DataType = ir.DataType.FLOAT, **attributes: Any) -> ir.Value:  # fmt: skip
        """Emit one node and return its output value."""
        label = f"{self.prefix}/{name or op_type}"
        value = ir.Value(name=output or f"{label}:0", type=ir.TensorType(dtype))
        self._emit("", op_type, inputs, [value], label, attributes)
        return value

    def custom(self, domain: str, op_type: str, inputs: Sequence[ir.Value], dtypes: Sequence[ir.DataType], name: str,
               **attributes: Any) -> list[ir.Value]:  # fmt: skip
        """Emit one node of another ``domain`` and return its outputs, of these types."""
        label = f"{self.prefix}/{name}"
        values = [ir.Value(name=f"{label}:{i}", type=ir.TensorType(dtype)) for i, dtype in enumerate(dtypes)]
        self._emit(domain, op_type, inputs, values, label, attributes)
        return values

    def _emit(self, domain: str, op_type: str, inputs: Sequence[ir.Value], outputs: list[ir.Value], label: str,
              attributes: Mapping[str, Any]) -> None:  # fmt: skip
        inputs = [self._registered(given) for given in inputs]
        node = ir.Node(domain, op_type, inputs, ir.convenience.convert_attributes(attributes), outputs=outputs, name=label)
        if self.fp32:
            node.metadata_props[FP32_MARK] = "1"
        if self.after is not None:
            self.graph.insert_after(self.after, node)
            self.after = node
        elif self.before is not None:
            self.graph.insert_before(self.before, node)
        else:
            self.graph.append(node)

    def as_written(self, op_type: str, inputs: Sequence[ir.Value], name: str, dtype: ir.DataType, **attributes: Any) -> ir.Value:
        """Emit a node whose inputs have the types that it needs, half precision among them."""
        value = self.op(op_type, inputs, name=name, dtype=dtype, **attributes)
        node = value.producer()
        assert node is not None
        node.metadata_props[FP32_MARK] = AS_WRITTEN
        return value

    def constant(self, name: str, array: np.ndarray[Any, Any]) -> ir.Value:
        """An initializer of any shape. A second request for the same one gives it again; where another has the name, it gets a free one."""
        array, free = np.asarray(array, order="C"), name
        while (held := self.graph.initializers.get(free)) is not None:
            if _holds(held, array):
                return held
            free += "#"
        return initializer(self.graph, free, ir.tensor(array, name=free))

    def sizes(self, *values: int) -> ir.Value:
        """Whole numbers, as operators take shapes and axes."""
        return self.constant(f"dq_deploy.sizes_{'_'.join(map(str, values))}", np.array(values, dtype=np.int64))

    def _registered(self, value: ir.Value) -> ir.Value:
        """``value``, or the graph's constant where it is a ``number`` that nothing has read yet."""
        if value.const_value is None or value.graph is not None:
            return value
        return self.constant(str(value.name), value.const_value.numpy())

    def product(self, a: ir.Value, b: ir.Value, name: str) -> ir.Value:
        """Multiply: a node, or a constant where both are."""
        if a.const_value is None or b.const_value is None:
            return self.op("Mul", [a, b], name=name)
        return number(f"{self.prefix}.{name}", a.const_value.numpy() * b.const_value.numpy())

    def unsqueeze(self, value: ir.Value, rank: int, name: str) -> ir.Value:
        """[N] → [N, 1, ..., 1] of the given rank; what is known to have another shape stays, to broadcast as it is."""
        if value.shape is not None and len(value.shape) != 1:
            return value
        axes = self.constant(f"dq_deploy.axes_1_{rank}", np.arange(1, rank, dtype=np.int64))
        return self.op("Unsqueeze", [value, axes], name=name, dtype=value.dtype or ir.DataType.FLOAT)


def _holds(value: ir.Value, array: np.ndarray[Any, Any]) -> bool:
    tensor = value.const_value
    if tensor is None or tuple(tensor.shape.numpy()) != array.shape or tensor.dtype != ir.tensor(array).dtype:
        return False
    return tensor.tobytes() == array.tobytes()


def number(name: str, array: np.ndarray[Any, Any]) -> ir.Value:
    """A constant of any shape and of no graph yet: where a node first reads it, it becomes an initializer."""
    return _constant(name, ir.tensor(np.asarray(array, order="C"), name=name))


def initializer(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """Register a tensor as an initializer of the graph."""
    value = _constant(name, tensor)
    graph.register_initializer(value)
    return value


def _constant(name: str, tensor: ir.TensorProtocol) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor)


def attributes(node: ir.Node) -> Mapping[str, Any]:
    """A node's attributes as Python values."""
    return {name: attribute.value for name, attribute in node.attributes.items()}


def options(node: ir.Node) -> dict[str, Any]:
    """Attributes of a placeholder for the operator that takes its place: all but its name."""
    return {name: value for name, value in attributes(node).items() if name != "name"}


def replace(node: ir.Node, value: ir.Value) -> None:
    """Let ``value`` stand where the node's only output stood, keep a graph output's name, and remove the node."""
    graph, old = node.graph, node.outputs[0]
    assert graph is not None
    value.shape = old.shape
    if old.is_graph_output():
        value.name, old.name = old.name, f"{old.name}:placeholder"
    ir.convenience.replace_all_uses_with(old, value, replace_graph_outputs=True)
    graph.remove(node, safe=True)
