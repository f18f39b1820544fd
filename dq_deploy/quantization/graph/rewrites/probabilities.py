"""Which values are attention probabilities."""

from __future__ import annotations

import operator

from torch.fx import Node

from ..edit import aten
from ..moves import MOVES

_SOFTMAX = (aten.softmax.int, aten._softmax.default)
_SCORING = {aten.mul.Tensor, aten.div.Tensor, aten.add.Tensor, aten.sub.Tensor, aten.masked_fill.Scalar, aten.where.self, aten.to.dtype}
_PRODUCTS = {aten.matmul.default, aten.bmm.default, aten.baddbmm.default, aten.einsum.default}


def is_softmax(x: Node) -> bool:
    """Whether the value is a softmax's output, reshaped or transposed at most."""
    return _softmax_of(x) is not None


def is_probability(x: Node) -> bool:
    """Whether the value is the softmax of a product of two activations, as in attention.

    The softmax of something else (keys over thousands of pixels, in linear attention) may lie far below 1 everywhere, where the
    constant scale of probabilities would round all of it to zero.
    """
    softmax = _softmax_of(x)
    waiting, seen = [softmax.args[0]] if softmax is not None else [], set()
    while waiting:
        node = waiting.pop()
        if not isinstance(node, Node) or node in seen:
            continue
        seen.add(node)
        if node.target in _PRODUCTS:
            return True
        if node.target in MOVES or node.target in _SCORING or node.target is operator.getitem:
            waiting += node.all_input_nodes
    return False


def _softmax_of(x: Node) -> Node | None:
    while x.target in MOVES and isinstance(x.args[0], Node):
        x = x.args[0]
    return x if x.target in _SOFTMAX else None
