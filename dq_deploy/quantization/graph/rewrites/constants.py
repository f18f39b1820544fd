"""What is computed from parameters alone as the constant that it is: weights (standardized, reparametrized, transposed) and products."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node, map_arg

from ..dataflow import OF_ANY_VALUE
from ..edit import Editor, aten

_LAYERS = (aten.conv2d.default, aten.conv2d.padding, aten.linear.default)


def is_constant(node: Node) -> bool:
    """Whether a tensor depends on parameters alone, and not on the model's inputs."""
    # With a list of its own, not by recursion: a value at the end of a deep network has thousands of others behind it.
    waiting, seen = [node], set()
    while waiting:
        current = waiting.pop()
        if current in seen or current.op == "get_attr":
            continue
        seen.add(current)
        if current.op != "call_function" or "rand" in str(current.target) or "dropout" in str(current.target):
            return False
        if current.target not in OF_ANY_VALUE:
            waiting += current.all_input_nodes
        elif not all(isinstance(size, int) for size in current.meta["val"].shape):
            return False
    return True


def fold_weights(graph_module: GraphModule) -> None:
    """Replace every computed constant weight and bias of a convolution or linear layer by a buffer, in place."""
    for node in list(graph_module.graph.nodes):
        if node.target not in _LAYERS:
            continue
        for position, kind in ((1, "weight"), (2, "bias")):
            value = node.args[position] if len(node.args) > position else None
            if isinstance(value, Node) and value.op != "get_attr" and is_constant(value):
                name = f"{node.meta.get('path') or node.name}.{kind}_folded"
                folded = Editor(graph_module, node).constant(name, evaluate(graph_module, value, {}))
                node.update_arg(position, folded)
    graph_module.graph.eliminate_dead_code()
    graph_module.recompile()


def fold_products(graph_module: GraphModule) -> None:
    """Replace every product of constants, such as a layer on a grid of positions, by its value: nothing is multiplied as the graph runs."""
    for node in list(graph_module.graph.nodes):
        if node.target in (*_LAYERS, aten.matmul.default) and is_constant(node):
            name = f"{node.meta.get('path') or node.name}.product"
            node.replace_all_uses_with(Editor(graph_module, node).constant(name, evaluate(graph_module, node, {})))
    graph_module.graph.eliminate_dead_code()
    graph_module.recompile()


@torch.no_grad()
def evaluate(graph_module: GraphModule, node: Node, known: dict[Node, Any]) -> Any:
    """The value of a node that depends on parameters alone; ``known`` are those of other nodes, and gets what is computed on the way."""
    if node in known:
        return known[node]
    if node.op == "get_attr":
        return graph_module.get_buffer(str(node.target))
    if node.target in OF_ANY_VALUE:  # of the first argument only the type and maybe the shape count
        like = node.all_input_nodes[0]
        shape = like.meta["val"].shape if "like" in str(node.target) else [0]
        known = {**known, like: torch.zeros(shape, dtype=like.meta["val"].dtype)}
    args, kwargs = map_arg((node.args, node.kwargs), lambda n: evaluate(graph_module, n, known))
    value = node.target(*args, **kwargs)  # type: ignore[operator]
    known[node] = value.contiguous() if isinstance(value, torch.Tensor) else value
    return known[node]
