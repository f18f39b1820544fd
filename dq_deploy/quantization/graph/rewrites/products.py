"""Products in other words: what users write in a dozen ways becomes conv2d, linear or matmul.

1. ``mm`` and ``bmm`` are matmul; ``addmm`` and ``baddbmm`` are matmul, scale and add.
2. A 1-d convolution is a 2-d one on images of width 1, whatever its kernel.
3. A matmul with a matrix of parameters on either side is a linear layer.
4. Stride, padding and dilation of a convolution have a number for each axis (torch takes one in a list for all of them).
"""

from __future__ import annotations

from typing import Any

from torch.fx import GraphModule, Node

from ..edit import Editor, aten, bind
from .constants import is_constant


def spell_products(graph_module: GraphModule) -> None:
    """Rewrite every product of the graph by the rules above, in place."""
    for node in graph_module.graph.nodes:
        if node.target in _CONVOLUTIONS:
            node.args = (*node.args[:3], *(_for_each_axis(a, node) for a in node.args[3:]))
            node.kwargs = {key: _for_each_axis(a, node) for key, a in node.kwargs.items()}
    for rules in (_FIRST, _SECOND):
        for node in list(graph_module.graph.nodes):
            if node.op == "call_function" and node.target in rules:
                rules[node.target](Editor(graph_module, node), node)
    graph_module.graph.eliminate_dead_code()
    graph_module.recompile()


def _for_each_axis(value: Any, node: Node) -> Any:
    axes = node.meta["val"].dim() - 2
    return [*value] * axes if isinstance(value, list | tuple) and len(value) == 1 else value


def _matmul(emit: Editor, node: Node) -> None:
    emit.replace(emit(aten.matmul.default, *node.args))


def _added(emit: Editor, node: Node) -> None:
    """beta·b + alpha·(x·y); with beta 0 the addend does not count, NaN or not."""
    bound = bind(node, ("b", "x", "y"), beta=1, alpha=1)
    result = emit(aten.matmul.default, bound["x"], bound["y"])
    if bound["alpha"] != 1:
        result = emit(aten.mul.Tensor, result, bound["alpha"])
    if bound["beta"] != 0:
        addend = bound["b"] if bound["beta"] == 1 else emit(aten.mul.Tensor, bound["b"], bound["beta"])
        result = emit(aten.add.Tensor, result, addend)
    emit.replace(result)


def _conv1d(emit: Editor, node: Node) -> None:
    """Input [N, C, L] as [N, C, L, 1], weight [O, C, k] as [O, C, k, 1]."""
    bound = bind(node, ("x", "weight", "bias", "stride", "padding", "dilation", "groups"), bias=None, stride=[1], dilation=[1], groups=1)
    x, weight = emit(aten.unsqueeze.default, bound["x"], -1), emit(aten.unsqueeze.default, bound["weight"], -1)
    padding = bound.get("padding", [0])
    target: Any = aten.conv2d.padding if isinstance(padding, str) else aten.conv2d.default
    padding = padding if isinstance(padding, str) else [*padding, 0]
    y = emit(target, x, weight, bound["bias"], [*bound["stride"], 1], padding, [*bound["dilation"], 1], bound["groups"])
    emit.replace(emit(aten.squeeze.dim, y, -1))


def _with_parameters(emit: Editor, node: Node) -> None:
    left, right = node.args[:2]
    assert isinstance(left, Node)
    assert isinstance(right, Node)
    if is_constant(right) and right.meta["val"].dim() == 2 and left.meta["val"].dim() >= 2:
        emit.replace(emit(aten.linear.default, left, emit(aten.transpose.int, right, 0, 1)))
    elif is_constant(left) and left.meta["val"].dim() == 2 and right.meta["val"].dim() >= 2:  # W·x = (xᵀ·Wᵀ)ᵀ
        transposed = emit(aten.linear.default, emit(aten.transpose.int, right, -1, -2), left)
        emit.replace(emit(aten.transpose.int, transposed, -1, -2))


_FIRST: dict[Any, Any] = {
    aten.mm.default: _matmul,
    aten.bmm.default: _matmul,
    aten.addmm.default: _added,
    aten.baddbmm.default: _added,
    aten.conv1d.default: _conv1d,
    aten.conv1d.padding: _conv1d,
}
_CONVOLUTIONS = (
    aten.conv2d.default, aten.conv2d.padding, aten.conv3d.default, aten.conv3d.padding,
)  # fmt: skip
_SECOND: dict[Any, Any] = {aten.matmul.default: _with_parameters}
