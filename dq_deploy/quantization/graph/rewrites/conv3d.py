"""3-d convolutions of videos [N, C, F, H, W] as products that integers can do.

1. A kernel that neither overlaps nor pads (a patch embedding) is a linear layer of the patches.
2. A kernel of one pixel, (k, 1, 1), is a 2-d convolution over frames and pixels: [N, C, F, H·W].
3. Any other without groups is a 2-d one of every frame, its neighbours under the kernel stacked as channels: [N·F, k·C, H, W].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch.fx import GraphModule, Node

from ..edit import Editor, aten, bind


@dataclass(frozen=True)
class _Conv3d:
    """Arguments of the call, each with a number for time, height and width; ``weight`` is [O, C/g, kt, kh, kw]."""

    x: Node
    weight: Node
    bias: Node | None
    kernel: list[int]
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int

    @classmethod
    def of(cls, node: Node) -> _Conv3d:
        bound = bind(
            node, ("x", "weight", "bias", "stride", "padding", "dilation", "groups"),
            bias=None, stride=[1, 1, 1], padding=[0, 0, 0], dilation=[1, 1, 1], groups=1,
        )  # fmt: skip
        stride, padding, dilation = (list(bound[name]) for name in ("stride", "padding", "dilation"))
        kernel = list(bound["weight"].meta["val"].shape[2:])
        return cls(bound["x"], bound["weight"], bound["bias"], kernel, stride, padding, dilation, bound["groups"])

    @property
    def size(self) -> list[Any]:
        """Frames, height and width."""
        return list(self.x.meta["val"].shape[2:])

    @property
    def cuts_patches(self) -> bool:
        """Whether every value lies under the kernel once."""
        plain = self.groups == 1 and not any(self.padding) and set(self.dilation) == {1} and self.kernel == self.stride
        return plain and all(isinstance(n, int) and n % k == 0 for n, k in zip(self.size, self.kernel, strict=True))

    @property
    def over_time(self) -> bool:
        """Whether it reads one pixel of each frame."""
        return self.kernel[1:] == [1, 1] and self.stride[1:] == [1, 1] and self.padding[1:] == [0, 0]


def spell_conv3d(graph_module: GraphModule) -> None:
    """Rewrite 3-d convolutions by the rules above, in place; others stay."""
    for node in list(graph_module.graph.nodes):
        if node.target != aten.conv3d.default:
            continue
        emit, conv = Editor(graph_module, node), _Conv3d.of(node)
        if conv.cuts_patches:
            emit.replace(_of_patches(emit, conv))
        elif conv.over_time:
            emit.replace(_over_time(emit, conv))
        elif conv.groups == 1 or conv.kernel[0] == 1:
            emit.replace(_of_frames(emit, conv))
    graph_module.graph.eliminate_dead_code()
    graph_module.recompile()


def _of_patches(emit: Editor, conv: _Conv3d) -> Node:
    """[N, C, F, H, W] → [N, f, h, w, C·kt·kh·kw] → linear."""
    x = conv.x
    for axis, (size, kernel) in enumerate(zip(conv.size, conv.kernel, strict=True)):
        x = emit(aten.unflatten.int, x, 2 + 2 * axis, [size // kernel, kernel])
    patches = emit(aten.flatten.using_ints, emit.permute(x, [0, 2, 4, 6, 1, 3, 5, 7]), 4)
    y = emit(aten.linear.default, patches, emit(aten.flatten.using_ints, conv.weight, 1), conv.bias)
    return emit.permute(y, [0, 4, 1, 2, 3])


def _over_time(emit: Editor, conv: _Conv3d) -> Node:
    """[N, C, F, H, W] → [N, C, F, H·W] → conv2d with a kernel (k, 1)."""
    pixels = emit(aten.flatten.using_ints, conv.x, 3)
    weight = emit(aten.squeeze.dim, conv.weight, -1)
    geometry = [conv.stride[0], 1], [conv.padding[0], 0], [conv.dilation[0], 1]
    y = emit(aten.conv2d.default, pixels, weight, conv.bias, *geometry, conv.groups)
    return emit(aten.unflatten.int, y, 3, emit.sizes(conv.x)[3:])


def _of_frames(emit: Editor, conv: _Conv3d) -> Node:
    """[N, C, F, H, W] → [N·f, kt·C, H, W] → conv2d."""
    stacked = _neighbours(emit, conv)  # [N, kt·C, f, H, W]
    frames = stacked.meta["val"].shape[2]
    folded = emit(aten.flatten.using_ints, emit.permute(stacked, [0, 2, 1, 3, 4]), 0, 1)
    weight = emit(aten.flatten.using_ints, emit.permute(conv.weight, [0, 2, 1, 3, 4]), 1, 2)
    geometry = conv.stride[1:], conv.padding[1:], conv.dilation[1:]
    y = emit(aten.conv2d.default, folded, weight, conv.bias, *geometry, conv.groups)
    return emit.permute(emit(aten.unflatten.int, y, 0, [-1, frames]), [0, 2, 1, 3, 4])


def _neighbours(emit: Editor, conv: _Conv3d) -> Node:
    """For each frame of the output those that lie under the kernel, one after the other along the channels."""
    x, taps = conv.x, conv.kernel[0]
    if conv.padding[0]:  # not by aten.constant_pad_nd, which makes a number of the batch's symbol
        samples, channels, _, *pixels = emit.sizes(x)
        zeros = emit(aten.new_zeros.default, x, [samples, channels, conv.padding[0], *pixels])
        x = emit(aten.cat.default, [zeros, x, zeros], 2)
    reach = conv.dilation[0] * (taps - 1) + 1
    last = x.meta["val"].shape[2] - reach  # where the last window begins
    windows: Sequence[Node] = [
        emit(aten.slice.Tensor, x, 2, tap * conv.dilation[0], tap * conv.dilation[0] + last + 1, conv.stride[0]) for tap in range(taps)
    ]
    return windows[0] if taps == 1 else emit(aten.cat.default, list(windows), 1)
