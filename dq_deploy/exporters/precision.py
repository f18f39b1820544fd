"""Turning what is not quantized into fp16 or bf16, with the scale arithmetic left in fp32 and casts at its borders.

A float value is low precision from where the sample enters (or an integer layer leaves) onwards; what depends on the timestep alone
stays fp32 until it meets such a value, because 999 sin/cos angles do not survive in half precision. So do nodes that read or give a value
which half precision cannot hold (``float16``).
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from .emitter import AS_WRITTEN, FP32_MARK, initializer

DTYPES = {"fp32": ir.DataType.FLOAT, "fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
_SAME_TYPE_EXEMPT = {"Cast", "Shape", "Size", "ConstantOfShape", "Range"}
_FLOAT = ir.DataType.FLOAT
_WORTH_A_CAST = 1024  # elements


def lower_precision(model: ir.Model, dtype: ir.DataType, wide: Collection[ir.Value] = ()) -> None:
    """Convert in place. Graph inputs and outputs stay fp32, and so do the values ``wide`` and the nodes that read them."""
    if dtype == _FLOAT:
        return
    converter = _Converter(model.graph, dtype, wide)
    for value in model.graph.inputs:
        if value.name != "timestep" and value.dtype == _FLOAT:
            converter.low.add(value)  # fp32 itself; consumers that are not scale arithmetic read its cast
    for node in list(model.graph):
        converter.visit(node)
    converter.finish_outputs()


class _Converter:
    """``low`` holds the values that float consumers must read in low precision."""

    def __init__(self, graph: ir.Graph, dtype: ir.DataType, wide: Collection[ir.Value]) -> None:
        self.graph, self.dtype, self.wide = graph, dtype, set(wide)
        self.low: set[ir.Value] = set()
        self._casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self._low_of: dict[ir.Value, ir.Value] = {}  # what was cast back to fp32, before that

    def visit(self, node: ir.Node) -> None:
        if FP32_MARK in node.metadata_props:
            if node.metadata_props[FP32_MARK] != AS_WRITTEN:
                self._read_as_fp32(node)
            if any(FP32_MARK not in user.metadata_props for user, _ in node.outputs[0].uses()):
                self.low.add(node.outputs[0])
            return
        floats = [(i, v) for i, v in enumerate(node.inputs) if v is not None and v.dtype in (_FLOAT, self.dtype)]
        if node.op_type == "Gather" and _is_large(node.inputs[0]):  # the network's own: scale tables have the mark
            self._lower_table(node)
            return
        if node.op_type in _SAME_TYPE_EXEMPT or not any(v in self.low for _, v in floats):
            return
        if any(value in self.wide for value in (*node.inputs, *node.outputs)):
            self._read_as_fp32(node)
            self.low.update(output for output in node.outputs if output.dtype in (_FLOAT, None))
            return
        for index, value in floats:
            if node.op_type == "Resize" and index in (1, 2):
                continue  # region and scales are fp32 by definition
            node.replace_input_with(index, self._convert(value))
        for output in node.outputs:
            if output.dtype in (_FLOAT, None):
                output.type = ir.TensorType(self.dtype)
                self.low.add(output)

    def _read_as_fp32(self, node: ir.Node) -> None:
        for index, value in enumerate(node.inputs):
            if value is not None and value.dtype == self.dtype:
                node.replace_input_with(index, self._cast(value, _FLOAT))

    def _convert(self, value: ir.Value) -> ir.Value:
        value = self._low_of.get(value, value)
        if value.dtype == self.dtype:
            return value
        if value.is_initializer() and value.const_value is not None:
            return self._constant(value)
        if _is_float_weight(value):
            return self._unpacked(value)
        return self._cast(value, self.dtype)

    def _lower_table(self, node: ir.Node) -> None:
        """A table of embeddings, stored in low precision as every other float weight; what is read from it is fp32 as before."""
        table, output = node.inputs[0], node.outputs[0]
        assert table is not None
        node.replace_input_with(0, self._constant(table))
        users = list(output.uses())
        output.type = ir.TensorType(self.dtype)
        cast = self._cast(output, _FLOAT)
        self._low_of[cast] = output
        for user, index in users:
            user.replace_input_with(index, cast)

    def _unpacked(self, value: ir.Value) -> ir.Value:
        """A weight that DequantizeLinear unpacks, unpacked to low precision: engines do that inside the product that reads it."""
        node = value.producer()
        assert node is not None
        scale = node.inputs[1]
        assert scale is not None
        node.replace_input_with(1, self._constant(scale))
        value.type = ir.TensorType(self.dtype)
        return value

    def _constant(self, value: ir.Value) -> ir.Value:
        name = f"{value.name}.{self.dtype.name.lower()}"
        if name not in self.graph.initializers:
            assert value.const_value is not None
            array = value.const_value.numpy()
            limit = float(np.finfo(np.float16).max) if self.dtype == ir.DataType.FLOAT16 else np.inf
            array = np.clip(array, -limit, limit)  # −inf of a mask and anything too large for half precision
            initializer(self.graph, name, ir.tensor(array.astype(self.dtype.numpy()), dtype=self.dtype, name=name))
        return self.graph.initializers[name]

    def _cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        if (value, dtype) not in self._casts:
            name = f"{value.name}:{dtype.name.lower()}"
            output = ir.Value(name=name, type=ir.TensorType(dtype), shape=value.shape)
            node = ir.Node(
                "", "Cast", [value], [ir.AttrInt64("to", dtype.value)], outputs=[output], name=f"{value.name}/to_{dtype.name.lower()}"
            )
            producer = value.producer()
            if producer is not None:
                self.graph.insert_after(producer, node)
            else:
                self.graph.insert_before(next(iter(self.graph)), node)
            self._casts[value, dtype] = output
        return self._casts[value, dtype]

    def finish_outputs(self) -> None:
        for index, value in enumerate(self.graph.outputs):
            if value.dtype == self.dtype:
                name, value.name = value.name, f"{value.name}:{self.dtype.name.lower()}"
                output = self._cast(value, _FLOAT)
                output.name = name
                self.graph.outputs[index] = output


def _is_large(value: ir.Value | None) -> bool:
    """Whether this is a float constant that is large enough to be worth a cast of what is read from it."""
    if value is None or not value.is_initializer() or value.const_value is None or value.dtype != _FLOAT:
        return False
    return value.const_value.size >= _WORTH_A_CAST


def _is_float_weight(value: ir.Value) -> bool:
    """Whether this is a weight of a product whose activations stay float: codes and scales are constants, and it has no fp32 mark."""
    node = value.producer()
    if node is None or node.op_type != "DequantizeLinear" or FP32_MARK in node.metadata_props:
        return False
    return all(v is not None and v.is_initializer() for v in node.inputs)
