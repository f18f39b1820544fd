"""Rotation of what linear layers read: x Wᵀ = (x R)(W R)ᵀ with R orthogonal, so that no channel stands out (QuaRot, arXiv 2404.00456).

R is block-diagonal, the same block all along: a Hadamard matrix of 64, 128 or 256 rows over the root of that, its rows with random signs
(what all channels share would end in the first one otherwise). It is written into the float graph, before anything is quantized, so that
whatever calibrates, rounds or trains sees a network that reads rotated values and has rotated weights.

1. Where x is the output of a linear layer that was only moved (reshapes, transposes) or weighted by attention's probabilities, and nothing
   else reads it, that layer's weight and bias take R: exactly, and for nothing.
2. Elsewhere one small product computes x R, [..., C/b, b] · [b, b]: the form of fewest kernels (docs/decisions/rotation.md).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch.fx import GraphModule, Node

from .edit import Editor, aten, drop_unused_tensors, set_tensor
from .moves import MOVES, origins, reads
from .plan import Plan
from .products import GraphLayer
from .shapes import static_shape

BLOCKS = (64, 128, 256)
"""Channels of a block: fewer would hardly spread an outlier, and more cost as many multiplications more."""
_SIGNS_SEED = 0

ROTATION = ".rotation"
"""What the name of a rotation in front of a layer ends in, after the layer's."""


@dataclass(frozen=True)
class Source:
    """A linear layer ``node`` whose output channels [O] are, where ``channels`` is true, what a later layer reads."""

    node: Node
    channels: torch.Tensor


def rotation(block: int) -> torch.Tensor:
    """R [b, b], fp64: an orthogonal matrix of ±1/√b (Sylvester's construction)."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < block:
        matrix = torch.cat([torch.cat([matrix, matrix], dim=1), torch.cat([matrix, -matrix], dim=1)])
    signs = torch.randint(2, (block, 1), generator=torch.Generator().manual_seed(_SIGNS_SEED)).double() * 2 - 1
    return signs * matrix / math.sqrt(block)


def rotated(values: torch.Tensor, block: int) -> torch.Tensor:
    """``values`` [..., C] times R, in their own type."""
    turned: torch.Tensor = values.double().unflatten(-1, (-1, block)) @ rotation(block).to(values.device)
    return turned.flatten(-2).to(values.dtype)


def largest_block(channels: int, most: int) -> int:
    """The largest block up to ``most`` that divides the channels; 0 where none does."""
    return max((block for block in BLOCKS if block <= most and channels % block == 0), default=0)


def token_inputs(plan: Plan) -> list[list[GraphLayer]]:
    """The linear layers that read tokens [N, ..., C] quantized, each with one scale, by the tensor that they read, in the plan's order."""
    found: dict[Node, list[GraphLayer]] = {}
    for layer in plan.quantized:
        x = layer.node.args[0]
        possible = layer.op == "linear" and not layer.weight_only and not layer.activation_format.block
        if possible and isinstance(x, Node) and x.meta["val"].dim() >= 3:
            found.setdefault(x, []).append(layer)
    return list(found.values())


def channels_read(layers: Sequence[GraphLayer]) -> int:
    """C of the tensor [..., C] that they read."""
    x = layers[0].node.args[0]
    assert isinstance(x, Node)
    return static_shape(x.meta["val"])[-1]


def rotate(graph_module: GraphModule, inputs: Iterable[tuple[Sequence[GraphLayer], int]]) -> list[Node | None]:
    """Rotate tensors of a float graph, in place: for each, the linear layers that are to read it so, and the block.

    Gives for each the node of the linear layer that took the rotation, None where a product computes it.
    """
    found = [_rotate(graph_module, layers, block) for layers, block in inputs]
    drop_unused_tensors(graph_module)
    graph_module.recompile()
    return found


def _rotate(graph_module: GraphModule, layers: Sequence[GraphLayer], block: int) -> Node | None:
    x = layers[0].node.args[0]
    assert isinstance(x, Node)
    turn = partial(rotated, block=block)
    source = source_of(x, [layer.node for layer in layers], block)
    value = x if source else _product(graph_module, layers[0], x, block)
    for layer in layers:
        layer.node.args = (value, *layer.node.args[1:])
        _change(graph_module, layer.node, 1, turn)
    if source is None:
        return None
    for position in (1, 2):
        if len(source.node.args) > position and source.node.args[position] is not None:
            _change(graph_module, source.node, position, partial(_turn_outputs, channels=source.channels, block=block))
    return source.node


