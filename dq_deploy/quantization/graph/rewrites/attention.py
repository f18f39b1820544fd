"""Attention as two matrix products and a softmax, so that both products can be quantized."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

from ..edit import Editor, aten, bind

ATTENTION = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")


def decompose_attention(graph_module: GraphModule) -> None:
    """Replace scaled_dot_product_attention by softmax(q·kᵀ·scale + mask)·v, with q [..., L, E], k [..., S, E], v [..., S, Ev]."""
    for node in list(graph_module.graph.nodes):
        if node.target == aten.scaled_dot_product_attention.default:
            _decompose(Editor(graph_module, node), bind(node, ATTENTION))
    graph_module.graph.eliminate_dead_code()
    graph_module.recompile()


def _decompose(emit: Editor, bound: dict[str, Any]) -> None:
    query, key, value = bound["query"], bound["key"], bound["value"]
    scale = bound.get("scale") or float(query.meta["val"].shape[-1]) ** -0.5
    if bound.get("enable_gqa"):  # every key and value serves a group of queries
        groups = query.meta["val"].shape[-3] // key.meta["val"].shape[-3]
        key, value = (emit(aten.repeat_interleave.self_int, x, groups, -3) for x in (key, value))
    scores = emit(aten.mul.Tensor, emit(aten.matmul.default, query, emit(aten.transpose.int, key, -1, -2)), scale)
    mask = bound.get("attn_mask")
    if bound.get("is_causal"):
        length, others = scores.meta["val"].shape[-2:]
        later = torch.ones(length, others).triu(1) > 0
        mask = emit.constant(f"{emit.anchor.meta['path']}.causal_mask", torch.zeros(length, others).masked_fill(later, float("-inf")))
    if mask is not None:
        scores = emit(aten.add.Tensor, scores, _additive(emit, mask, scores))
    emit.replace(emit(aten.matmul.default, emit(aten.softmax.int, scores, -1), value))


def _additive(emit: Editor, mask: Node, scores: Node) -> Node:
    """A mask to add; True in a boolean one means that the key takes part."""
    if mask.meta["val"].dtype != torch.bool:
        return mask
    zero = emit(aten.mul.Tensor, scores, 0.0)
    return emit(aten.masked_fill.Scalar, zero, emit(aten.logical_not.default, mask), float("-inf"))
