"""Products of half precision as products in float32 of the same rounded numbers: integers stand in the place of float32 alone."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

from ..edit import Editor, aten

_PRODUCTS = (aten.conv2d.default, aten.conv2d.padding, aten.linear.default, aten.matmul.default)
_HALVES = (torch.float16, torch.bfloat16)


def widen_products(graph_module: GraphModule) -> None:
    """Cast the operands of every such product up and its result down again, in place. Sums are in float32 either way."""
    for node in list(graph_module.graph.nodes):
        if node.target in _PRODUCTS and node.meta["val"].dtype in _HALVES:
            emit = Editor(graph_module, node)
            product = emit(node.target, *[_wide(emit, a) for a in node.args], **{k: _wide(emit, a) for k, a in node.kwargs.items()})
            emit.replace(emit(aten.to.dtype, product, node.meta["val"].dtype))
    graph_module.recompile()


def _wide(emit: Editor, value: Any) -> Any:
    return emit(aten.to.dtype, value, torch.float32) if isinstance(value, Node) else value
