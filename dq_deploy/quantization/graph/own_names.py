"""Names of a captured graph: its nodes know their modules, and its tensors are under the user's own names."""

from __future__ import annotations

import keyword
import operator

import torch
from torch import nn
from torch.fx import Graph, GraphModule, Node

from ...errors import ArtifactError
from .edit import set_tensor
from .exporting import BoundToBatchError, source_line

_PREFIX = "module."
_RESERVED = frozenset(dir(GraphModule(nn.Module(), Graph())))


def name_nodes(graph_module: GraphModule, names: list[str]) -> None:
    """Name the placeholders and put every node's module path and class into its meta."""
    placeholders = graph_module.graph.find_nodes(op="placeholder")
    for node, name in zip(placeholders, names, strict=True):
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor) and isinstance(value.shape[0], int):
            raise BoundToBatchError(f"it fixes the batch size of input '{name}' at {value.shape[0]}")
        node._rename(name)
        node.target = name
    for node in graph_module.graph.nodes:
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        frames = [(path.removeprefix("module").lstrip("."), kind) for path, kind in stack if path.startswith("module")]
        node.meta["path"] = frames[-1][0] if frames else ""
        node.meta["stack"] = [(path, str(kind).rsplit(".", 1)[-1]) for path, kind in frames]


def rehome(graph_module: GraphModule) -> GraphModule:
    """Rebuild with plain calling conventions and the tensors under the user's own names (without the wrapper's prefix)."""
    root = nn.Module()
    graph = Graph()
    copies: dict[Node, Node] = {}
    names: dict[str, str] = {}
    for node in graph_module.graph.nodes:
        if node.op == "output":
            value = node.args[0]
            graph.output(copies[value[0] if isinstance(value, tuple | list) else value])
            break
        copy = copies[node] = graph.node_copy(node, lambda n: copies[n])
        if node.op == "get_attr":
            tensor = operator.attrgetter(str(node.target))(graph_module)
            if not isinstance(tensor, torch.Tensor):
                raise ArtifactError(
                    f"the captured model has control flow in it ({node.target}), which no integer graph can hold{_first_reader(node)}"
                )
            copy.target = names.setdefault(str(node.target), _free_name(str(node.target).removeprefix(_PREFIX), set(names.values())))
            set_tensor(root, copy.target, tensor.detach())
    return GraphModule(root, graph)


def _first_reader(node: Node) -> str:
    return source_line(min(node.users)) if node.users else ""


def _free_name(name: str, taken: set[str]) -> str:
    """A tensor's name without parts that a GraphModule has an attribute of, or that Python's grammar has a use for."""
    parts = [part + "_" if part in _RESERVED or keyword.iskeyword(part) else part for part in name.split(".")]
    while ".".join(parts) in taken:
        parts[-1] += "_"
    return ".".join(parts)
