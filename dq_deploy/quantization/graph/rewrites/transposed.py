"""Transposed convolutions as convolutions and a pixel shuffle.

One that multiplies height and width by its stride s is a convolution to s² times the channels. With kernel s that needs as many
multiplications; with kernel 4 and stride 2 it needs 2.25 times as many, but integers can do them.
"""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from ..edit import Editor, aten, bind
from .constants import is_constant


def spell_transposed(graph_module: GraphModule) -> None:
    """Rewrite transposed 2-d convolutions without groups and dilation, in place; others stay."""
    for node in list(graph_module.graph.nodes):
        if node.target == aten.conv_transpose2d.input:
            _spell(Editor(graph_module, node), node)
    graph_module.recompile()


def _spell(emit: Editor, node: Node) -> None:
    """Every input pixel m gives the s output pixels s·m + r, r < s, as s·s·O channels that a shuffle puts in their places."""
    bound = bind(
        node, ("x", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"),
        bias=None, stride=[1, 1], padding=[0, 0], output_padding=[0, 0], groups=1, dilation=[1, 1],
    )  # fmt: skip
    weight: Node = bound["weight"]
    stride, padding, kernel = list(bound["stride"]), list(bound["padding"]), list(weight.meta["val"].shape[2:])
    times = [k + o - 2 * p for k, o, p in zip(kernel, bound["output_padding"], padding, strict=True)]
    if times != stride or stride[0] != stride[1] or bound["groups"] != 1 or set(bound["dilation"]) != {1} or not is_constant(weight):
        return
    taps = [_taps(k, stride[0], p) for k, p in zip(kernel, padding, strict=True)]
    dense = emit(aten.permute.default, weight, [1, 0, 2, 3])  # [O, C, kh, kw]
    for axis, (indices, present) in zip((2, 3), taps, strict=True):
        picked = emit(aten.index_select.default, dense, axis, emit.constant("taps", indices.flatten()))
        shape = [1] * picked.meta["val"].dim()
        shape[axis] = -1
        dense = emit(aten.mul.Tensor, picked, emit.constant("taps", present.flatten().float().reshape(shape)))
    (rows, height), (columns, width) = (present.shape for _, present in taps)
    out, channels = dense.meta["val"].shape[:2]
    dense = emit(aten.reshape.default, dense, [out, channels, rows, height, columns, width])
    dense = emit(
        aten.reshape.default, emit(aten.permute.default, dense, [0, 2, 4, 1, 3, 5]), [out * rows * columns, channels, height, width]
    )
    bias = bound["bias"] if bound["bias"] is None else emit(aten.repeat_interleave.self_int, bound["bias"], rows * columns)
    y = emit(aten.conv2d.default, bound["x"], dense, bias, [1, 1], [height // 2, width // 2])
    emit.replace(emit(aten.pixel_shuffle.default, y, stride[0]))


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
