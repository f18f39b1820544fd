"""Layers whose input is a concatenation of two ranges (a UNet's skips): one quantizer over both, or one for each half.

W·[a; b] = W_a·a + W_b·b: split, a layer becomes two that are summed, each with its own scales, zero-points and dilation. As many
multiplications, one addition more; the integer engines run two convolutions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch.fx import GraphModule, Node

from ..choices import SkipHalves
from .dataflow import derived
from .edit import Editor, aten, drop_unused_tensors
from .low_rank import SUFFIXES as BRANCHES
from .moves import MOVES, origins
from .products import frames_of
from .shapes import static_shape

SUFFIXES = ("#h", "#skip")
"""What the halves' names end in: the first operand of the concatenation (the main path, wherever people write one), and the second."""

# One tensor in, the same channels out: any position's output depends on its own channel, or on a norm's group.
_KEEPERS = frozenset({
    aten.silu.default, aten.relu.default, aten.gelu.default, aten.leaky_relu.default, aten.elu.default, aten.mish.default,
    aten.tanh.default, aten.sigmoid.default, aten.hardswish.default, aten.softplus.default, aten.group_norm.default,
    aten.layer_norm.default, aten.batch_norm.default, aten.instance_norm.default, aten.rms_norm.default, aten.avg_pool2d.default,
    aten.max_pool2d.default, aten.upsample_nearest2d.vec, aten.upsample_bilinear2d.vec, aten.constant_pad_nd.default, aten.pad.default,
})  # fmt: skip
_MODULATIONS = frozenset({aten.mul.Tensor, aten.div.Tensor, aten.add.Tensor, aten.sub.Tensor})


@dataclass(frozen=True)
class _Reader:
    """A layer that reads a concatenation. ``channels`` of its halves along ``axis`` of its input; why it cannot be split."""

    node: Node
    axis: int
    channels: list[int]
    direct: bool = False  # nothing lies between the concatenation and the layer
    reason: str | None = None


def arrange_skip_halves(graph_module: GraphModule, mode: SkipHalves) -> dict[str, Any]:
    """Split the layers that read a concatenation, in place, if ``mode`` says so. Gives the manifest's entry.

    Both halves must come from the model's sample: the sine and the cosine of a timestep have one range.
    """
    readers = list(_readers(graph_module))
    entry: dict[str, Any] = {"mode": mode.value, "split": [], "joint": []}
    for reader in readers:
        name, reason = str(reader.node.meta["path"]), reader.reason
        if mode is SkipHalves.JOINT or reason:
            entry["joint"].append({"layer": name, "channels": reader.channels, "reason": reason or "skip_halves=joint"})
            continue
        _split(Editor(graph_module, reader.node), reader)
        entry["split"].append({"layer": name, "channels": reader.channels, "halves": [name + suffix for suffix in SUFFIXES]})
    graph_module.graph.eliminate_dead_code()
    drop_unused_tensors(graph_module)
    graph_module.recompile()
    return entry


def whole_name(layer: str) -> str:
    """The name of the layer that a half or a low-rank branch is a part of; any other name as it is."""
    return next((layer.removesuffix(s) for s in (*SUFFIXES, *BRANCHES) if layer.endswith(s)), layer)


def name_matches(layer: str, pattern: str) -> bool:
    """Whether an fnmatch pattern means the layer: by its own name, or by that of the layer that it is a part of."""
    return fnmatchcase(layer, pattern) or fnmatchcase(whole_name(layer), pattern)


def _readers(graph_module: GraphModule) -> Iterator[_Reader]:
    from_sample = derived(graph_module, graph_module.graph.find_nodes(op="placeholder")[0])
    for node in graph_module.graph.nodes:
        if node.target not in (aten.conv2d.default, aten.linear.default):
            continue
        x, weight = node.args[:2]
        axis = 1 if node.target == aten.conv2d.default else x.meta["val"].dim() - 1
        cat = _concatenation(x, axis)
        parts: Any = cat.args[0] if cat is not None else []
        if cat is None or weight.op != "get_attr" or not all(part in from_sample for part in parts):
            continue
        channels = [static_shape(part.meta["val"])[_dimension(cat)] for part in parts]
        if sum(channels) != static_shape(x.meta["val"])[axis]:  # padded on the way
            continue
        groups = node.args[6] if node.target == aten.conv2d.default and len(node.args) > 6 else 1
        reason = f"a convolution in {groups} groups" if groups != 1 else f"{len(parts)} parts" if len(parts) != 2 else None
        yield _Reader(node, axis, channels, cat is x, reason)


def _dimension(cat: Node) -> int:
    dim = cat.args[1] if len(cat.args) > 1 else 0
    assert isinstance(dim, int)
    return dim % int(cat.meta["val"].dim())


def _concatenation(x: Node, axis: int) -> Node | None:
    """The concatenation along ``axis`` of ``x`` that its channels come from."""
    while x.target != aten.cat.default:
        source = x.args[0] if x.args else None
        if x.target in _MODULATIONS:
            source = _modulated(x, axis)
        elif x.target in MOVES and isinstance(source, Node):
            axis = _axis_before(x, axis)
        elif x.target not in _KEEPERS:
            return None
        if not isinstance(source, Node) or axis < 0:
            return None
        x = source
    return x if _dimension(x) == axis else None


def _modulated(x: Node, axis: int) -> Node | None:
    """The operand that a number, or a scale or shift of one value for each channel, is applied to."""
    operands = [a for a in x.args[:2] if isinstance(a, Node)]
    sizes = {a: math.prod(static_shape(a.meta["val"])) for a in operands}
    large = max(operands, key=lambda a: sizes[a])
    others = [a for a in operands if a is not large]
    return large if all(sizes[a] <= static_shape(x.meta["val"])[axis] < sizes[large] for a in others) else None


def _axis_before(mover: Node, axis: int) -> int:
    """The dimension of a mover's input that its output's ``axis`` runs along; -1 without one."""
    source = mover.args[0]
    assert isinstance(source, Node)
    shape = static_shape(source.meta["val"])
    moved = origins(mover)
    if len(moved) != 1 or axis >= moved[0].dim():
        return -1
    size, stride = moved[0].shape[axis], 1
    expected = moved[0].new_tensor(range(size)).reshape([-1 if i == axis else 1 for i in range(moved[0].dim())])
    for dim in reversed(range(len(shape))):
        if shape[dim] == size and bool((moved[0] // stride % size == expected).all()):
            return dim
        stride *= shape[dim]
    return -1


def _split(emit: Editor, reader: _Reader) -> None:
    node, (first, second) = reader.node, reader.channels
    x, weight = node.args[:2]
    assert isinstance(x, Node)
    assert isinstance(weight, Node)
    halves: Any
    if reader.direct:  # the concatenation's parts as they are now: an earlier split may have put a sum in the place of one
        halves = x.args[0]
    else:
        halves = [emit(aten.slice.Tensor, x, reader.axis, 0, first), emit(aten.slice.Tensor, x, reader.axis, first, first + second)]
    parts = emit.graph_module.get_buffer(str(weight.target)).split([first, second], dim=1)
    bias = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
    products = []
    for half, part, suffix, added in zip(halves, parts, SUFFIXES, (bias, None), strict=True):
        own = emit.constant(f"{weight.target}{suffix}", part.contiguous())
        product = emit(node.target, half, own, added, *node.args[3:])  # type: ignore[arg-type]
        product.meta |= {"path": f"{node.meta['path']}{suffix}", "frames": frames_of(node)}
        products.append(product)
    emit.replace(emit(aten.add.Tensor, *products))
