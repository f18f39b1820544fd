"""How far a value reaches in a captured graph."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch.fx import GraphModule, Node

from .edit import aten

OF_ANY_VALUE = frozenset({
    aten.new_zeros.default, aten.new_ones.default, aten.new_full.default, aten.zeros_like.default, aten.ones_like.default,
    aten.full_like.default,
})  # fmt: skip
"""Operators of whose first argument only the type and maybe the shape count."""

_AS_ANOTHER = frozenset({aten.expand_as.default, aten.view_as.default, aten.reshape_as.default, aten.type_as.default, aten.to.other})


def value_sources(node: Node) -> list[Node]:
    """The arguments whose values a node's value depends on: a size, or zeros of the same shape, say nothing of them."""
    if isinstance(node.meta.get("val"), torch.SymInt) or node.target in OF_ANY_VALUE:
        return []
    return node.all_input_nodes[:1] if node.target in _AS_ANOTHER else node.all_input_nodes


def derived(graph_module: GraphModule, source: Node) -> set[Node]:
    """Nodes whose values are computed from those of ``source``, and itself."""
    found = {source}
    for node in graph_module.graph.nodes:
        if any(x in found for x in value_sources(node)):
            found.add(node)
    return found


def unmixed(graph_module: GraphModule, source: Node, products: Collection[Node]) -> set[Node]:
    """Nodes that hold the values of ``source`` as no product has mixed them: scaled, shifted, padded, moved, or as functions of them.

    A sum with what a product made of them is mixed. A concatenation is not, as long as one of its parts is not.
    """
    pure: set[Node] = {source}
    mixed: set[Node] = set()
    for node in graph_module.graph.nodes:
        sources = set(value_sources(node))
        if node in products:
            mixed |= {node} if sources & (pure | mixed) else set()
        elif sources & mixed and not (node.target == aten.cat.default and sources & pure):
            mixed.add(node)
        elif sources & pure:
            pure.add(node)
    return pure
