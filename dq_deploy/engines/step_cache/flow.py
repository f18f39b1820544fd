"""What depends on what in a graph: the data flow, without what only asks for shapes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from functools import cached_property

import onnx_ir as ir

from ..layer_report import CONTRACTIONS

_SHAPES = ("Shape", "Size")


class Flow:
    """The nodes of a graph in topological order, and what follows from where they stand."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.nodes = list(graph)
        self.place = {node: index for index, node in enumerate(self.nodes)}
        self.inputs = frozenset(graph.inputs)

    @staticmethod
    def is_product(node: ir.Node) -> bool:
        """Whether a node is a convolution or a product of matrices."""
        return node.op_type in CONTRACTIONS

    @cached_property
    def from_sample(self) -> frozenset[ir.Node]:
        """Nodes whose values depend on the sample's, the graph's first input."""
        return self.downstream(values={self.graph.inputs[0]})

    @cached_property
    def repeatable(self) -> frozenset[ir.Node]:
        """Nodes that are computed from timestep, conditions, shapes and tables without a product: each part may do so for itself."""
        from_products = self.downstream(nodes={node for node in self.nodes if self.is_product(node)})
        return frozenset(node for node in self.nodes if node not in self.from_sample and node not in from_products)

    def downstream(self, *, nodes: Collection[ir.Node] = (), values: Collection[ir.Value] = ()) -> frozenset[ir.Node]:
        """``nodes``, and all nodes whose values depend on theirs or on ``values``."""
        reached = set(nodes)
        for node in self.nodes:
            if node not in reached and any(value in values or value.producer() in reached for value in self.read(node)):
                reached.add(node)
        return frozenset(reached)

    def upstream(self, outputs: Iterable[ir.Value], stop: Collection[ir.Value] = ()) -> list[ir.Node]:
        """The nodes that ``outputs`` are computed by, in order, shapes and all, without those behind ``stop``."""
        reached: set[ir.Node] = set()
        left = [value for value in outputs if value not in stop]
        while left:
            node = left.pop().producer()
            if node is not None and node not in reached:
                reached.add(node)
                left += [value for value in node.inputs if value is not None and value not in stop]
        return sorted(reached, key=self.place.__getitem__)

    def depends(self, value: ir.Value, on: ir.Value) -> bool:
        """Whether ``value`` is computed from ``on``."""
        earliest = self.made(on)
        left, seen = [value], {value}
        while left:
            current = left.pop()
            if current is on:
                return True
            node = current.producer()
            if node is not None and self.place[node] > earliest:
                new = [read for read in self.read(node) if read not in seen]
                seen.update(new)
                left += new
        return False

    def made(self, value: ir.Value) -> int:
        """Place of the node that makes a value; -1 of an input."""
        node = value.producer()
        return -1 if node is None else self.place[node]

    @staticmethod
    def read(node: ir.Node) -> Iterator[ir.Value]:
        """The values whose data a node reads."""
        if node.op_type not in _SHAPES:
            yield from (value for value in node.inputs if value is not None)

    def post_dominators(self, sources: frozenset[ir.Node]) -> Iterator[ir.Value]:
        """The values before the output through which all goes that depends on ``sources``, in order.

        Each is the only one of what depends on them that is still to be read when it has been made.
        """
        below = self.downstream(nodes=sources)
        used = set(self.upstream(self.graph.outputs))
        last_read = {value: len(self.nodes) for value in self.graph.outputs}
        for place, node in enumerate(self.nodes):
            if node in used:
                last_read |= {value: place for value in self.read(node) if last_read.get(value, -1) < place}
        begins = max((self.place[node] for node in sources if node in used), default=len(self.nodes))
        alive: set[ir.Value] = set()
        for place, node in enumerate(self.nodes):
            if node in below and node in used:
                alive = {value for value in alive if last_read[value] > place}
                alive |= {value for value in node.outputs if last_read.get(value, -1) > place}
                if place >= begins and len(alive) == 1 and not alive & set(self.graph.outputs):
                    yield next(iter(alive))