def _product(graph_module: GraphModule, layer: GraphLayer, x: Node, block: int) -> Node:
    """Nodes in front of ``layer`` that compute x R. They belong to its block, and have a name of their own."""
    edit, name = Editor(graph_module, layer.node), f"{layer.name}{ROTATION}"
    parts = edit(aten.unflatten.int, x, -1, [channels_read([layer]) // block, block])
    weight = graph_module.get_buffer(str(layer.node.args[1].target))  # type: ignore[union-attr]
    matrix = _constant(edit, name, rotation(block).T.to(weight).contiguous())
    turned = edit(aten.linear.default, parts, matrix)
    whole = edit(aten.flatten.using_ints, turned, -2, -1)
    for node in (parts, matrix, turned, whole):
        node.meta |= {"path": name} | {key: layer.node.meta[key] for key in ("block", "block_name") if key in layer.node.meta}
    turned.meta["layer"] = name
    return whole


def _change(graph_module: GraphModule, node: Node, position: int, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Let ``node`` read another tensor in the place of a constant; others that read that one keep it."""
    old = node.args[position]
    assert isinstance(old, Node)
    new = _constant(Editor(graph_module, node), f"{old.target}_rotated", change(graph_module.get_buffer(str(old.target))))
    new.meta = {**old.meta, "val": new.meta["val"]}
    node.args = tuple(new if i == position else argument for i, argument in enumerate(node.args))
    if not old.users:
        graph_module.graph.erase_node(old)


def _constant(edit: Editor, name: str, tensor: torch.Tensor) -> Node:
    """A new buffer on the tensor's device; values of nodes are on the CPU, where the graph was captured."""
    node = edit.constant(name, tensor.cpu())
    set_tensor(edit.graph_module, str(node.target), tensor)
    return node


def _turn_outputs(values: torch.Tensor, channels: torch.Tensor, block: int) -> torch.Tensor:
    """A weight [O, C] or bias [O] whose outputs are rotated where ``channels`` [O] is true."""
    result, channels = values.clone(), channels.to(values.device)
    result[channels] = rotated(values[channels].movedim(0, -1), block).movedim(-1, 0)
    return result


def source_of(x: Node, readers: Collection[Node], block: int) -> Source | None:
    """The linear layer that can give x [..., C] rotated to ``readers``; None where there is none."""
    node, allowed = x, set(readers)
    mask = torch.ones(static_shape(x.meta["val"]), dtype=torch.bool)  # what is to be rotated, of one sample
    while True:
        if any(user not in allowed and reads(user, mask) for user in node.users):
            return None
        if node.target == aten.linear.default:
            return _of_layer(node, mask)
        found = _before_product(node, mask) if node.target == aten.matmul.default else _before_move(node, mask, block)
        if found is None:
            return None
        node, mask, allowed = found


def _of_layer(node: Node, mask: torch.Tensor) -> Source | None:
    by_token = mask.reshape(-1, mask.shape[-1])
    constant = all(isinstance(argument, Node) and argument.op == "get_attr" for argument in node.args[1:] if argument is not None)
    return Source(node, by_token[0]) if constant and bool((by_token == by_token[0]).all()) else None


def _before_product(node: Node, mask: torch.Tensor) -> tuple[Node, torch.Tensor, set[Node]] | None:
    """Columns of a product of two activations are those of its right operand."""
    right, columns = node.args[1], mask[..., :1, :]
    if not isinstance(right, Node) or right is node.args[0] or not torch.equal(columns.expand_as(mask), mask):
        return None
    shape = static_shape(right.meta["val"])
    return (right, columns.expand(shape), {node}) if shape[:-2] == list(mask.shape[:-2]) else None


def _before_move(node: Node, mask: torch.Tensor, block: int) -> tuple[Node, torch.Tensor, set[Node]] | None:
    """Whole blocks that lie together before a move as they do behind it."""
    mover, which = node.args if node.target is operator.getitem else (node, 0)
    if not isinstance(mover, Node) or mover.target not in MOVES:
        return None
    source, outputs = mover.args[0], origins(mover)
    assert isinstance(source, Node)
    shape = static_shape(source.meta["val"])
    own = outputs[which]  # type: ignore[index]
    if own.shape[-1] % block or shape[-1] % block:
        return None
    rows = own.reshape(-1, block)[mask.reshape(-1, block)[:, 0]]
    if bool((rows[:, 0] % block).any()) or not torch.equal(rows, rows[:, :1] + torch.arange(block)):
        return None
    inner = torch.zeros(shape, dtype=torch.bool)
    inner.view(-1)[rows.flatten()] = True
    elsewhere = [own[~mask]]
    if mover is not node:
        elsewhere += [outputs[user.args[1]].flatten() for user in mover.users if user is not node]  # type: ignore[index]
    return None if any(bool(inner.view(-1)[positions].any()) for positions in elsewhere) else (source, inner, {mover})
