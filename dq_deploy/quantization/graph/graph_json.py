"""An FX graph as JSON and back: the checkpoint carries its own forward, and loading it runs no code from disk.

Only ATen operators, Python's ``operator`` module and the integer layers of this package can stand in a graph file.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Graph, Node

from ...errors import ArtifactError

_KINDS = ("placeholder", "get_attr", "call_function", "call_module", "output")
_OPERATORS = {name: getattr(operator, name) for name in ("add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "getitem")}


def dump_graph(graph: Graph) -> list[dict[str, Any]]:
    """The nodes in order, as JSON values."""
    return [
        {
            "name": node.name,
            "op": node.op,
            "target": _target_name(node),
            "args": [_encode(a) for a in node.args],
            "kwargs": {k: _encode(v) for k, v in node.kwargs.items()},
            "path": node.meta.get("path", ""),
            "layer": node.meta.get("layer", "") if node.op == "call_function" else "",
        }
        for node in graph.nodes
    ]


def _target_name(node: Node) -> str:
    if node.op != "call_function":
        return str(node.target)
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target)
    return f"operator.{node.target.__name__}"  # type: ignore[union-attr]


def _encode(value: Any) -> Any:
    if isinstance(value, Node):
        return {"node": value.name}
    if isinstance(value, list | tuple):
        return [_encode(v) for v in value]
    if isinstance(value, torch.dtype | torch.device | torch.memory_format | torch.layout):
        return {"torch": str(value).removeprefix("torch.")}
    if value in (float("inf"), float("-inf")):
        return {"float": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ArtifactError(f"the graph has an argument of type {type(value).__name__}, which a checkpoint cannot hold")


def load_graph(nodes: list[dict[str, Any]]) -> Graph:
    """Rebuild a graph. Raises ArtifactError on a malformed entry or an operator outside the allowed ones."""
    graph = Graph()
    made: dict[str, Node] = {}
    for entry in nodes:
        try:
            args = tuple(_decode(a, made) for a in entry["args"])
            kwargs = {k: _decode(v, made) for k, v in entry["kwargs"].items()}
            if entry["op"] not in _KINDS:
                raise KeyError(f"unknown kind '{entry['op']}'")
            target = _resolve(entry["target"]) if entry["op"] == "call_function" else entry["target"]
            if entry["op"] == "output":
                node = graph.output(args[0])
            else:
                node = graph.create_node(entry["op"], target, args, kwargs, name=entry["name"])
            node.meta["path"], node.meta["layer"] = entry["path"], entry["layer"]
            made[entry["name"]] = node
        except (KeyError, TypeError, AttributeError, IndexError, AssertionError) as error:
            name = entry.get("name", "?") if isinstance(entry, dict) else "?"
            raise ArtifactError(f"graph.json: node '{name}' is malformed ({type(error).__name__}: {error})") from None
    return graph


def _resolve(name: str) -> Any:
    namespace, _, rest = name.partition(".")
    if namespace == "operator" and rest in _OPERATORS:
        return _OPERATORS[rest]
    parts = rest.split(".")
    if namespace == "aten" and len(parts) == 2:
        packet = getattr(torch.ops.aten, parts[0], None)
        overload = getattr(packet, parts[1], None)
        if isinstance(overload, torch._ops.OpOverload):
            return overload
    raise ArtifactError(f"graph.json: operator '{name}' is not allowed or not known to this torch {torch.__version__}")


def _decode(value: Any, made: dict[str, Node]) -> Any:
    if isinstance(value, list):
        return [_decode(v, made) for v in value]
    if isinstance(value, dict):
        (kind, content), *more = value.items()
        if more:
            raise KeyError(f"unknown argument {value}")
        if kind == "node":
            return made[content]
        if kind == "float":
            return float(content)
        if kind == "torch":
            found = getattr(torch, content, None)
            if isinstance(found, torch.dtype | torch.memory_format | torch.layout):
                return found
            return torch.device(content)
        raise KeyError(f"unknown argument kind '{kind}'")
    return value
