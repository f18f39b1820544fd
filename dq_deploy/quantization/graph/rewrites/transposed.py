"""Transposed convolutions as convolutions, whose channels are then put in their places along the axes.

One that multiplies each axis by its stride s is a convolution to as many times the channels as all strides together. With kernel s that
needs as many multiplications; with kernel 4 and stride 2 it needs 1.5 times as many for each axis, but integers can do them.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch.fx import GraphModule, Node

from ..edit import Editor, aten, bind
from .constants import is_constant

_CONVOLUTIONS: dict[Any, Any] = {
    aten.conv_transpose1d.default: aten.conv1d.default,
    aten.conv_transpose2d.input: aten.conv2d.default,
    aten.conv_transpose3d.input: aten.conv3d.default,
}
_NAMES = ("x", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_DEFAULTS = {"stride": 1, "padding": 0, "output_padding": 0, "dilation": 1}


def spell_transposed(graph_module: GraphModule) -> None:
    """Rewrite transposed convolutions without groups and dilation, in place; others stay."""
    for node in list(graph_module.graph.nodes):
        if node.target in _CONVOLUTIONS:
            _spell(Editor(graph_module, node), node)
    graph_module.recompile()


def _spell(emit: Editor, node: Node) -> None:
    """Every input position m gives the s output positions s·m + r, r < s, of each axis, as channels (O, r of the first axis, …)."""
    bound = bind(node, _NAMES, bias=None, groups=1)
    weight: Node = bound["weight"]  # [C, O, *kernel]
    kernel = list(weight.meta["val"].shape[2:])
    stride, padding, more, dilation = (_for_each_axis(bound.get(name, default), len(kernel)) for name, default in _DEFAULTS.items())
    times = [k + o - 2 * p for k, o, p in zip(kernel, more, padding, strict=True)]
    if times != stride or bound["groups"] != 1 or set(dilation) != {1} or not is_constant(weight):
        return
    axes = range(2, 2 + len(kernel))
    dense = emit(aten.transpose.int, weight, 0, 1)  # [O, C, *kernel]
    taken = []
    for axis, k, s, p in zip(axes, kernel, stride, padding, strict=True):
        indices, present = _taps(k, s, p)
        picked = emit(aten.index_select.default, dense, axis, emit.constant("taps", indices.flatten()))
        shape = [1] * picked.meta["val"].dim()
        shape[axis] = -1
        dense = emit(aten.mul.Tensor, picked, emit.constant("taps", present.flatten().float().reshape(shape)))
        taken.append(present.shape[1])
    out, channels = dense.meta["val"].shape[:2]
    apart = [size for s, t in zip(stride, taken, strict=True) for size in (s, t)]
    dense = emit(aten.reshape.default, dense, [out, channels, *apart])
    phases, taps = list(range(2, 2 + len(apart), 2)), list(range(3, 2 + len(apart), 2))
    dense = emit(aten.reshape.default, emit(aten.permute.default, dense, [0, *phases, 1, *taps]), [out * prod(stride), channels, *taken])
    bias = bound["bias"] if bound["bias"] is None else emit(aten.repeat_interleave.self_int, bound["bias"], prod(stride))
    y = emit(_CONVOLUTIONS[node.target], bound["x"], dense, bias, [1] * len(stride), [t // 2 for t in taken])
    emit.replace(_interleaved(emit, y, stride))


def _for_each_axis(value: Any, axes: int) -> list[int]:
    """A number for each axis: torch takes one for all of them, also in a list."""
    value = value if isinstance(value, list | tuple) else [value]
    return [*value] * (axes if len(value) == 1 else 1)


def _interleaved(emit: Editor, y: Node, stride: list[int]) -> Node:
    """[N, O·s₁·…·sᵣ, L₁, …, Lᵣ] → [N, O, L₁·s₁, …, Lᵣ·sᵣ]."""
    if len(stride) == 2 and stride[0] == stride[1]:
        return emit(aten.pixel_shuffle.default, y, stride[0])
    cut = [s for s in stride if s > 1]
    if not cut:
        return y
    y = emit(aten.unflatten.int, y, 1, [-1, *cut])
    order, phase = [0, 1], 2
    for axis, s in enumerate(stride, 2 + len(cut)):
        order.append(axis)
        if s > 1:
            order.append(phase)
            phase += 1
    y = emit(aten.permute.default, y, order)
    for axis, s in enumerate(stride, 2):
        if s > 1:
            y = emit(aten.flatten.using_ints, y, axis, axis + 1)
    return y


def _taps(kernel: int, stride: int, padding: int) -> tuple[torch.Tensor, torch.Tensor]:
    """For each phase r of the output and each offset d of the input pixel: which tap of the kernel meets there, and whether any does.

    Output s·m + r takes input m + d times tap i where s·(m + d) − padding + i = s·m + r, so i = r + padding − s·d. Both are
    [s, 2·R + 1] with d from −R to R.
    """
    radius = max((stride - 1 + padding) // stride, (kernel - 1 - padding) // stride)
    offsets = torch.arange(-radius, radius + 1)
    taps = torch.arange(stride)[:, None] + padding - stride * offsets
    present = (taps >= 0) & (taps < kernel)
    return torch.where(present, taps, 0), present
