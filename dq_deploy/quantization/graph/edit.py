"""Tools of the passes over FX graphs: ATen's namespace, tensors by dotted names, and new nodes that know where they come from."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node, map_arg

from .size_nodes import size_node

aten = torch.ops.aten
Size = int | Node


def set_tensor(root: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Register ``tensor``, of any shape, as a buffer of ``root`` under a dotted name, creating the modules on the way."""
    *path, leaf = name.split(".")
    for part in path:
        if not hasattr(root, part):
            root.add_module(part, nn.Module())
        root = getattr(root, part)
    root.register_buffer(leaf, tensor)


def drop_unused_tensors(graph_module: GraphModule, keep: tuple[str, ...] = ()) -> None:
    """Forget the buffers that no node reads, except below the prefixes ``keep``."""
    used = {str(n.target) for n in graph_module.graph.nodes if n.op == "get_attr"}
    for name, _ in list(graph_module.named_buffers()):
        if name in used or name.startswith(keep):
            continue
        path, _, leaf = name.rpartition(".")
        del graph_module.get_submodule(path)._buffers[leaf]


def batch_size(graph_module: GraphModule) -> Node:
    """The node that holds the batch size: that of the first input, which is there whatever the length of ``timestep``."""
    graph = graph_module.graph
    inputs = graph.find_nodes(op="placeholder")
    found: list[Node] = [n for n in graph.nodes if n.target == aten.sym_size.int and n.args == (inputs[0], 0)]
    if found:
        return found[0]
    with graph.inserting_after(inputs[-1]):
        node = graph.call_function(aten.sym_size.int, (inputs[0], 0))
    node.meta = {"path": "", "stack": [], "val": inputs[0].meta["val"].shape[0]}
    return node


def multiple_of_batch(size: Any, batch: Any) -> int | None:
    """Integer c of a size c·N, where N is the batch's symbol; None for any other size."""
    if not isinstance(size, torch.SymInt) or not isinstance(batch, torch.SymInt):
        return None
    factor = size.node.expr / batch.node.expr
    return int(factor) if factor.is_integer and factor.is_number else None


class Editor:
    """Inserts nodes before ``anchor`` that carry its module path and the values that they have under fake tensors."""

    def __init__(self, graph_module: GraphModule, anchor: Node) -> None:
        self.graph_module, self.anchor = graph_module, anchor

    def __call__(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> Node:
        """A call of an operator."""
        with self.graph_module.graph.inserting_before(self.anchor):
            node = self.graph_module.graph.call_function(target, args, kwargs)
        fake, options = map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
        node.meta = {**self._origin(), "val": target(*fake, **options)}
        return node

    def constant(self, name: str, tensor: torch.Tensor) -> Node:
        """A new buffer of any shape, under ``name`` or a variant of it that is free."""
        name = name.lstrip(".")  # a path that is empty, at the top of the model
        free, count = name, 1
        taken = {n for n, _ in self.graph_module.named_buffers()}
        while free in taken:
            free, count = f"{name}_{count}", count + 1
        set_tensor(self.graph_module, free, tensor)
        with self.graph_module.graph.inserting_before(self.anchor):
            node = self.graph_module.graph.get_attr(free)
        mode = next(n.meta["val"].fake_mode for n in self.graph_module.graph.nodes if n.op == "placeholder")
        node.meta = {**self._origin(), "val": mode.from_tensor(tensor, static_shapes=True)}
        return node

    def sizes(self, x: Node) -> list[Size]:
        """The shape of a value, the batch as a node: what ``reshape`` takes."""
        return [self.size(s) for s in x.meta["val"].shape]

    def size(self, value: Any) -> Size:
        """A size, as an integer or as a node that computes it from the batch and what else is free."""
        if isinstance(value, int):
            return value
        batch = batch_size(self.graph_module)
        factor = multiple_of_batch(value, batch.meta["val"])
        if factor is None:
            made = size_node(self.graph_module, value)
            assert made is not None, value
            return made
        return batch if factor == 1 else self(operator.mul, batch, factor)

    def reshape(self, x: Node, sizes: Sequence[Size]) -> Node:
        """The value in another shape; itself if it has that shape already."""
        expected = [s.meta["val"] if isinstance(s, Node) else s for s in sizes]
        return x if list(x.meta["val"].shape) == expected else self(aten.reshape.default, x, list(sizes))

    def permute(self, x: Node, order: Sequence[int]) -> Node:
        """The value with other dimensions first; itself if the order is that it has."""
        return x if list(order) == sorted(order) else self(aten.permute.default, x, list(order))

    def replace(self, value: Node) -> None:
        """Let ``value`` stand for the anchor, and remove the anchor."""
        self.anchor.replace_all_uses_with(value)
        self.graph_module.graph.erase_node(self.anchor)

    def _origin(self) -> dict[str, Any]:
        return {key: self.anchor.meta[key] for key in ("path", "stack") if key in self.anchor.meta}


def bind(node: Node, names: Sequence[str], **defaults: Any) -> dict[str, Any]:
    """A call's arguments by name."""
    return {**defaults, **dict(zip(names, node.args, strict=False)), **node.kwargs}
