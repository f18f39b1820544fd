"""The attentions of an ONNX graph: softmax(q·kᵀ)·v, a softmax between two products of activations.

What an engine does with them is in its room. The layer report counts those that are one kernel, and says why another is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from .kernels import AttentionPlan

# What may lie between a product and the softmax: scale, mask, bias, types, heads in the batch, and the arithmetic of quantizers.
_BETWEEN = frozenset({
    "Add", "Cast", "Clip", "DequantizeLinear", "Div", "Identity", "Max", "Min", "Mul", "QuantizeLinear", "Reshape", "Round", "Squeeze",
    "Sub", "Tanh", "Unsqueeze", "Where",
})  # fmt: skip


@dataclass(frozen=True)
class Attention:
    """``scores`` multiplies q [..., L, E] and kᵀ [..., E, S], ``values`` P [..., L, S] and v [..., S, Ev].

    ``before`` are the nodes from the scores to the softmax, ``behind`` those from it to P·v.
    """

    scores: ir.Node
    softmax: ir.Node
    values: ir.Node
    before: tuple[ir.Node, ...]
    behind: tuple[ir.Node, ...]

    def plan(self, shape: Sequence[int | ir.SymbolicDim], *, head_size: int | None, reason: str | None) -> AttentionPlan:
        """What is known of it, its scores having that shape; planned as one kernel where there is no reason against it."""
        tokens, keys = (_known(size) for size in shape[-2:]) if len(shape) > 1 else (None, None)
        return AttentionPlan(
            scores=layer_of(self.scores), values=layer_of(self.values), nodes=(str(self.scores.name), str(self.values.name)),
            tokens=tokens, keys=keys, heads=_known(shape[1]) if len(shape) > 3 else 1, head_size=head_size, fused=reason is None,
            reason=reason,
        )  # fmt: skip


def layer_of(node: ir.Node) -> str:
    """The layer whose product a node is."""
    return str(node.name).partition("/")[0]


def find_attentions(graph: ir.Graph) -> list[Attention]:
    """Every attention, in the graph's order."""
    found = []
    for node in graph:
        if node.op_type != "Softmax" or not _over_the_last(node):
            continue
        before, behind = _scores(node), _values(node)
        if before and behind:
            found.append(Attention(before[-1], node, behind[-1], tuple(reversed(before[:-1])), behind[:-1]))
    return found


def _over_the_last(softmax: ir.Node) -> bool:
    axis, shape = softmax.attributes.get_int("axis", -1), softmax.outputs[0].shape
    return axis == -1 or (shape is not None and axis == len(shape) - 1)


def _scores(softmax: ir.Node) -> tuple[ir.Node, ...]:
    """The nodes from the softmax back to the product of two activations that it is of; empty where there is none."""
    path: list[ir.Node] = []
    value = softmax.inputs[0]
    while value is not None and (node := value.producer()) is not None:
        path.append(node)
        if node.op_type == "MatMul":
            return tuple(path) if _of_activations(node) else ()
        if node.op_type not in _BETWEEN:
            return ()
        value = next((given for given in node.inputs if _leads_to_product(given)), None)
    return ()


def _leads_to_product(value: ir.Value | None) -> bool:
    """Whether a value is made by a MatMul, through what may lie behind one."""
    waiting, seen = [value], {value}
    while waiting:
        current = waiting.pop()
        node = current.producer() if current is not None else None
        if node is not None and node.op_type == "MatMul":
            return True
        if node is not None and node.op_type in _BETWEEN:
            waiting += (fresh := [given for given in node.inputs if given not in seen])
            seen.update(fresh)
    return False


def _values(softmax: ir.Node) -> tuple[ir.Node, ...]:
    """The nodes from the softmax to the product whose left operand it becomes; empty where there is none."""
    path: list[ir.Node] = []
    value = softmax.outputs[0]
    while readers := [(node, index) for node, index in value.uses() if node.op_type in _BETWEEN or node.op_type == "MatMul"]:
        if len(readers) > 1:
            return ()
        node, index = readers[0]
        path.append(node)
        if node.op_type == "MatMul":
            return tuple(path) if index == 0 and _of_activations(node) else ()
        value = node.outputs[0]
    return ()


def _of_activations(product: ir.Node) -> bool:
    return not any(_constant(value) for value in product.inputs)


def _constant(value: ir.Value | None) -> bool:
    """A constant, or one that is unpacked."""
    if value is None or value.const_value is not None:
        return True
    node = value.producer()
    return node is not None and node.op_type in ("DequantizeLinear", "Cast", "Transpose") and all(map(_constant, node.inputs[:1]))


def _known(size: int | ir.SymbolicDim) -> int | None:
    return size if isinstance(size, int) else None
