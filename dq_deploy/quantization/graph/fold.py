"""Folding a dilation's 1/s into what computes the activation, wherever that is exact (DilateQuant §4.1).

Y = (X/s)(s∘W): the integer layers hold s∘W already. X/s costs a multiply by 1/s unless the tensors that X is made of take it:

1. a norm's affine: its weight and bias are divided by s;
2. a layer's output: its per-output-channel scale s_w and its bias are divided by s, its codes stay;
3. a product of two values (GEGLU, adaLN's x·(1 + scale)): one of the factors is divided by s;
4. a sum (adaLN's … + shift): every term is divided by s, the constant 1 becomes the vector 1/s;
5. ReLU, and what only moves elements (reshapes, transposes, slices, nearest upsampling), passes the division on.

The output channels of V before an attention's output projection are no such place: v itself is quantized with one scale for all its
channels, so its other channels would get other codes. Only where the attention product stays in float does the division pass to v.

A value that anything else reads is left alone, unless the other reads only channels with s = 1.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.fx import GraphModule, Node

from ..weights import QuantizedWeight
from .edit import aten, set_tensor
from .insertion import decode
from .modules import quantizer_calls
from .moves import MOVES, origins, reads
from .shapes import static_shape

_HOMOGENEOUS = frozenset({aten.relu.default, aten.leaky_relu.default, aten.neg.default, aten.dropout.default})
_NORMS = {  # positions of weight and bias, and the axis that they run along (None: the last ones)
    aten.layer_norm.default: (2, 3, None),
    aten.group_norm.default: (2, 3, 1),
    aten.batch_norm.default: (1, 2, 1),
}


@dataclass(frozen=True)
class _Change:
    """What takes a division, and the act of dividing it."""

    name: str
    apply: Callable[[], None]


Changes = list[_Change] | None


def fold_dilations(model: GraphModule) -> dict[str, list[str]]:
    """Divide by s what every dilated quantizer's input is made of, in place, and set that quantizer's own dilation to 1.

    ``model`` is a frozen quantized graph as ``insert_quantizers`` made it. Gives quantizer → names of the tensors and layers that took
    the division; a quantizer that is not in it multiplies by 1/s itself. Values change by rounding only.
    """
    folded: dict[str, list[str]] = {}
    for node, quantizer in quantizer_calls(model):
        if not quantizer.divides:
            continue
        name, source = decode(str(node.target)), node.args[0]
        assert isinstance(source, Node)
        changes = _Division(model, name).divide(source, node, _along(quantizer.dilation, source, quantizer.axis))
        if changes is None:
            continue
        for change in changes:
            change.apply()
        quantizer.folded = quantizer.dilation.clone()
        quantizer.dilation.fill_(1)
        folded[name] = list(dict.fromkeys(change.name for change in changes))
    model.graph.lint()
    model.recompile()
    return folded


def _along(s: torch.Tensor, node: Node, axis: int) -> torch.Tensor:
    """The factors s [C] spread over the shape of a value for one sample."""
    shape = static_shape(node.meta["val"])
    return s.reshape([-1 if i == axis % len(shape) else 1 for i in range(len(shape))]).expand(shape)


def _reduced(s: torch.Tensor, shape: list[int]) -> torch.Tensor | None:
    """The factors s as a tensor of ``shape``, which broadcasts to it; None where s varies along a dimension that ``shape`` lacks."""
    for dim in range(s.dim()):
        own = dim - (s.dim() - len(shape))
        if own >= 0 and shape[own] == s.shape[dim]:
            continue
        first = s.narrow(dim, 0, 1)
        if not torch.equal(first.expand_as(s), s):
            return None
        s = first
    return s.reshape(shape)


class _Division:
    """Looks for the changes that divide a value by s; nothing is changed before all of them are known."""

    def __init__(self, model: GraphModule, quantizer: str) -> None:
        self.model, self.quantizer, self._constants = model, quantizer, 0

    def divide(self, node: Node, reader: Node, s: torch.Tensor) -> Changes:
        """Changes that divide the value of ``node``, as ``reader`` sees it, by ``s`` (of its shape for one sample)."""
        if any(user is not reader and reads(user, s != 1) for user in node.users):
            return None
        if node.op == "get_attr":
            return self._tensor(node, s)
        if node.op == "call_module":
            return self._layer(node, s)
        if node.target in MOVES or node.target is operator.getitem:
            return self._move(node, s)
        if node.target in _NORMS:
            return self._norm(node, s)
        if node.target in _HOMOGENEOUS:
            return self._operand(node, 0, s)
        rule = _RULES.get(node.target)
        return rule(self, node, s) if rule else None

    def _operand(self, node: Node, position: int, s: torch.Tensor) -> Changes:
        """Divide one argument of ``node``, whose shape broadcasts to that of ``s``."""
        operand = node.args[position]
        if not isinstance(operand, Node) or node.args.count(operand) > 1:
            return None
        reduced = _reduced(s, static_shape(operand.meta["val"]))
        return None if reduced is None else self.divide(operand, node, reduced)

    def _tensor(self, node: Node, s: torch.Tensor) -> Changes:
        name = str(node.target)
        others = [n for n in self.model.graph.nodes if n.op == "get_attr" and n.target == name and n is not node]
        return None if others else [_Change(name, lambda: set_tensor(self.model, name, self.model.get_buffer(name) / s))]

    def _layer(self, node: Node, s: torch.Tensor) -> Changes:
        layer = self.model.get_submodule(str(node.target))
        if not isinstance(layer, QuantizedWeight) or layer.frozen is None:
            return None
        channels = _reduced(s, _channel_shape(s, layer.channel_axis))
        if channels is None:
            return None
        return [_Change(decode(str(node.target)), partial(layer.divide_output, channels.flatten()))]

    def _move(self, node: Node, s: torch.Tensor) -> Changes:
        mover, which = node, 0
        if node.target is operator.getitem:
            mover, which = node.args  # type: ignore[assignment]
            if mover.target not in MOVES or any(u is not node and u.args[1] == which for u in mover.users):
                return None
        source = mover.args[0]
        assert isinstance(source, Node)
        positions = origins(mover)[which].flatten()
        inner = torch.ones(static_shape(source.meta["val"]))
        inner.view(-1)[positions] = s.flatten()
        if not torch.equal(inner.view(-1)[positions], s.flatten()):  # an element that went to several places with different s
            return None
        return self.divide(source, mover, inner)

    def _norm(self, node: Node, s: torch.Tensor) -> Changes:
        weight, bias, axis = _NORMS[node.target]  # type: ignore[index]
        parts = [node.args[i] for i in (weight, bias) if len(node.args) > i]
        if not isinstance(parts[0] if parts else None, Node):  # no affine: nothing there that could take it
            return None
        found: list[_Change] = []
        for part in parts:
            if not isinstance(part, Node):
                continue
            shape = static_shape(part.meta["val"])
            reduced = _reduced(s, shape if axis is None else _channel_shape(s, axis))
            changes = None if reduced is None else self.divide(part, node, reduced.reshape(shape))
            if changes is None:
                return None
            found += changes
        return found

    def _product(self, node: Node, s: torch.Tensor) -> Changes:
        first = self._operand(node, 0, s)
        return self._operand(node, 1, s) if first is None else first

    def _numerator(self, node: Node, s: torch.Tensor) -> Changes:
        return self._operand(node, 0, s)

    def _sum(self, node: Node, s: torch.Tensor) -> Changes:
        found: list[_Change] = []
        for position in (0, 1):
            constant = isinstance(node.args[position], int | float)
            changes = self._constant(node, position, s) if constant else self._operand(node, position, s)
            if changes is None:
                return None
            found += changes
        return found

    def _constant(self, node: Node, position: int, s: torch.Tensor) -> Changes:
        """A number becomes a vector: number / s."""
        self._constants += 1
        name = f"{self.quantizer}.constant_{self._constants}"
        for dim in range(s.dim()):  # without the dimensions that s is constant along
            first = s.narrow(dim, 0, 1)
            s = first if torch.equal(first.expand_as(s), s) else s
        while s.dim() > 1 and s.shape[0] == 1:
            s = s[0]

        def apply() -> None:
            set_tensor(self.model, name, float(node.args[position]) / s)  # type: ignore[arg-type]
            with self.model.graph.inserting_before(node):
                vector = self.model.graph.get_attr(name)
            vector.meta = {**node.meta, "val": self.model.get_buffer(name)}
            node.args = tuple(vector if i == position else a for i, a in enumerate(node.args))

        return [_Change(name, apply)]

    def _float_product(self, node: Node, s: torch.Tensor) -> Changes:
        """A matrix product of two activations that stays in float: its columns are those of the right operand."""
        right = node.args[1]
        assert isinstance(right, Node)
        shape = static_shape(right.meta["val"])
        reduced = _reduced(s, [*s.shape[:-2], 1, s.shape[-1]])
        if reduced is None or right is node.args[0] or list(s.shape[:-2]) != shape[:-2]:
            return None
        return self.divide(right, node, reduced.expand(shape))

    def _float_layer(self, node: Node, s: torch.Tensor) -> Changes:
        """A convolution or linear layer that stays in float: the output channels of its weight, and its bias."""
        weight, bias = node.args[1], node.args[2] if len(node.args) > 2 else None
        divisors = _reduced(s, _channel_shape(s, 1 if node.target == aten.conv2d.default else -1))
        if divisors is None or not isinstance(weight, Node):
            return None
        shape = static_shape(weight.meta["val"])
        found = self.divide(weight, node, divisors.reshape(-1, *[1] * (len(shape) - 1)).expand(shape))
        if found is None or not isinstance(bias, Node):
            return found
        more = self.divide(bias, node, divisors.flatten())
        return None if more is None else found + more


_RULES: dict[Any, Callable[[_Division, Node, torch.Tensor], Changes]] = {
    aten.mul.Tensor: _Division._product,
    aten.div.Tensor: _Division._numerator,
    aten.add.Tensor: _Division._sum,
    aten.sub.Tensor: _Division._sum,
    aten.matmul.default: _Division._float_product,
    aten.conv2d.default: _Division._float_layer,
    aten.linear.default: _Division._float_layer,
}


def _channel_shape(s: torch.Tensor, axis: int) -> list[int]:
    """Shape of s if it varied along ``axis`` only."""
    return [size if i == axis % s.dim() else 1 for i, size in enumerate(s.shape)]
