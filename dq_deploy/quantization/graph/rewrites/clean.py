"""Without nodes that compute nothing, and every expression once."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from ..edit import aten, batch_size, multiple_of_batch
from ..size_nodes import size_node

_END = 2**63 - 1
_CHECKS = ("assert", "_guards_fn")
_CASTS = (
    aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten.to.other, aten.type_as.default, aten._to_copy.default,
    aten.contiguous.default, aten.clone.default,
)  # fmt: skip
_NOTHING = (aten.detach.default, aten.alias.default, aten.lift_fresh_copy.default)
_DROPOUTS = (aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default, aten.feature_alpha_dropout.default)
_SQUEEZES = (aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default)
_REGROUPS = (aten.reshape.default, aten.flatten.using_ints, aten.unflatten.int, aten.unsqueeze.default, aten.squeeze.dim)


def clean(graph_module: GraphModule) -> None:
    """Remove what computes nothing (guards, asserts, no-op casts, slices, divisions, dropout) and merge equal expressions, in place.

    Merging matters: every ResNet block applies its own SiLU to the one time embedding, and only as one node can its consumers share
    one quantizer. Views become reshapes, because what made their input contiguous goes.
    """
    graph = graph_module.graph
    drop_checks(graph)
    for node in list(graph.nodes):
        if node.target in (aten.view.default, aten._unsafe_view.default):
            node.target = aten.reshape.default
        if node.target == aten.reshape.default:
            _reshape_once(node)
        if node.op == "call_function" and _is_noop(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif node.target == aten.conv2d.padding:
            _number_padding(node)
        elif node.target in (aten.squeeze.dims, aten.squeeze.default):
            _squeeze_ones(node)
    _sizes_from_first_input(graph_module)
    _merge_equal(graph)
    graph.eliminate_dead_code()
    graph_module.recompile()


def drop_checks(graph: Graph) -> None:
    """Remove guards and asserts, in place."""
    for node in reversed(list(graph.nodes)):
        if node.op in ("call_module", "call_function") and any(word in str(node.target) for word in _CHECKS):
            graph.erase_node(node)


def _sizes_from_first_input(graph_module: GraphModule) -> None:
    """Take every multiple of the batch size from the first input, whatever value torch.export happened to take it from.

    ``timestep`` may have one element for the whole batch (the ``onnxruntime`` target), so its length must not count; and a block of the
    graph knows the batch, but not the length of some value in another block.
    """
    sizes = [n for n in graph_module.graph.nodes if n.target == aten.sym_size.int]
    if not sizes:
        return
    batch = batch_size(graph_module)
    for node in sizes:
        factor = multiple_of_batch(node.meta["val"], batch.meta["val"])
        if node is batch:
            continue
        if factor is None:
            _from_inputs(graph_module, node)
            continue
        source = batch
        if factor > 1:
            with graph_module.graph.inserting_before(node):
                source = graph_module.graph.call_function(operator.mul, (batch, factor))
            source.meta = dict(node.meta)
        node.replace_all_uses_with(source)
        graph_module.graph.erase_node(node)
    first = next(n for n in graph_module.graph.nodes if n.op not in ("placeholder", "get_attr"))
    if first is not batch:
        first.prepend(batch)


def _from_inputs(graph_module: GraphModule, node: Node) -> None:
    """Compute a size that is no multiple of the batch from the inputs' sizes, where it can be."""
    made = size_node(graph_module, node.meta["val"]) if isinstance(node.meta["val"], torch.SymInt) else None
    if made is not None and made is not node:
        node.replace_all_uses_with(made)
        graph_module.graph.erase_node(node)


def _reshape_once(node: Node) -> None:
    """A reshape of a reshape is a reshape."""
    source = node.args[0]
    while isinstance(source, Node) and source.target in _REGROUPS:
        source = source.args[0]
    node.args = (source, *node.args[1:])


def _is_noop(node: Node) -> bool:
    source = node.args[0] if node.args else None
    if not isinstance(source, Node):
        return False
    before, after = source.meta.get("val"), node.meta.get("val")
    if node.target in _CASTS:
        return isinstance(before, torch.Tensor) and isinstance(after, torch.Tensor) and before.dtype == after.dtype
    if node.target in _DROPOUTS:
        return node.args[2] is False
    if node.target in _NOTHING:
        return True
    if node.target in _SQUEEZES:  # PyTorch leaves a dimension of another size than 1 alone, and ONNX refuses it
        return isinstance(before, torch.Tensor) and isinstance(after, torch.Tensor) and before.dim() == after.dim()
    if node.target == aten.reshape.default:
        return isinstance(before, torch.Tensor) and isinstance(after, torch.Tensor) and str(before.shape) == str(after.shape)
    if node.target in (aten.div.Tensor, aten.mul.Tensor):
        return isinstance(node.args[1], int | float) and node.args[1] == 1 and getattr(before, "dtype", None) == getattr(after, "dtype", 0)
    if node.target == aten.slice.Tensor:
        start, end, step = [*node.args[2:], None, None, 1][:3] if len(node.args) < 5 else node.args[2:5]
        return (start in (None, 0)) and (end in (None, _END)) and step in (None, 1)
    return False


def _squeeze_ones(node: Node) -> None:
    """Of several dimensions, or of all, those whose size is 1 at every batch: a batch of one keeps its own."""
    source = node.args[0]
    assert isinstance(source, Node)
    shape = source.meta["val"].shape
    dims = node.args[1] if len(node.args) > 1 else range(len(shape))
    assert isinstance(dims, list | tuple | range)
    node.target, node.args = aten.squeeze.dims, (source, [dim for dim in dims if shape[dim] == 1])


def _number_padding(node: Node) -> None:
    """``padding="same"`` or ``"valid"`` as numbers, where both sides get as much."""
    defaults: list[Any] = [None, [1, 1], "valid", [1, 1], 1]
    given: list[Any] = list(node.args)
    x, weight, bias, stride, padding, dilation, groups = given + defaults[len(given) - 2 :]
    kernel = weight.meta["val"].shape[2:]
    total = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
    if all(t % 2 == 0 for t in total):
        node.target = aten.conv2d.default
        node.args = (x, weight, bias, stride, [t // 2 for t in total], dilation, groups)


def _merge_equal(graph: Graph) -> None:
    """Common subexpression elimination over pure ATen calls."""
    seen: dict[Any, Node] = {}
    for node in list(graph.nodes):
        if node.op not in ("call_function", "get_attr") or "rand" in str(node.target) or "dropout" in str(node.target):
            continue
        key = (node.op, node.target, _freeze(node.args), _freeze(node.kwargs))
        if key in seen:
            node.replace_all_uses_with(seen[key])
            graph.erase_node(node)
        else:
            seen[key] = node


def _freeze(value: Any) -> Any:
    if isinstance(value, Node):
        return ("node", value.name)
    if isinstance(value, list | tuple):
        return tuple(_freeze(v) for v in value)
    if isinstance(value, dict):
        return tuple((k, _freeze(v)) for k, v in value.items())
    return (type(value).__name__, repr(value))
