"""How many entries the table has that an integer input selects from: an embedding of classes, say.

PyTorch refuses an entry that does not exist. OpenVINO gives zeros, and ONNX takes a negative index from the table's end.
So the number must be known beforehand.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_ONNX_MOVES = ("Cast", "Expand", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")
_OPENVINO_MOVES = ("Broadcast", "Convert", "Reshape", "Squeeze", "Unsqueeze")


def entries_in_onnx(model: Any) -> dict[str, int]:
    """By input of an ONNX model: the entries of the smallest table that it selects from; inputs that select from none are left out."""
    graph = model.graph
    tables = {tensor.name: tensor.dims for tensor in graph.initializer}
    follows: dict[str, str] = {value.name: value.name for value in graph.input if value.name not in tables}
    entries: dict[str, int] = {}
    for node in graph.node:  # in topological order, as ONNX has it
        first = node.input[0] if node.input else ""
        if node.op_type in _ONNX_MOVES and first in follows:
            follows[node.output[0]] = follows[first]
        elif node.op_type == "Gather" and node.input[1] in follows and first in tables:
            axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
            _keep(entries, follows[node.input[1]], tables[first][axis])
    return entries


def entries_in_openvino(model: Any) -> dict[str, int]:
    """The same of a model that OpenVINO has read."""
    entries: dict[str, int] = {}
    for port in model.inputs:
        for gather in _gathers(port):
            axis = gather.input_value(2).get_node()
            size = gather.input_value(0).get_partial_shape()
            if axis.get_type_name() == "Constant" and size.rank.is_static:
                count = size[int(axis.get_data().reshape(-1)[0])]
                if count.is_static:
                    _keep(entries, port.any_name, count.get_length())
    return entries


def _gathers(port: Any) -> Iterator[Any]:
    for target in port.get_target_inputs():
        node = target.get_node()
        if node.get_type_name() == "Gather" and target.get_index() == 1:
            yield node
        elif node.get_type_name() in _OPENVINO_MOVES and target.get_index() == 0:
            yield from _gathers(node.output(0))


def _keep(entries: dict[str, int], name: str, count: int) -> None:
    entries[name] = min(count, entries.get(name, count))
