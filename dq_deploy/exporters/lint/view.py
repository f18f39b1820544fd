"""What the rules ask of a graph: which values are constants, what a product's operands were dequantized from, where a scale comes from."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from ...artifacts.reading import data_problem
from ...formats.tables import RELATIVE_SCALE, SCALE

Array = np.ndarray[Any, Any]

PRODUCTS = ("Conv", "ConvTranspose", "MatMul", "Gemm")
# They move numbers and make no new ones but 0, so a Q/DQ pair before them still quantizes what comes after: TensorRT-RTX multiplies in
# INT8 behind Pad, MaxPool, Concat and Transpose (patterns conv-padded, conv-concatenated, …), and in FP32 behind Relu and Resize.
MOVES = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Slice", "Split", "Expand", "Pad", "MaxPool")
BYTE_CODES = (ir.DataType.INT8, ir.DataType.UINT8)
NIBBLE_CODES = (ir.DataType.INT4, ir.DataType.UINT4)
FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
_COMPARISONS = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Xor", "Not", "IsNaN", "IsInf")
# Scales and zero-points are folded through the few nodes that exporters put behind them; whole weights never are.
_FOLDED_ELEMENTS = 1 << 20


@dataclass(frozen=True)
class ProductOperand:
    """One side of a product: every DequantizeLinear it comes from (several behind a Concat), and what moves the numbers in between.

    ``dequantize`` is the first of them; None for a float, also where one part of a Concat is.
    """

    dequantize: ir.Node | None
    sources: tuple[ir.Node, ...]
    moves: tuple[ir.Node, ...]
    constant: bool


@dataclass(frozen=True)
class Product:
    """A Conv, ConvTranspose, MatMul or Gemm."""

    node: ir.Node
    operands: tuple[ProductOperand, ProductOperand]


class View:
    """A graph as the rules see it, read from ``file``, in whose folder external data may lie.

    ``layers`` are the known module paths, ``timesteps`` the calibrated ones, as far as they are known; ``tables`` the names of the scale
    tables and ``listed`` the files whose hashes were compared, None where there is no manifest.
    """

    def __init__(
        self,
        model: ir.Model,
        file: Path,
        layers: frozenset[str],
        timesteps: tuple[float, ...] = (),
        tables: frozenset[str] | None = None,
        listed: frozenset[str] | None = None,
    ) -> None:
        self.listed, self.tables = listed, tables
        self.model, self.file, self.folder, self.timesteps, self._layers = model, file, file.parent, timesteps, layers
        self.nodes = tuple(ir.traversal.RecursiveGraphIterator(model.graph))
        self._folded: dict[ir.Value, Array | None] = {}
        self._constant: dict[ir.Value, bool] = {}

    @property
    def opset(self) -> int:
        """Version of the standard operators."""
        return self.model.opset_imports.get("", 1)

    @cached_property
    def quantizers(self) -> tuple[ir.Node, ...]:
        """Every QuantizeLinear and DequantizeLinear."""
        return tuple(n for n in self.nodes if n.op_type in ("QuantizeLinear", "DequantizeLinear"))

    @cached_property
    def products(self) -> tuple[Product, ...]:
        """Every product, in the graph's order."""
        found = (n for n in self.nodes if n.op_type in PRODUCTS and not n.domain and len(n.inputs) >= 2)
        return tuple(Product(n, (self._operand(n.inputs[0]), self._operand(n.inputs[1]))) for n in found)

    def _operand(self, value: ir.Value | None) -> ProductOperand:
        moves: list[ir.Node] = []
        ends: list[ir.Node | None] = []
        above = [value]
        while above:
            current = above.pop(0)
            node = current.producer() if current is not None else None
            if node is not None and (node.op_type in MOVES or node.op_type == "Concat"):
                moves.append(node)
                above += node.inputs if node.op_type == "Concat" else node.inputs[:1]
            else:
                ends.append(node if node is not None and node.op_type == "DequantizeLinear" else None)
        sources = tuple(node for node in ends if node is not None)
        return ProductOperand(ends[0] if None not in ends else None, sources, tuple(moves), self.is_constant(value))

    def is_constant(self, value: ir.Value | None) -> bool:
        """Whether a value is known before the graph runs. An input that is left out counts as known."""
        if value is None or value.is_initializer():
            return True
        if value not in self._constant:
            node = value.producer()
            self._constant[value] = node is not None and (
                node.op_type == "Constant" or (bool(node.inputs) and all(map(self.is_constant, node.inputs)))
            )
        return self._constant[value]

    def array(self, value: ir.Value | None) -> Array | None:
        """A constant of any shape, folded where it is computed from others; None when it is not constant, large or unreadable."""
        if value is None or not self.is_constant(value):
            return None
        if value not in self._folded:
            self._folded[value] = self._fold(value)
        return self._folded[value]

    def _fold(self, value: ir.Value) -> Array | None:
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is not None:
            return self._values(tensor) if tensor.size <= _FOLDED_ELEMENTS and self._readable(tensor) else None
        node = value.producer()
        assert node is not None
        inputs = [self.array(v) for v in node.inputs]
        if any(array is None for array, v in zip(inputs, node.inputs, strict=True) if v is not None):
            return None
        feeds = {str(v.name): array for v, array in zip(node.inputs, inputs, strict=True) if v is not None}
        evaluator = ReferenceEvaluator(ir.to_proto(node), opsets=dict(self.model.opset_imports))
        return np.asarray(next(iter(evaluator.run([str(value.name)], feeds))))

    @staticmethod
    def _values(tensor: ir.TensorProtocol) -> Array | None:
        try:
            return tensor.numpy()
        except (OSError, ValueError):  # a link of a hub's cache, which onnx-ir does not follow; fewer bytes than the shape takes
            return None

    def _readable(self, tensor: ir.TensorProtocol) -> bool:
        return not isinstance(tensor, ir.ExternalTensor) or (self.external_problem(tensor) is None)

    def tensors(self) -> Iterator[tuple[ir.Node | None, str, ir.TensorProtocol]]:
        """(node, name, tensor) of every initializer and every tensor in an attribute; the node is None for an initializer."""
        for graph in self.model.graphs():
            for value in graph.initializers.values():
                if value.const_value is not None:
                    yield None, str(value.name), value.const_value
        for node in self.nodes:
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.TENSOR:
                    yield node, attribute.name, attribute.as_tensor()
                elif attribute.type == ir.AttributeType.TENSORS:
                    yield from ((node, attribute.name, tensor) for tensor in attribute.as_tensors())

    def external_problem(self, tensor: ir.ExternalTensor) -> str | None:
        """Why an external tensor's file must not be opened; None when its bytes lie in the model's own folder."""
        return data_problem(
            self.folder,
            str(tensor.location),
            dtype=tensor.dtype.value,
            shape=tuple(tensor.shape.numpy()),
            offset=tensor.offset,
            length=tensor.length,
            listed=self.listed,
        )

    def codes(self, node: ir.Node) -> ir.DataType | None:
        """Type of the codes of a QuantizeLinear or DequantizeLinear; None where that is unknown."""
        if node.op_type == "QuantizeLinear":
            if len(node.inputs) > 2 and (zero := node.inputs[2]) is not None:
                return self.dtype(zero)
            return ir.DataType(node.attributes.get_int("output_dtype", 0) or ir.DataType.UINT8.value)
        return self.dtype(node.inputs[0])

    def dtype(self, value: ir.Value | None) -> ir.DataType | None:
        """Type of a value, as far as the graph declares it or its producer settles it."""
        if value is None or value.dtype is not None:
            return value.dtype if value is not None else None
        if (tensor := ir.convenience.get_const_tensor(value)) is not None:
            return tensor.dtype
        node = value.producer()
        if node is None:
            return None
        if node.op_type == "QuantizeLinear":
            return self.codes(node)
        if node.op_type == "DequantizeLinear":
            return self.dtype(node.inputs[1])
        if node.op_type == "Cast":
            return ir.DataType(node.attributes.get_int("to", 0))
        if node.op_type in _COMPARISONS:
            return ir.DataType.BOOL
        if node.op_type == "Where":
            return self.dtype(node.inputs[1])
        return self.dtype(node.inputs[0]) if node.inputs else None

    def scale_tables(self) -> Iterator[tuple[ir.Node, Array, ir.DataType | None]]:
        """(Gather, table [T], type) of every scale table: by its name where a manifest gives them, else by what reads its rows."""
        for node in self.nodes:
            if node.op_type != "Gather" or self.dtype(node.inputs[0]) not in FLOATS or self.is_constant(node.outputs[0]):
                continue
            table = self.array(node.inputs[0])
            if table is not None and self._is_scale_table(node):
                yield node, table, self.dtype(node.inputs[0])

    def _is_scale_table(self, gather: ir.Node) -> bool:
        if self.tables is not None:
            return gather.inputs[0] is not None and gather.inputs[0].name in self.tables
        return any(_takes_a_scale(user, index) for user, index in self._readers(gather.outputs[0]))

    def _readers(self, value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
        for user, index in value.uses():
            if index == 0 and user.op_type in (*MOVES, "Cast"):
                yield from self._readers(user.outputs[0])
            else:
                yield user, index

    def module(self, node: ir.Node | None) -> str | None:
        """Path of the module that a node came from: torch's metadata, or the layer that the node is named after."""
        if node is None:
            return None
        if scopes := node.metadata_props.get("pkg.torch.onnx.name_scopes"):
            names = [name for name in _literal_list(scopes)[:-1] if name]  # the last one is the node itself
            return names[-1] if names else None
        prefix = str(node.name).partition("/")[0].partition("#pad")[0]  # what the exporters add to a layer's name
        prefix = prefix.removesuffix(f".{SCALE}").removesuffix(f".{RELATIVE_SCALE}")
        return prefix if prefix in self._layers else None


def _takes_a_scale(node: ir.Node, index: int) -> bool:
    return (
        node.op_type == "Reciprocal"
        or (node.op_type == "Div" and index == 1)
        or (node.op_type in ("QuantizeLinear", "DequantizeLinear") and index == 1)
    )


def _literal_list(text: str) -> list[str]:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return []
    return [str(item) for item in value] if isinstance(value, list) else []
