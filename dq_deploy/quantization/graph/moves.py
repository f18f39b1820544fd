"""Operators that compute nothing and only move elements, and where each element comes from."""

from __future__ import annotations

import operator

import torch
from torch.fx import Node, map_arg

from .edit import aten
from .shapes import at_batch_one, static_shape

MOVES = frozenset({
    aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.unflatten.int, aten.permute.default, aten.transpose.int,
    aten.movedim.int, aten.unsqueeze.default, aten.squeeze.dim, aten.expand.default, aten.slice.Tensor, aten.select.int,
    aten.narrow.default, aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default, aten.unbind.int, aten.contiguous.default,
    aten.clone.default, aten.pixel_shuffle.default, aten.upsample_nearest2d.vec,
})  # fmt: skip
"""Each reads its first argument only."""


def origins(node: Node) -> list[torch.Tensor]:
    """For each output [...] of a mover: the flat positions [...] in its input that its elements come from, for one sample."""
    source = node.args[0]
    assert isinstance(source, Node)
    shape = static_shape(source.meta["val"])
    numbers = torch.arange(torch.Size(shape).numel(), dtype=torch.float64).reshape(shape)  # upsampling takes no integers
    rest, options = map_arg((node.args[1:], node.kwargs), lambda n: at_batch_one(n.meta["val"]))
    moved = node.target(numbers, *rest, **options)  # type: ignore[operator]
    return [t.long() for t in (moved if isinstance(moved, list | tuple) else [moved])]


def reads(user: Node, mask: torch.Tensor) -> bool:
    """Whether ``user`` may read an element of its input where ``mask`` [...] (the input's shape for one sample) is true."""
    if user.target not in MOVES:
        return True
    outputs = origins(user)
    picked = [reader.args[1] for reader in user.users if reader.target is operator.getitem]
    used = [outputs[index] for index in picked if isinstance(index, int)] if picked else outputs
    return any(bool(mask.reshape(-1)[index].any()) for index in used)
