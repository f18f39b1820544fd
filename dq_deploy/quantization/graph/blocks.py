"""Cutting a graph into blocks that run one after the other, each from values that earlier ones left behind.

A block is a ResNet block, an attention or transformer block or a resampler; what lies between them is cut into single layers.
A module's nodes are contiguous in a captured graph, so a block is a run of nodes, whatever the model's class.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from ...errors import UsageError
from .edit import aten
from .insertion import decode, float_name
from .plan import Plan
from .skip_halves import whole_name

BLOCK_CLASSES = frozenset({
    "Attention", "BasicTransformerBlock", "Downsample2D", "FluxSingleTransformerBlock", "FluxTransformerBlock", "JointTransformerBlock",
    "ResnetBlock2D", "ResnetBlockCondNorm2D", "Upsample2D",
})  # fmt: skip
"""Classes of diffusers that make a block; another model's blocks are named by the caller."""

WHOLE = "whole network"
"""Name of the block that spans everything."""


@dataclass(frozen=True)
class Block:
    """A run of the graph. ``module(timestep, *inputs)`` gives the tuple of ``outputs``; names are those of the float graph."""

    index: int
    name: str
    module: GraphModule
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def layers(self) -> list[str]:
        """Quantized layers in the block."""
        return self._called("layers.")

    @property
    def quantizers(self) -> list[str]:
        """Quantizers that the block calls."""
        return self._called("quantizers.")

    def _called(self, prefix: str) -> list[str]:
        nodes = self.module.graph.nodes
        return list(dict.fromkeys(decode(str(n.target)) for n in nodes if n.op == "call_module" and str(n.target).startswith(prefix)))


def assign_blocks(graph_module: GraphModule, plan: Plan, patterns: Sequence[str] | None = None) -> None:
    """Number the nodes' blocks in ``meta["block"]`` and name them in ``meta["block_name"]``.

    ``patterns`` (fnmatch on module paths) name the blocks of a model that is not from diffusers; None means ``BLOCK_CLASSES``.
    Raises UsageError when a pattern matches no module.
    """
    layer_names = {layer.node: layer.name for layer in plan.layers}
    matched: set[str] = set()
    index, current, first = 0, "", ""
    for node in graph_module.graph.nodes:
        name = _block_of(node, patterns, matched) or whole_name(layer_names.get(node, ""))
        if name and name != current:
            index += 1 if current else 0
            current, first = name, first or name
        node.meta["block"], node.meta["block_name"] = index, current
    for node in graph_module.graph.nodes:  # what comes before the first block belongs to it
        node.meta["block_name"] = node.meta["block_name"] or first
    missing = [p for p in patterns or () if p not in matched]
    if missing:
        raise UsageError(f"no module matches the block pattern {', '.join(map(repr, missing))}")


def _block_of(node: Node, patterns: Sequence[str] | None, matched: set[str]) -> str:
    for path, kind in node.meta.get("stack", ()):  # outermost first
        if patterns is None:
            if kind in BLOCK_CLASSES:
                return str(path)
            continue
        hits = [p for p in patterns if fnmatchcase(path, p)]
        matched.update(hits)
        if hits:
            return str(path)
    return ""


def split_blocks(graph_module: GraphModule) -> list[Block]:
    """The blocks of a graph whose nodes are numbered, in order of execution. They share the graph's modules and tensors."""
    computed = _computed(graph_module)
    last = max(n.meta["block"] for n in graph_module.graph.nodes if n.op != "output")
    return [_extract(graph_module, index, [n for n in computed if n.meta["block"] == index]) for index in range(last + 1)]


def split_before(graph_module: GraphModule, first: Collection[Node]) -> list[Block]:
    """The same cut in front of each of the nodes ``first``: every block but perhaps the first begins with one of them."""
    runs: list[list[Node]] = []
    for node in _computed(graph_module):
        if node in first or not runs:
            runs.append([])
        runs[-1].append(node)
    return [_extract(graph_module, index, run) for index, run in enumerate(runs)]


def whole_network(graph_module: GraphModule) -> Block:
    """The graph as one block."""
    return replace(_extract(graph_module, 0, _computed(graph_module)), name=WHOLE)


def _computed(graph_module: GraphModule) -> list[Node]:
    """The nodes that belong to one block, in order."""
    return [n for n in graph_module.graph.nodes if n.op not in ("placeholder", "get_attr", "output") and not _replicable(n)]


def _extract(graph_module: GraphModule, index: int, own: list[Node]) -> Block:
    """The nodes ``own`` of a graph as a block."""
    nodes = list(graph_module.graph.nodes)
    inside = set(own)
    graph = Graph()
    copies: dict[Node, Node] = {}
    timestep = graph.placeholder("timestep")
    for node in nodes:
        if node.op == "placeholder" and node.target == "timestep":
            copies[node] = timestep
    inputs = sorted({i for n in own for i in _external(n, inside) if i not in copies}, key=nodes.index)
    for node in inputs:
        copies[node] = graph.placeholder(node.name)
    for node in own:
        _copy(node, graph, copies, timestep)
    outputs = [n for n in own if any(_used_outside(user, inside) for user in n.users)]
    graph.output(tuple(copies[n] for n in outputs))
    name = next((n.meta["block_name"] for n in own), f"block {index}")
    return Block(index, name, GraphModule(graph_module, graph), tuple(map(float_name, inputs)), tuple(map(float_name, outputs)))


def _replicable(node: Node) -> bool:
    """Whether a node is copied into every block that reads it: sizes, constants, and quantizers (cheap, and not tensors to store)."""
    if node.op == "get_attr" or "quantizer" in node.meta:
        return True
    value = node.meta.get("val")
    if node.op != "call_function":
        return False
    return not isinstance(value, torch.Tensor) or value.dim() == 0 or not _counts_samples(value.shape[0], node)


def _counts_samples(size: int | torch.SymInt, node: Node) -> bool:
    """Whether the first dimension of a node's value is made of the batch: of positions, say, it may be another size that is free."""
    if isinstance(size, int):
        return False
    sample = node.graph.find_nodes(op="placeholder")[0].meta.get("val")
    batch: Any = sample.shape[0] if isinstance(sample, torch.Tensor) else None
    return not isinstance(batch, torch.SymInt) or bool(size.node.expr.free_symbols & batch.node.expr.free_symbols)


def _is_batch(node: Node) -> bool:
    """Whether a node is the size of the batch: it is taken from an input, as all sizes are (``clean``)."""
    return node.target == aten.sym_size.int and bool(node.args[1] == 0)


def _external(node: Node, inside: set[Node]) -> Iterable[Node]:
    """Values from other blocks that a node needs, looking through what is replicated."""
    if _is_batch(node):
        return
    for source in node.all_input_nodes:
        if source in inside:
            continue
        if _replicable(source):
            yield from _external(source, inside)
        else:
            yield source


def _used_outside(user: Node, inside: set[Node]) -> bool:
    if _is_batch(user):
        return False
    if _replicable(user):  # into its readers' blocks
        return any(_used_outside(reader, inside) for reader in user.users)
    return user not in inside


def _copy(node: Node, graph: Graph, copies: dict[Node, Node], timestep: Node) -> Node:
    if node not in copies:
        if _is_batch(node):
            copies[node] = graph.call_function(aten.sym_size.int, (timestep, 0))
        else:
            for source in node.all_input_nodes:
                _copy(source, graph, copies, timestep)
            copies[node] = graph.node_copy(node, lambda n: copies[n])
    return copies[node]
