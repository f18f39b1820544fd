"""What half precision cannot hold: values that are too large for it, and constants that it has no number for.

The nodes that read or give such a value compute in fp32, with casts around them (``precision``).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from pydantic import BaseModel

from .emitter import FP32_MARK

LARGEST = 65504.0
_ROOM = 4.0  # what other samples than the reference's may need
_ROUNDING = 2.0**-10  # of a normal number of fp16, rounding takes half of that
_MOVES = {"Reshape", "Transpose", "Unsqueeze", "Squeeze", "Expand", "Slice", "Concat", "Split", "Flatten", "Identity", "Gather"}
_TO_SOFTMAX = _MOVES | {"Add", "Sub", "Where", "Mul", "Div"}
# One operand, and the result is small or large because that is.
_OF_ONE = _MOVES | {"Sqrt", "Reciprocal", "Pow", "Log", "Neg", "Abs"}
_WITH_A_CONSTANT = {"Mul", "Div", "Add", "Sub", "Max", "Min", "Clip"}
_REDUCTIONS = {"ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceMax", "ReduceMin"}
# The largest inner step of an operator whose input is at most m.
_INSIDE = {"Gelu": lambda m: m**3, "ReduceL2": lambda m: m * m, "ReduceSumSquare": lambda m: m * m}


class KeptPart(BaseModel):
    """A part of the float network that stays fp32 in an fp16 graph: where it is, how many values, and the largest or the constant."""

    after: str
    values: int
    largest: float
    constants: list[float]


def only_softmax_reads(value: ir.Value) -> bool:
    """Whether a value goes into softmaxes alone, through masks and moves: its lowest entries need no number there, −65504 is as good."""
    waiting, seen = [value], {value}
    while waiting:
        current = waiting.pop()
        uses = list(current.uses())
        if not uses or current.is_graph_output():
            return False
        for user, _ in uses:
            if user.op_type == "Softmax":
                continue
            if user.op_type not in _TO_SOFTMAX or FP32_MARK in user.metadata_props:
                return False
            waiting += [output for output in user.outputs if output not in seen]
            seen.update(user.outputs)
    return True


def float_values(graph: ir.Graph) -> dict[ir.Value, bool]:
    """The values that an fp16 graph could hold in fp16, and of each whether only softmaxes read it."""
    inputs = [v for v in graph.inputs if v.dtype == ir.DataType.FLOAT and v.name != "timestep"]
    made = [v for node in graph for v in node.outputs if v.dtype == ir.DataType.FLOAT and not _unread_by_float(v)]
    return {value: only_softmax_reads(value) for value in [*inputs, *made]}


def _unread_by_float(value: ir.Value) -> bool:
    """Whether it is scale arithmetic's own, or a weight that is unpacked."""
    node = value.producer()
    unpacked = node is not None and node.op_type == "DequantizeLinear" and all(v is None or v.is_initializer() for v in node.inputs)
    marked = node is not None and FP32_MARK in node.metadata_props
    return unpacked or (marked and all(FP32_MARK in user.metadata_props for user, _ in value.uses()))


def too_large(largest: dict[ir.Value, float]) -> set[ir.Value]:
    """The values that do not fit, with room, and those that such an operator makes as has an inner step that does not."""
    found = {value for value, size in largest.items() if size > LARGEST / _ROOM}
    for value, size in largest.items():
        for user, index in value.uses():
            inside = _INSIDE.get(user.op_type)
            if inside and index == 0 and inside(size) > LARGEST / _ROOM:
                found.add(user.outputs[0])
    return found


def has_no_number(value: ir.Value | None, node: ir.Node) -> bool:
    """Whether a constant that a node reads is another number in fp16, or none. Weights of many sizes count by their largest."""
    if value is None or value.const_value is None or value.dtype != ir.DataType.FLOAT or value.const_value.size == 0:
        return False
    array = np.abs(value.const_value.numpy().astype(np.float64))
    finite = array[np.isfinite(array)]
    if not finite.size or finite.max() == 0:
        return False
    if finite.max() > LARGEST:
        return not all(only_softmax_reads(output) for output in node.outputs)
    return bool(abs(np.float64(np.float16(finite.max())) - finite.max()) > _ROUNDING * finite.max())


def around_constants(graph: ir.Graph) -> set[ir.Value]:
    """The values of the arithmetic around such constants: from a norm's squares over its epsilon to what is divided by the root."""
    found: set[ir.Value] = set()
    for node in graph:
        if FP32_MARK in node.metadata_props or not any(has_no_number(value, node) for value in _operands(node)):
            continue
        found.update(node.outputs)
        found.update(_before(node))
        found.update(_behind(node))
    return found


def _operands(node: ir.Node) -> list[ir.Value | None]:
    if node.op_type == "Resize":  # region and scales are fp32 by definition
        return list(node.inputs[:1])
    return list(node.inputs)


def _before(node: ir.Node) -> Iterator[ir.Value]:
    """What the constant's partner is a reduction or a root of."""
    waiting = [value for value in node.inputs if value is not None]
    while waiting:
        producer = waiting.pop().producer()
        if producer is None or FP32_MARK in producer.metadata_props:
            continue
        square = producer.op_type == "Mul" and producer.inputs[0] is producer.inputs[1]
        if square or producer.op_type in _OF_ONE | _REDUCTIONS:
            yield from producer.outputs
            waiting += [producer.inputs[0]] if producer.inputs[0] is not None else []


def _behind(node: ir.Node) -> Iterator[ir.Value]:
    waiting = list(node.outputs)
    while waiting:
        for user, _ in waiting.pop().uses():
            constant = user.op_type in _WITH_A_CONSTANT and sum(v is not None and v.const_value is None for v in user.inputs) == 1
            if FP32_MARK not in user.metadata_props and (user.op_type in _OF_ONE or constant):
                yield from user.outputs
                waiting += user.outputs


def describe(graph: ir.Graph, wide: set[ir.Value], largest: dict[ir.Value, float]) -> list[KeptPart]:
    """The parts by the layer that they follow, in the graph's order."""
    parts: dict[str, KeptPart] = {}
    for value in [*graph.inputs, *(v for node in graph for v in node.outputs)]:
        if value not in wide:
            continue
        where = _layer_before(value)
        part = parts.setdefault(where, KeptPart(after=where, values=0, largest=0.0, constants=[]))
        part.values += 1
        part.largest = max(part.largest, largest.get(value, 0.0))
        node = value.producer()
        if node is not None:
            constants = {float(v.const_value.numpy().flat[0]) for v in node.inputs if v and v.const_value and has_no_number(v, node)}
            part.constants = sorted({*part.constants, *constants})
    return list(parts.values())


def _layer_before(value: ir.Value) -> str:
    """The layer or input that a value comes from, by the names that the exporters give."""
    waiting, seen = [value], {value}
    while waiting:
        current = waiting.pop(0)
        node = current.producer()
        if node is None:
            return str(current.name)
        if (name := str(node.name).partition("/")[0]) != node.name:
            return name
        fresh = [v for v in node.inputs if v is not None and v.const_value is None and v not in seen]
        seen.update(fresh)
        waiting += fresh
    return str(value.name)
