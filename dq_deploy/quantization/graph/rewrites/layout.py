"""The batch as the first dimension of every product's operands, so that a row of the scale tables can be selected for each sample.

Heads folded into the batch ([N·H, T, D]), tokens of all samples in one matrix ([N·T, C]) and sequence-first layers ([T, N, C]) hide it.
So do a video's frames ([N·F, C, H, W]), which a convolution leaves no other place: its operand keeps them there, those of a sample one
after the other, and ``meta["frames"]`` of the product says how many.
Shapes alone do not say where a sample lies (N·T may run through the samples first or last), so it is measured: a batch of three whose
first and last samples are equal is run through the graph, and a layout is right if it finds equal values for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Interpreter, Node

from ..edit import Editor, aten, batch_size, multiple_of_batch

_PRODUCTS = {aten.linear.default: 1, aten.matmul.default: 2, aten.conv2d.default: 1}  # operator → operands that are activations
_SUMMED = {aten.linear.default: 1, aten.matmul.default: 2, aten.conv2d.default: 3}  # last dimensions that are no place for samples
_SAMPLES = 3


@dataclass(frozen=True)
class Layout:
    """Dimension ``dim`` of an operand holds (outer, N, inner), of which outer and inner may be 1."""

    dim: int
    outer: int
    inner: int

    def split(self, sizes: Sequence[Any], samples: Any) -> list[Any]:
        """The operand's sizes with ``dim`` taken apart."""
        before, after = ([part] if part != 1 else [] for part in (self.outer, self.inner))
        return [*sizes[: self.dim], *before, samples, *after, *sizes[self.dim + 1 :]]

    @property
    def samples(self) -> int:
        """The dimension of the samples after that."""
        return self.dim + int(self.outer != 1)

    def order(self, rank: int) -> list[int]:
        """The permutation that puts the samples first, for a value that has been split into ``rank`` dimensions."""
        return [self.samples, *(i for i in range(rank) if i != self.samples)]


def batch_first(graph_module: GraphModule, inputs: Sequence[torch.Tensor]) -> None:
    """Rewrite products whose operands do not begin with the batch, in place. ``inputs`` [2, ...] are two samples that differ.

    A product that no layout fits is left alone; the planner names it.
    """
    batch = batch_size(graph_module).meta["val"]
    hidden = {n for n in graph_module.graph.nodes if n.target in _PRODUCTS and any(_hidden(x, batch) for x in _operands(n))}
    if not hidden:
        return
    finder = _Finder(graph_module, hidden, batch)
    finder.run(*[t[torch.arange(_SAMPLES) % 2] for t in inputs])
    for node, layout in finder.found.items():
        (_fold_frames if node.target == aten.conv2d.default else _rewrite)(Editor(graph_module, node), node, layout)
    graph_module.graph.eliminate_dead_code()
    graph_module.recompile()


def _operands(node: Node) -> list[Node]:
    return [x for x in node.args[: _PRODUCTS[node.target]] if isinstance(x, Node)]  # type: ignore[index]


def _hidden(x: Node, batch: Any) -> bool:
    shape = x.meta["val"].shape
    return multiple_of_batch(shape[0], batch) != 1 and any(multiple_of_batch(size, batch) for size in shape)


class _Finder(Interpreter):
    """Runs the graph and looks for one layout that fits all operands of each product."""

    def __init__(self, module: GraphModule, products: set[Node], batch: Any) -> None:
        super().__init__(module)
        self.products, self.batch = products, batch
        self.found: dict[Node, Layout] = {}

    def run_node(self, n: Node) -> Any:
        if n in self.products:
            operands = _operands(n)
            for layout in _layouts(operands, self.batch, summed=_SUMMED[n.target]):  # type: ignore[index]
                if all(_fits(self.env[x], layout) for x in operands):
                    self.found[n] = layout
                    break
        return super().run_node(n)


def _layouts(operands: list[Node], batch: Any, *, summed: int) -> Iterator[Layout]:
    """Every way in which the first operand's dimensions (but the ``summed`` last ones) could hold the samples, outermost first."""
    shape = operands[0].meta["val"].shape
    for dim, size in enumerate(shape[:-summed]):
        count = multiple_of_batch(size, batch)
        same = all(x.meta["val"].dim() == len(shape) and str(x.meta["val"].shape[dim]) == str(size) for x in operands)
        if count and same:
            for outer in range(1, count + 1):
                if count % outer == 0:
                    yield Layout(dim, outer, count // outer)


def _fits(x: torch.Tensor, layout: Layout) -> bool:
    """Whether the first and the last sample are equal in this layout."""
    x = x.detach().reshape(layout.split(x.shape, _SAMPLES))
    first, last = (x.select(layout.samples, sample) for sample in (0, _SAMPLES - 1))
    return torch.allclose(first, last, rtol=1e-3, atol=1e-4 * float(x.abs().max()))


def _rewrite(emit: Editor, node: Node, layout: Layout) -> None:
    batch = batch_size(emit.graph_module)
    operands = _operands(node)
    moved = []
    for x in operands:
        split = layout.split(emit.sizes(x), batch)
        moved.append(emit.permute(emit.reshape(x, split), layout.order(len(split))))
    product = emit(node.target, *moved, *node.args[len(operands) :], **node.kwargs)  # type: ignore[arg-type]
    order = layout.order(product.meta["val"].dim())
    restored = emit.permute(product, [order.index(i) for i in range(len(order))])
    emit.replace(emit.reshape(restored, emit.sizes(node)))


def _fold_frames(emit: Editor, node: Node, layout: Layout) -> None:
    """Let the frames of each sample lie together in the batch of a convolution, and mark it with their number."""
    x, frames = _operands(node)[0], layout.outer * layout.inner
    if layout.outer == 1:
        node.meta["frames"] = frames
        return
    split = layout.split(emit.sizes(x), batch_size(emit.graph_module))
    order = layout.order(len(split))
    folded = emit.reshape(emit.permute(emit.reshape(x, split), order), emit.sizes(x))
    product = emit(node.target, folded, *node.args[1:], **node.kwargs)  # type: ignore[arg-type]
    product.meta["frames"] = frames
    sizes = layout.split(emit.sizes(product), batch_size(emit.graph_module))
    moved = emit.reshape(product, [sizes[i] for i in order])
    emit.replace(emit.reshape(emit.permute(moved, [order.index(i) for i in range(len(order))]), emit.sizes(node)))
