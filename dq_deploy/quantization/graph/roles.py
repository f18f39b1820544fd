"""What a layer is for, seen from how values flow and not from its name: so a recipe fits networks of any architecture."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterable, Sequence

from torch.fx import GraphModule, Node

from ..methods.method import ATTENTION, FEED_FORWARD, TIME
from .dataflow import derived
from .edit import aten
from .moves import MOVES
from .products import GraphLayer

_FUNCTIONS = {
    aten.silu.default, aten.gelu.default, aten.relu.default, aten.relu_.default, aten.mish.default, aten.sigmoid.default,
    aten.hardswish.default, aten.leaky_relu.default, aten.elu.default,
}  # fmt: skip
_BETWEEN = MOVES | {operator.getitem, operator.mul, aten.mul.Tensor, aten.dropout.default, aten.to.dtype}


def assign_roles(graph_module: GraphModule, layers: Sequence[GraphLayer]) -> None:
    """Write every layer's roles into its node's ``meta["roles"]``, from where they follow into the quantized graph."""
    found = layers_by_role(graph_module, layers)
    for layer in layers:
        layer.node.meta["roles"] = frozenset(role for role, names in found.items() if layer.name in names)


def layers_by_role(graph_module: GraphModule, layers: Sequence[GraphLayer]) -> dict[str, set[str]]:
    """Names of the layers of a captured graph by role; a layer has one, or none.

    ``@time``: what it reads depends on the timestep and not on the sample (embeddings, their projections, adaptive norms).
    ``@attention``: a product of two activations, and the layers that make its operands or read its result.
    ``@feed-forward``: a pair of linear layers with nothing but an activation function between them.
    """
    nodes = {layer.node: layer for layer in layers}
    time = _of_time(graph_module, nodes)
    attention = _of_attention(nodes) - time
    return {TIME: time, ATTENTION: attention, FEED_FORWARD: _of_feed_forward(nodes) - time - attention}


def _of_time(graph_module: GraphModule, nodes: dict[Node, GraphLayer]) -> set[str]:
    inputs = graph_module.graph.find_nodes(op="placeholder")
    timestep = next(node for node in inputs if node.target == "timestep")
    late, spatial = derived(graph_module, timestep), derived(graph_module, inputs[0])
    return {layer.name for node, layer in nodes.items() if node in late and node not in spatial}


def _of_attention(nodes: dict[Node, GraphLayer]) -> set[str]:
    products = [node for node, layer in nodes.items() if layer.op == "matmul"]
    return set[str]().union(*(_beside(product, nodes) for product in products))


def around_product(product: Node, nodes: dict[Node, GraphLayer]) -> set[str]:
    """Names of the layers of one attention, from the ``product`` that weighs values by probabilities: also the product that makes these."""
    scores = [n for n in _operands(product, nodes) if nodes[n].op == "matmul"]
    return set[str]().union(*(_beside(node, nodes) for node in (product, *scores)))


def _beside(product: Node, nodes: dict[Node, GraphLayer]) -> set[str]:
    """Names of a product of two activations, of the layers that make its operands, and of those that read its result as it is."""
    readers = _reached(product.users, lambda n: list(n.users) if n.target in MOVES else [], nodes)
    return {nodes[n].name for n in {product, *_operands(product, nodes), *readers}}


def _operands(product: Node, nodes: dict[Node, GraphLayer]) -> set[Node]:
    return _reached(product.all_input_nodes, lambda n: n.all_input_nodes, nodes)


def _of_feed_forward(nodes: dict[Node, GraphLayer]) -> set[str]:
    found = set()
    for node, layer in nodes.items():
        if layer.op != "linear":
            continue
        passed: set[Node] = set()

        def on(n: Node, passed: set[Node] = passed) -> list[Node]:
            if n.target in _FUNCTIONS:
                passed.add(n)
            return list(n.users) if n.target in _FUNCTIONS | _BETWEEN else []

        seconds = [n for n in _reached(node.users, on, nodes) if nodes[n].op == "linear"]
        if seconds and passed:
            found |= {layer.name, *(nodes[n].name for n in seconds)}
    return found


def _reached(start: Iterable[Node], step: Callable[[Node], Collection[Node]], nodes: Collection[Node]) -> set[Node]:
    """The first of ``nodes`` on every way that ``step`` goes from ``start``."""
    waiting, seen, found = list(start), set[Node](), set[Node]()
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if node in nodes:
            found.add(node)
        else:
            waiting += step(node)
    return found
