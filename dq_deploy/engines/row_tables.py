"""How many rows the table has that an integer input selects from: an embedding of classes, say.

PyTorch refuses a row that is not there. OpenVINO gives zeros, and ONNX takes a negative row from the table's end: so what there is must be
known beforehand.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_ONNX_MOVES = ("Cast", "Expand", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")
_OPENVINO_MOVES = ("Broadcast", "Convert", "Reshape", "Squeeze", "Unsqueeze")


def rows_in_onnx(model: Any) -> dict[str, int]:
    """By input of an ONNX model: the rows of the smallest table that it selects from; inputs that select none are left out."""
    graph = model.graph
    tables = {tensor.name: tensor.dims for tensor in graph.initializer}
    follows: dict[str, str] = {value.name: value.name for value in graph.input if value.name not in tables}
    rows: dict[str, int] = {}
    for node in graph.node:  # in topological order, as ONNX has it
        first = node.input[0] if node.input else ""
        if node.op_type in _ONNX_MOVES and first in follows:
            follows[node.output[0]] = follows[first]
        elif node.op_type == "Gather" and node.input[1] in follows and first in tables:
            axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
            _keep(rows, follows[node.input[1]], tables[first][axis])
    return rows


def rows_in_openvino(model: Any) -> dict[str, int]:
    """The same of a model that OpenVINO has read."""
    rows: dict[str, int] = {}
    for port in model.inputs:
        for gather in _gathers(port):
            axis = gather.input_value(2).get_node()
            size = gather.input_value(0).get_partial_shape()
            if axis.get_type_name() == "Constant" and size.rank.is_static:
                rows_there = size[int(axis.get_data().reshape(-1)[0])]
                if rows_there.is_static:
                    _keep(rows, port.any_name, rows_there.get_length())
    return rows


def _gathers(port: Any) -> Iterator[Any]:
    for target in port.get_target_inputs():
        node = target.get_node()
        if node.get_type_name() == "Gather" and target.get_index() == 1:
            yield node
        elif node.get_type_name() in _OPENVINO_MOVES and target.get_index() == 0:
            yield from _gathers(node.output(0))


def _keep(rows: dict[str, int], name: str, count: int) -> None:
    rows[name] = min(count, rows.get(name, count))
