"""Which layers are quantized, with how many bits, and which share a quantizer; then the rewrite of the captured graph."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn
from torch.fx import GraphModule, Node

from ...errors import UsageError
from ..config import FIRST, LAST, QuantizeConfig
from ..layers import ActivationQuantizer, QuantizedConv2d, QuantizedLinear, QuantizedMatmul
from ..numerics import code_range
from .edit import aten, drop_unused_tensors
from .moves import MOVES
from .rewrites.probabilities import is_probability
from .shapes import static_shape
from .skip_halves import name_matches, whole_name

Op = Literal["conv2d", "linear", "matmul"]
# Products that the rewrite has no integer form for; they stay in float and say so.
_OTHER_PRODUCTS = {
    aten.conv2d.padding: "conv2d", aten.conv3d.default: "conv3d", aten.conv3d.padding: "conv3d",
    aten.conv_transpose1d.default: "conv_transpose1d", aten.conv_transpose2d.input: "conv_transpose2d",
    aten.conv_transpose3d.input: "conv_transpose3d", aten.einsum.default: "einsum", aten.tensordot.default: "tensordot",
    aten.bilinear.default: "bilinear", aten.mv.default: "matrix times vector",
}  # fmt: skip


@dataclass
class Layer:
    """One product in the graph. ``macs`` are multiply-accumulates per sample."""

    name: str
    op: str
    macs: int
    node: Node
    weight_bits: int = 8
    activation_bits: int = 8
    float_reason: str | None = None
    kept: bool = False  # in float by choice
    probabilities: bool = False  # of attention, as the left operand
    quantizers: list[str] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """The manifest's entry."""
        if self.float_reason:
            return {"name": self.name, "op": self.op, "macs": self.macs, "reason": self.float_reason}
        bits = {"weight_bits": self.weight_bits} if self.op != "matmul" else {}
        return {
            "name": self.name,
            "op": self.op,
            "macs": self.macs,
            **bits,
            "activation_bits": self.activation_bits,
            "quantizers": self.quantizers,
        }


@dataclass
class Plan:
    """Every product of the model: quantized, or left in float with the reason."""

    layers: list[Layer]
    temporal: bool = True
    zero_points: bool = True
    softmax_bits: int = 8

    @property
    def quantized(self) -> list[Layer]:
        """Layers to quantize."""
        return [layer for layer in self.layers if not layer.float_reason]

    @property
    def left_float(self) -> list[Layer]:
        """Layers that stay in float."""
        return [layer for layer in self.layers if layer.float_reason]

    @property
    def float_share(self) -> float:
        """Share of the multiply-accumulates that stays in float."""
        total = sum(layer.macs for layer in self.layers)
        return sum(layer.macs for layer in self.left_float) / total if total else 0.0


def make_plan(graph_module: GraphModule, config: QuantizeConfig) -> Plan:
    """Find every product and decide its bits.

    Raises UsageError when nothing can be quantized, a ``keep`` pattern matches nothing, or too much would stay in float.
    """
    layers = list(find_layers(graph_module))
    if not layers:
        raise UsageError("the model has no convolution, linear layer or matrix product to quantize")
    inputs = [n for n in graph_module.graph.nodes if n.op == "placeholder"]
    output = next(n for n in graph_module.graph.nodes if n.op == "output").args[0]
    output = output[0] if isinstance(output, tuple | list) else output
    unmatched = []
    for layer in layers:
        layer.node.meta["layer"] = layer.name
        layer.weight_bits, layer.activation_bits = config.weight_bits, config.activation_bits
    for pattern, value in config.keep.items():
        hits = [x for x in layers if _matches(pattern, x, inputs[0], output)]
        if not hits and pattern not in (FIRST, LAST):
            unmatched.append(pattern)
        for layer in hits:
            _keep(layer, pattern, value)
    if unmatched:
        names = ", ".join(layer.name for layer in layers[:8])
        raise UsageError(f"no layer matches {', '.join(map(repr, unmatched))}", f"layers are named like: {names}, …")
    plan = Plan(layers, config.temporal, config.zero_points, config.softmax_bits)
    if plan.float_share > config.max_float_share:
        worst = sorted(plan.left_float, key=lambda x: -x.macs)[:5]
        listing = "; ".join(f"{x.name} ({x.float_reason})" for x in worst)
        raise UsageError(
            f"{plan.float_share:.1%} of the multiply-accumulates would stay in float, more than {config.max_float_share:.1%}: {listing}",
            "quantize those layers, or raise max_float_share",
        )
    return plan


