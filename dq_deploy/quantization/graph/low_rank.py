"""Low-rank branches beside linear layers of few bits (SVDQuant, arXiv 2411.05007): W = U·V + R, and only R is quantized.

    y = (x·Vᵀ)·Uᵀ + Q(x)·Q(R)ᵀ + b

U [O, r] and V [r, C] are the largest singular vectors of W [O, C], in fp16. Not only is R smaller than W, and so are its codes' steps: what
rounding x loses is multiplied by R alone. Written into the float graph before anything is quantized, so that whatever calibrates, rounds
or trains sees R, and exporters and engines see two more float products.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.fx import GraphModule, Node

from .edit import Editor, aten, drop_unused_tensors
from .products import GraphLayer, frames_of
from .shapes import static_shape

SUFFIXES = ("#down", "#up")
"""What the names of a branch's two products end in: by V, and by U."""
_MOST_BITS = 4
_MORE, _POWERS = 8, 4  # of the randomized decomposition: more vectors than are taken, and power iterations


def branched(layers: Iterable[GraphLayer], rank: int, last: Node | None) -> list[GraphLayer]:
    """The layers that a branch of ``rank`` is for: linear ones of up to 4 bits that stay smaller with it than they are in 8.

    ``last``: the node whose output is the network's, which stays that.
    """
    narrow = [layer for layer in layers if layer.op == "linear" and not layer.float_reason and layer.weight_bits <= _MOST_BITS]
    return [layer for layer in narrow if layer.node is not last and pays(layer, rank)]


def pays(layer: GraphLayer, rank: int) -> bool:
    """Whether half a byte for each weight [O, C] and fp16 for U [O, r] and V [r, C] are less than a byte for each weight."""
    outputs, inputs = static_shape(layer.node.args[1].meta["val"])  # type: ignore[union-attr]
    return 2 * rank * (outputs + inputs) < outputs * inputs / 2


def branch_off(graph_module: GraphModule, layers: Iterable[GraphLayer], rank: int) -> None:
    """Give each of the linear ``layers`` of a float graph a branch, in place: the graph computes what it did, but for fp32's last bits."""
    for layer in layers:
        _branch(graph_module, layer.node, layer.name, rank)
    graph_module.graph.eliminate_dead_code()
    drop_unused_tensors(graph_module)
    graph_module.recompile()


def _branch(graph_module: GraphModule, node: Node, name: str, rank: int) -> None:
    x, weight = node.args[:2]
    assert isinstance(weight, Node)
    emit = Editor(graph_module, node)
    up, down = decomposed(graph_module.get_buffer(str(weight.target)), rank)
    rest = graph_module.get_buffer(str(weight.target)) - up @ down
    low = x
    for factor, suffix in zip((down, up), SUFFIXES, strict=True):
        low = emit(aten.linear.default, low, emit.constant(f"{weight.target}{suffix}", factor))
        low.meta |= {"path": f"{name}{suffix}", "frames": frames_of(node), "branch": name}
    product = emit(aten.linear.default, x, emit.constant(f"{weight.target}#rest", rest), *node.args[2:], **node.kwargs)
    product.meta |= {"path": name, "frames": frames_of(node)}
    emit.replace(emit(aten.add.Tensor, product, low))


def decomposed(weight: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """U [O, r] and V [r, C] whose product is nearest to ``weight`` [O, C] among those of this rank, as fp16 has them, in fp32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the decomposition starts from random vectors
        size = min(rank + _MORE, *weight.shape)
        u, s, v = torch.svd_lowrank(weight.double(), q=size, niter=_POWERS)
    root = s[:rank].sqrt()
    return (u[:, :rank] * root).half().float(), (v[:, :rank] * root).T.half().float().contiguous()
