"""The rewrite of a captured graph: quantizers and integer layers in the place of planned products, and their names in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

from ..quantizers import QUANTIZERS
from ..weights import LAYERS, QuantizedWeight
from .edit import drop_unused_tensors
from .plan import Plan
from .products import GraphLayer, frames_of
from .shapes import static_shape

_CHANNEL_AXES = {"conv2d": 1, "linear": -1, "matmul": 0}  # of what a product reads; two activations are divided by nothing


def insert_quantizers(graph_module: GraphModule, plan: Plan, timesteps: torch.Tensor) -> None:
    """Rewrite the captured graph in place: quantizer (of ``timesteps`` [T]) and integer layer in the place of every planned product.

    Consumers of the same tensor that read it alike, along the same channel axis, share one quantizer.
    """
    graph = graph_module.graph
    timestep = graph.find_nodes(op="placeholder", target="timestep")[0]
    shared: dict[tuple[Any, ...], Node] = {}
    for layer in plan.quantized:
        node = layer.node
        operands = [a for a in node.args[:2] if isinstance(a, Node)] if layer.op == "matmul" else [node.args[0]]
        calls = list(operands) if layer.weight_only else []
        for position, operand in enumerate(operands if not layer.weight_only else []):
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


def _quantizer_call(graph_module: GraphModule, plan: Plan, layer: GraphLayer, x: Node, name: str, timestep: Node, timesteps: torch.Tensor,
                    shared: dict[tuple[Any, ...], Node]) -> Node:  # fmt: skip
    reading, axis = plan.reading(layer, x), _CHANNEL_AXES[layer.op]
    key = (x, axis, reading)
    if key not in shared:
        channels = 1 if layer.op == "matmul" else static_shape(x.meta["val"])[axis]
        quantizer = QUANTIZERS[reading.kind](timesteps, reading.fmt, symmetric=reading.symmetric, axis=axis, channels=channels)
        quantizer.frames = frames_of(layer.node)
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


def _build_layer(graph_module: GraphModule, layer: GraphLayer) -> nn.Module:
    kind = LAYERS[layer.kind]
    if layer.op == "matmul":
        return kind()
    assert issubclass(kind, QuantizedWeight)
    arguments = [*layer.node.args]
    weight = graph_module.get_buffer(str(arguments[1].target))  # type: ignore[union-attr]
    bias = arguments[2] if len(arguments) > 2 else layer.node.kwargs.get("bias")
    bias_tensor = graph_module.get_buffer(str(bias.target)) if isinstance(bias, Node) else None
    geometry = conv_geometry(arguments) if layer.op == "conv2d" else ()
    made = kind(weight, bias_tensor, layer.weight_format, *geometry, **layer.options)
    made.widths = layer.widths
    return made


def conv_geometry(arguments: Sequence[Any]) -> tuple[list[int], list[int], list[int], int]:
    """Stride, padding, dilation and groups of an ``aten.conv2d`` call, with its defaults for what is not given."""
    defaults: list[Any] = [[1, 1], [0, 0], [1, 1], 1]
    given = list(arguments[3:7])
    stride, padding, dilation, groups = given + defaults[len(given) :]
    return list(stride), list(padding), list(dilation), int(groups)
