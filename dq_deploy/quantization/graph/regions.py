"""Parts of a forward under autocast, or with and without gradients, as nodes of the graph that they are parts of.

torch.export makes a graph of each, which a call in the outer graph runs. They are not control flow: what is in them runs always.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node, map_arg

from .edit import aten

_GRADIENTS = "wrap_with_set_grad_enabled"  # (enabled, graph, *operands)
_AUTOCAST = "wrap_with_autocast"  # (device, dtype, enabled, cache, graph, *operands)
_CASTS = (aten.to.dtype, aten._to_copy.default, aten.to.dtype_layout, aten.to.device, aten.type_as.default)


def inline_regions(graph_module: GraphModule) -> None:
    """Put the nodes of every region in the place of its call, in place; autocast's casts become nodes."""
    while regions := [n for n in graph_module.graph.nodes if _first_operand(n)]:
        for node in regions:
            _inline(graph_module, node)
    graph_module.recompile()


def _first_operand(node: Node) -> int:
    """Position of a region's first operand, right after its graph; 0 for any other node."""
    name = str(node.target) if node.op == "call_function" else ""
    return 2 if _GRADIENTS in name else 5 if _AUTOCAST in name else 0


def _inline(graph_module: GraphModule, call: Node) -> None:
    first = _first_operand(call)
    holder = call.args[first - 1]
    assert isinstance(holder, Node)
    inner = operator.attrgetter(str(holder.target))(graph_module)
    casts = _AUTOCAST in str(call.target) and bool(call.args[2])
    placeholders = inner.graph.find_nodes(op="placeholder")
    copies: dict[Node, Any] = dict(zip(placeholders, call.args[first:], strict=True))
    results: Any = ()
    with graph_module.graph.inserting_before(call):
        for node in inner.graph.nodes:
            if node.op == "output":
                results = map_arg(node.args[0], lambda n: copies[n])
            elif node.op == "get_attr":  # a graph in the graph, for the next round
                name = _free(graph_module, f"{holder.target}_{node.target}")
                setattr(graph_module, name, operator.attrgetter(str(node.target))(inner))
                copies[node] = graph_module.graph.get_attr(name)
            elif node.op != "placeholder":
                copies[node] = graph_module.graph.node_copy(node, lambda n: copies[n])
                if casts:
                    _cast(graph_module.graph, copies[node])
    for reader in list(call.users):
        assert reader.target is operator.getitem
        reader.replace_all_uses_with(results[reader.args[1]])
        graph_module.graph.erase_node(reader)
    graph_module.graph.erase_node(call)
    if not holder.users:
        graph_module.graph.erase_node(holder)


def _free(graph_module: GraphModule, name: str) -> str:
    name = name.replace(".", "_")
    while hasattr(graph_module, name):
        name += "_"
    return name


def _cast(graph: Graph, node: Node) -> None:
    """Cast a node's operands as autocast would have: to the type that its value has, where it would have another without."""
    value = node.meta.get("val")
    floats = [n for n in node.all_input_nodes if _floating(n)]
    if not isinstance(value, torch.Tensor) or not value.is_floating_point() or node.target in _CASTS or not floats:
        return
    args, kwargs = map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    try:
        plain = node.target(*args, **kwargs)  # type: ignore[operator]
        if isinstance(plain, torch.Tensor) and plain.dtype == value.dtype:
            return
    except RuntimeError:  # of types that do not go together
        pass
    for operand in floats:
        if operand.meta["val"].dtype != value.dtype:
            with graph.inserting_before(node):
                cast = graph.call_function(aten.to.dtype, (operand, value.dtype))
            cast.meta = {**node.meta, "val": operand.meta["val"].to(value.dtype)}
            node.replace_input_with(operand, cast)


def _floating(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_floating_point()