def _matches(pattern: str, layer: Layer, first_input: Node, output: Any) -> bool:
    if pattern == FIRST:
        return layer.op != "matmul" and _unmoved(layer.node.args[0]) is first_input
    if pattern == LAST:
        last = _unmoved(output)
        halves = last.all_input_nodes if whole_name(layer.name) != layer.name else []  # whose sum the output is
        return layer.node is last or layer.node in halves
    return name_matches(layer.name, pattern)


def _unmoved(value: Any) -> Any:
    """The node whose elements ``value`` has in another arrangement: a transformer cuts its sample into patches and puts them together."""
    while isinstance(value, Node) and value.target in MOVES:
        value = value.args[0]
    return value


def _keep(layer: Layer, pattern: str, value: int | str) -> None:
    if value == "float":
        reason = (
            "reads the model's input, which 8 bits would blur by more than the noise of the last step"
            if pattern == FIRST
            else f"keep {pattern}=float"
        )
        layer.kept = layer.kept or not layer.float_reason
        layer.float_reason = layer.float_reason or reason
    else:
        layer.weight_bits = layer.activation_bits = int(value)
        if layer.kept:  # by an earlier pattern, and not because it has no integer form
            layer.float_reason, layer.kept = None, False


def find_layers(graph_module: GraphModule) -> Iterator[Layer]:
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
        layer = Layer(name, op or _OTHER_PRODUCTS[node.target], _macs(node), node)
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
    for operand in operands:
        value = operand.meta.get("val") if isinstance(operand, Node) else None
        if not isinstance(value, torch.Tensor) or str(value.shape[0]) not in batch:
            return "an operand's first dimension is not the batch, so a row per sample cannot be selected"
    if op != "matmul" and any(isinstance(a, Node) and a.op != "get_attr" for a in node.args[1:3]):
        return "its weight or bias is computed from the input, not a parameter"
    return None


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


def insert_quantizers(graph_module: GraphModule, plan: Plan, timesteps: torch.Tensor) -> None:
    """Rewrite the captured graph in place: quantizer and integer layer in the place of every planned product.

    Consumers of the same tensor with the same channel axis, bits and kind share one quantizer.
    """
    graph = graph_module.graph
    timestep = next(n for n in graph.nodes if n.op == "placeholder" and n.target == "timestep")
    shared: dict[tuple[Any, ...], Node] = {}
    for layer in plan.quantized:
        node = layer.node
        operands = [a for a in node.args[:2] if isinstance(a, Node)] if layer.op == "matmul" else [node.args[0]]
        calls = []
        for position, operand in enumerate(operands):
            assert isinstance(operand, Node)
            suffix = "input" if layer.op != "matmul" else ("lhs", "rhs")[position]
            calls.append(_quantizer_call(graph_module, plan, layer, operand, f"{layer.name}.{suffix}", timestep, timesteps, shared))
        target = _register(graph_module, "layers", layer.name, _build_layer(graph_module, layer))
        with graph.inserting_before(node):
            call = graph.call_module(target, tuple(calls))
        call.meta = {**node.meta, "float_name": float_name(node)}
        if layer.op != "matmul":
            call.meta["weight"] = str(node.args[1].target)  # type: ignore[union-attr]
        node.replace_all_uses_with(call)
        graph.erase_node(node)
        layer.node = call
    graph.eliminate_dead_code()
    drop_unused_tensors(graph_module, keep=("layers.", "quantizers."))
    graph_module.recompile()


