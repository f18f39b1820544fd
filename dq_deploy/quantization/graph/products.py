"""Every product of a captured graph: what multiplies, by which name, and whether integers could do it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch.fx import GraphModule, Node

from ...formats import INT8, Kind, NumberFormat
from .edit import aten
from .rewrites.probabilities import is_probability
from .shapes import static_shape

Op = Literal["conv2d", "linear", "matmul"]
# Products that the rewrite has no integer form for; they stay in float and say so.
_OTHER_PRODUCTS = {
    aten.conv2d.padding: "conv2d", aten.conv3d.default: "conv3d", aten.conv3d.padding: "conv3d",
    aten.conv_transpose1d.default: "conv_transpose1d", aten.conv_transpose2d.input: "conv_transpose2d",
    aten.conv_transpose3d.input: "conv_transpose3d", aten.einsum.default: "einsum", aten.tensordot.default: "tensordot",
    aten.bilinear.default: "bilinear", aten.mv.default: "matrix times vector",
}  # fmt: skip


@dataclass
class GraphLayer:
    """One product in the graph. ``macs`` are multiply-accumulates per sample."""

    name: str
    op: str
    macs: int
    node: Node
    weight_format: NumberFormat = INT8
    activation_format: NumberFormat = INT8
    widths: tuple[int, ...] = ()  # bits to which its weight's codes may be sliced, from its own down
    form: str | None = None  # of its weight, a key of ``weights.LAYERS``; None: the one that its activations ask for
    options: dict[str, Any] = field(default_factory=dict)  # of that form
    quantizer: str | None = None  # of its activation, a key of ``quantizers.QUANTIZERS``; None: the plan's
    float_reason: str | None = None
    kept: bool = False  # in float by choice
    probabilities: bool = False  # of attention, as the left operand
    quantizers: list[str] = field(default_factory=list)

    @property
    def weight_bits(self) -> int:
        """Bits of its weight."""
        return self.weight_format.bits

    @property
    def activation_bits(self) -> int:
        """Bits of its activations."""
        return self.activation_format.bits

    @property
    def products(self) -> str | None:
        """The number format that it multiplies in, where its bits do not say it."""
        integer = self.activation_format.integer or self.weight_only
        return None if integer else self.activation_format.name.lower()

    @property
    def branch(self) -> bool:
        """Whether it is part of a low-rank branch."""
        return "branch" in self.node.meta

    @property
    def weight_block(self) -> int:
        """Input channels of its weight that share a scale; 0: all."""
        return int(self.options.get("block", 0))

    @property
    def weight_only(self) -> bool:
        """Whether its activation stays float."""
        return not self.activation_format.scaled

    @property
    def kind(self) -> str:
        """What it becomes: a key of ``weights.LAYERS``."""
        return self.form or (f"weight-only-{self.op}" if self.weight_only else self.op)

    def record(self) -> dict[str, Any]:
        """The manifest's entry."""
        if self.float_reason:
            return {"name": self.name, "op": self.op, "macs": self.macs, "reason": self.float_reason}
        bits: dict[str, Any] = {"weight_bits": self.weight_bits} if self.op != "matmul" else {}
        if self.widths:
            bits["widths"] = list(self.widths)
        if self.weight_only:
            bits["weight_block"] = self.weight_block
        if self.weight_format.kind is Kind.CODEBOOK:
            bits["weight_codebook"] = self.options
        multiplied = {"format": self.products} if self.products else {}
        return {
            "name": self.name,
            "op": self.op,
            "macs": self.macs,
            **bits,
            "activation_bits": self.activation_bits,
            **multiplied,
            "quantizers": self.quantizers,
        }


def find_layers(graph_module: GraphModule) -> Iterator[GraphLayer]:
    """Every product of a captured graph, named by its module path."""
    taken: set[str] = set()
    batch = {str(n.meta["val"].shape[0]) for n in graph_module.graph.nodes if n.op == "placeholder"}
    for node in graph_module.graph.nodes:
        if node.op != "call_function":
            continue
        op = _op(node)
        if op is None and node.target not in _OTHER_PRODUCTS:
            continue
        name = _unique(f"{node.meta['path']}.matmul".lstrip(".") if op == "matmul" else node.meta["path"] or node.name, taken)
        layer = GraphLayer(name, op or _OTHER_PRODUCTS[node.target], _macs(node), node)
        layer.float_reason = None if op else f"no integer form for {_OTHER_PRODUCTS[node.target]}"
        if op:
            layer.float_reason = _why_not(node, op, batch)
        layer.probabilities = op == "matmul" and isinstance(node.args[0], Node) and is_probability(node.args[0])
        yield layer


def _op(node: Node) -> Op | None:
    if node.target == aten.conv2d.default:
        return "conv2d"
    if node.target == aten.linear.default:
        return "linear"
    return "matmul" if node.target == aten.matmul.default else None


def _why_not(node: Node, op: Op, batch: set[str]) -> str | None:
    """Why a product cannot be quantized. ``batch`` are the symbols of the inputs' first dimensions."""
    operands = node.args[:2] if op == "matmul" else node.args[:1]
    for operand in operands if frames_of(node) == 1 else ():
        value = operand.meta.get("val") if isinstance(operand, Node) else None
        if not isinstance(value, torch.Tensor) or str(value.shape[0]) not in batch:
            return "an operand's first dimension is not the batch, so a row per sample cannot be selected"
    if (whole := node.meta.get("branch")) is not None:
        return f"low-rank branch of {whole}"
    if op != "matmul" and any(isinstance(a, Node) and a.op != "get_attr" for a in node.args[1:3]):
        return "its weight or bias is computed from the input, not a parameter"
    return None


def frames_of(product: Node) -> int:
    """How many frames of each sample lie in the batch of what a product reads, one after the other (rewrites/layout.py)."""
    return int(product.meta.get("frames", 1))


def _unique(name: str, taken: set[str]) -> str:
    candidate, count = name, 1
    while candidate in taken:
        candidate, count = f"{name}_{count}", count + 1
    taken.add(candidate)
    return candidate


def _macs(node: Node) -> int:
    out = math.prod(static_shape(node.meta["val"])) if isinstance(node.meta.get("val"), torch.Tensor) else 0
    weight = node.args[1] if len(node.args) > 1 else None
    if not isinstance(weight, Node):
        return out
    shape = static_shape(weight.meta["val"])
    return out * (shape[-2] if node.target == aten.matmul.default else math.prod(shape[1:]))
