"""Groups of layers that answer for different things in a picture or video (ViDiT-Q, arXiv 2406.02540, §4.3), seen from how values flow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

import torch
from torch.fx import GraphModule, Interpreter, Node

from ..graph.dataflow import derived
from ..graph.products import GraphLayer
from ..graph.roles import around_product, layers_by_role
from ..graph.shapes import static_shape
from ..methods.method import ATTENTION, FEED_FORWARD, TIME


class Group(StrEnum):
    """Of layers. Attention over the tokens of picture and text together, or over all frames' positions, is self-attention."""

    SELF_ATTENTION = "self-attention"
    CROSS_ATTENTION = "cross-attention"
    TEMPORAL_ATTENTION = "temporal attention"
    FEED_FORWARD = "feed-forward"
    REST = "the rest"


def layers_by_group(graph: GraphModule, layers: Sequence[GraphLayer], inputs: Sequence[torch.Tensor],
                    frame_axis: int | None = None) -> dict[str, Group]:  # fmt: skip
    """The group of each layer of a captured graph, by its name.

    Cross-attention: its keys and values are computed from a condition and not from the sample; what else reads conditions alone, such as
    the projection of a text, belongs to it. Temporal attention: its keys are the frames of one place. ``inputs`` [n, ...] of the graph are
    what that is measured on, and ``frame_axis`` is the frames' dimension of the sample, None for pictures.
    """
    roles, nodes = layers_by_role(graph, layers), {layer.node: layer for layer in layers}
    from_sample, from_condition = _sources(graph)
    attentions = {layer.node: around_product(layer.node, nodes) for layer in layers if layer.probabilities}
    cross = {node for node in attentions if _values(node) in from_condition - from_sample}
    temporal = _temporal(graph, set(attentions) - cross, inputs, frame_axis) if frame_axis is not None else set()
    found = dict.fromkeys((layer.name for layer in layers), Group.REST)
    found |= dict.fromkeys(roles[FEED_FORWARD], Group.FEED_FORWARD) | dict.fromkeys(roles[ATTENTION], Group.SELF_ATTENTION)
    if cross:
        of_condition = {layer.name for node, layer in nodes.items() if node in from_condition - from_sample} - roles[TIME]
        found |= dict.fromkeys(of_condition.union(*(attentions[node] for node in cross)), Group.CROSS_ATTENTION)
    return found | dict.fromkeys(set[str]().union(*(attentions[node] for node in temporal)), Group.TEMPORAL_ATTENTION)


def _sources(graph: GraphModule) -> tuple[set[Node], set[Node]]:
    """Nodes that are computed from the sample, and from a condition."""
    sample, *others = graph.graph.find_nodes(op="placeholder")
    conditions = [node for node in others if node.target != "timestep"]
    return derived(graph, sample), set[Node]().union(*(derived(graph, node) for node in conditions))


def _values(product: Node) -> Node:
    """What the probabilities of attention weigh [N, ..., keys, channels]."""
    node = product.args[1]
    assert isinstance(node, Node)
    return node


@torch.no_grad()
def _temporal(graph: GraphModule, attentions: set[Node], inputs: Sequence[torch.Tensor], axis: int) -> set[Node]:
    """Those whose keys are frames: where one frame of the sample is another, the key of that frame changes most, whichever it is.

    Shapes do not tell: a picture may have as many places as there are frames.
    """
    count = inputs[0].shape[axis]
    possible = {node for node in attentions if _keys(node) > 1 and count % _keys(node) == 0 and _batch_first(node)}
    if not possible:
        return set()
    first, *rest = (value[:1].repeat_interleave(2, dim=0) for value in inputs)
    generator = torch.Generator().manual_seed(0)
    for frame in range(count):
        sample = first.clone()
        other = torch.randn(sample[0].select(axis - 1, frame).shape, generator=generator)
        sample[1].select(axis - 1, frame).copy_(other * sample.std().cpu())
        seen = _Values(graph, possible)
        seen.run(sample, *rest)
        possible = {node for node in possible if seen.most_changed[node] == frame * _keys(node) // count}
    return possible


def _keys(product: Node) -> int:
    return int(static_shape(_values(product).meta["val"])[-2])


def _batch_first(product: Node) -> bool:
    return static_shape(_values(product).meta["val"])[0] == 1


class _Values(Interpreter):
    """Runs a batch of two samples, and sees at which key the values of some attentions differ most between them."""

    def __init__(self, graph: GraphModule, attentions: set[Node]) -> None:
        super().__init__(graph)
        self.attentions = attentions
        self.most_changed: Mapping[Node, int] = {}

    def run_node(self, n: Node) -> Any:
        if n in self.attentions:
            value = self.env[_values(n)]
            change = (value[1] - value[0]).double().pow(2).movedim(-2, 0).flatten(1).sum(dim=1)
            self.most_changed = {**self.most_changed, n: int(change.argmax())}
        return super().run_node(n)