def _quantizer_call(graph_module: GraphModule, plan: Plan, layer: Layer, x: Node, name: str, timestep: Node, timesteps: torch.Tensor,
                    shared: dict[tuple[Any, ...], Node]) -> Node:  # fmt: skip
    # Only on the left: its zero-point is then corrected by column sums of the right operand's codes.
    is_softmax = layer.probabilities and x is layer.node.args[0]
    axis = {"conv2d": 1, "linear": -1, "matmul": 0}[layer.op]
    bits = plan.softmax_bits if is_softmax else layer.activation_bits
    key = (x, axis, bits, is_softmax)
    if key not in shared:
        channels = 1 if layer.op == "matmul" else static_shape(x.meta["val"])[axis]
        quantizer = ActivationQuantizer(
            timesteps,
            bits,
            symmetric=(layer.op == "matmul" or not plan.zero_points) and not is_softmax,
            axis=axis,
            channels=channels,
            fixed=is_softmax,
            static=not (plan.temporal or is_softmax),
        )
        if is_softmax:  # probabilities lie in [0, 1] at every timestep: code = round((2^b − 1)·P) − 2^(b−1)
            qmin, qmax = code_range(bits)
            rows = len(timesteps)
            quantizer.set_tables(torch.full((rows,), 1 / (qmax - qmin)), torch.full((rows,), float(qmin)))
        target = _register(graph_module, "quantizers", name, quantizer)
        anchor = max(n for n in graph_module.graph.nodes if n.op == "placeholder") if x.op == "placeholder" else x
        with graph_module.graph.inserting_after(anchor):
            shared[key] = graph_module.graph.call_module(target, (x, timestep))
        shared[key].meta = {**layer.node.meta, "val": x.meta["val"], "quantizer": name}
    call = shared[key]
    layer.quantizers.append(call.meta["quantizer"])
    return call


def float_name(node: Node) -> str:
    """Name of the value in the float graph that this node's value stands for."""
    return str(node.meta.get("float_name", node.name))


def _register(graph_module: GraphModule, kind: str, name: str, module: nn.Module) -> str:
    target = f"{kind}.{encode(name)}"
    graph_module.add_submodule(target, module)
    return target


def encode(name: str) -> str:
    """A dotted layer name as one attribute name (layers may nest in each other's names, modules must not)."""
    return name.replace(".", "/")


def decode(target: str) -> str:
    """The layer or quantizer name in a call_module target."""
    return target.split(".", 1)[1].replace("/", ".")


def _build_layer(graph_module: GraphModule, layer: Layer) -> nn.Module:
    if layer.op == "matmul":
        return QuantizedMatmul()
    arguments = [*layer.node.args]
    weight = graph_module.get_buffer(str(arguments[1].target))  # type: ignore[union-attr]
    bias = arguments[2] if len(arguments) > 2 else layer.node.kwargs.get("bias")
    bias_tensor = graph_module.get_buffer(str(bias.target)) if isinstance(bias, Node) else None
    if layer.op == "linear":
        return QuantizedLinear(weight, bias_tensor, layer.weight_bits)
    return QuantizedConv2d(weight, bias_tensor, layer.weight_bits, *conv_geometry(arguments))


def conv_geometry(arguments: Sequence[Any]) -> tuple[list[int], list[int], list[int], int]:
    """Stride, padding, dilation and groups of an ``aten.conv2d`` call, with its defaults for what is not given."""
    defaults: list[Any] = [[1, 1], [0, 0], [1, 1], 1]
    given = list(arguments[3:7])
    stride, padding, dilation, groups = given + defaults[len(given) :]
    return list(stride), list(padding), list(dilation), int(groups)
