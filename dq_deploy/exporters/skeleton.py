"""A captured graph → an ONNX model in which every product and quantizer is one placeholder node that carries its name.

``torch.onnx.ops.symbolic`` carries them through the exporter untouched, so that each one becomes exactly the nodes that its kind and the
target want (``lower``), and weights never pass through the exporter at all.
"""

from __future__ import annotations

import inspect
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import singledispatch
from typing import Any

import onnx_ir as ir
import torch
from torch._dynamo.exc import UserError, UserErrorType
from torch.fx import GraphModule, Node

from ..errors import ArtifactError, raise_if_out_of_memory
from ..quantization.graph.edit import aten
from ..quantization.graph.insertion import conv_geometry, decode
from ..quantization.output_bias import TARGET as OUTPUT_BIAS
from ..quantization.weights import BlockedLinear, QuantizedConv2d, QuantizedLinear, QuantizedMatmul
from .simplify import simplify

DOMAIN = "dq_deploy"
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
OPSET = 21  # the lowest with INT4, and the highest that every runtime here reads


def _symbolic(op: str, inputs: tuple[torch.Tensor, ...], shape: Any, attributes: dict[str, Any]) -> torch.Tensor:
    return torch.onnx.ops.symbolic(f"{DOMAIN}::{op}", inputs, attributes, dtype=torch.float32, shape=shape, version=1)


def _quantize(x: torch.Tensor, name: str) -> torch.Tensor:
    return _symbolic("Quantize", (x,), x.shape, {"name": name})


def _output_bias(y: torch.Tensor, name: str) -> torch.Tensor:
    return _symbolic("OutputBias", (y,), y.shape, {"name": name})


def _conv2d(x: torch.Tensor, name: str, weight_shape: list[int], stride: list[int], padding: list[int], dilation: list[int],
            groups: int, parameters: list[torch.Tensor]) -> torch.Tensor:  # fmt: skip
    size = [(x.shape[2 + i] + 2 * padding[i] - dilation[i] * (weight_shape[2 + i] - 1) - 1) // stride[i] + 1 for i in range(2)]
    attributes = {"name": name, "strides": stride, "pads": [*padding, *padding], "dilations": dilation, "group": groups}
    return _symbolic("Conv", (x, *parameters), (x.shape[0], weight_shape[0], *size), attributes)


def _linear(x: torch.Tensor, name: str, out_features: int, parameters: list[torch.Tensor]) -> torch.Tensor:
    return _symbolic("Linear", (x, *parameters), (*x.shape[:-1], out_features), {"name": name})


def _matmul(a: torch.Tensor, b: torch.Tensor, name: str) -> torch.Tensor:
    return _symbolic("MatMul", (a, b), (*a.shape[:-1], b.shape[-1]), {"name": name})


Call = tuple[Callable[..., torch.Tensor], tuple[Any, ...]]


@singledispatch
def placeholder(layer: Any, arguments: tuple[Any, ...], name: str) -> Call:  # noqa: ARG001
    """What stands for a layer that is called with ``arguments``: a function, and its arguments; registered by the layer's class."""
    raise ArtifactError(f"the exporter has no placeholder for {type(layer).__name__}", "register one: exporters.skeleton.placeholder")


@placeholder.register
def _(layer: QuantizedConv2d, arguments: tuple[Any, ...], name: str) -> Call:
    geometry = layer.stride, layer.padding, layer.dilation, layer.groups
    return _conv2d, (arguments[0], name, list(layer.stored.codes.shape), *geometry, [])


@placeholder.register
def _(layer: QuantizedLinear | BlockedLinear, arguments: tuple[Any, ...], name: str) -> Call:
    return _linear, (arguments[0], name, layer.stored.codes.shape[0], [])


@placeholder.register
def _(layer: QuantizedMatmul, arguments: tuple[Any, ...], name: str) -> Call:  # noqa: ARG001
    return _matmul, (*arguments, name)


Axes = Mapping[str, Mapping[int, str]]
"""By input, the dimensions beside the batch that are free, and what they are called."""


def to_onnx(model: GraphModule, inputs: dict[str, torch.Tensor], float_layers: dict[str, str], free: Axes | None = None) -> ir.Model:
    """Export a captured or quantized graph with placeholders in domain ``dq_deploy``.

    They are ``Quantize``, ``Conv``, ``Linear``, ``MatMul`` and ``OutputBias``.
    ``inputs`` are examples [2, ...], in the graph's order; ``float_layers`` maps node names of unquantized products to layer names;
    ``free`` dimensions beside the batch have their names in the graph's inputs.
    Raises ArtifactError when the exporter does.
    """
    exported = graph_exported(_with_placeholders(model, float_layers), inputs, free or {})
    simplify(exported)
    return exported


def graph_exported(graph_module: GraphModule, inputs: dict[str, torch.Tensor], free: Axes) -> ir.Model:
    """What torch's exporter makes of a graph with placeholders and examples [2, ...]. Raises ArtifactError when it fails."""
    examples = tuple(inputs.values())
    further = [dict.fromkeys(free.get(name, {}), torch.export.Dim.AUTO) for name in inputs]
    dynamic = tuple({0: torch.export.Dim("batch", min=1), **dims} for dims in further)
    # It warns of torchvision's operators, which no model here has, on every start.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), _without_stack_traces():
            warnings.simplefilter("ignore")
            # Here and not in the exporter, which would find out too late that all inputs have one batch.
            exported = _exported(graph_module, examples, dynamic)
            program = torch.onnx.export(
                exported, examples, dynamo=True, opset_version=OPSET, input_names=list(inputs),
                output_names=["out_sample"], dynamic_shapes=dynamic, verbose=False, optimize=False,
            )  # fmt: skip
    except Exception as error:
        raise_if_out_of_memory(error)
        raise ArtifactError(f"the ONNX exporter failed: {explain(error)}") from error
    assert program is not None
    _name_sizes(program.model.graph, free)
    _name_output(program.model.graph, exported, free)
    return program.model


_NO_TRACES = "do_not_emit_stack_traces"  # newer torch


@contextmanager
def _without_stack_traces() -> Iterator[None]:
    """Without a stack trace for each node: all say that an interpreter ran the graph, and took some sixth of the exporter's time."""
    config = getattr(torch.fx, "config", None)
    before = getattr(config, _NO_TRACES, None)
    if before is None:
        yield
        return
    setattr(config, _NO_TRACES, True)
    try:
        yield
    finally:
        setattr(config, _NO_TRACES, before)


_AS_IT_RUNS = "prefer_deferred_runtime_asserts_over_guards"


def _exported(graph_module: GraphModule, examples: tuple[torch.Tensor, ...], dynamic: Any) -> torch.export.ExportedProgram:
    """The graph with its free dimensions.

    What it cannot prove of a batch (N · min(128, 128 · N) = 128 · N, where frames lie before the samples) it would check as it runs. The
    captured graph has been run at several batches, and ONNX has no such checks.
    """
    try:
        return torch.export.export(graph_module, examples, dynamic_shapes=dynamic, strict=False)
    except UserError as error:
        known = inspect.signature(torch.export.export).parameters  # newer torch
        if error.error_type is not UserErrorType.CONSTRAINT_VIOLATION or _AS_IT_RUNS not in known:
            raise
        later: dict[str, Any] = {_AS_IT_RUNS: True}
        return torch.export.export(graph_module, examples, dynamic_shapes=dynamic, strict=False, **later)


def _name_sizes(graph: ir.Graph, free: Axes) -> None:
    """Let every value's shape have the names of free dimensions in the place of the exporter's. Raises ArtifactError where one is fixed."""
    names: dict[str, str] = {}
    for value in graph.inputs:
        for dim, name in free.get(str(value.name), {}).items():
            assert value.shape is not None
            if isinstance(value.shape[dim], int):
                raise ArtifactError(f"the ONNX exporter fixes dimension {dim} of '{value.name}', which is free: it is {value.shape[dim]}")
            names[str(value.shape[dim])] = name
    if not names:
        return
    symbols = re.compile(r"\b(" + "|".join(map(re.escape, names)) + r")\b")
    values = [*graph.inputs, *(output for node in graph.all_nodes() for output in node.outputs)]
    for value in values:
        if value.shape is not None:
            value.shape = ir.Shape([d if isinstance(d, int) else symbols.sub(lambda found: names[found[0]], str(d)) for d in value.shape])


def _name_output(graph: ir.Graph, exported: torch.export.ExportedProgram, free: Axes) -> None:
    """Let the output have the sample's names where it has its sizes: the exporter has them as arithmetic, down and up again."""
    names = free.get(str(graph.inputs[0].name), {})
    if not names:
        return
    (value,), (node,) = graph.outputs, exported.graph.output_node().args[0]
    inputs = {n.name: n.meta["val"] for n in exported.graph.nodes if n.op == "placeholder"}
    before, after = inputs[exported.graph_signature.user_inputs[0]].shape, node.meta["val"].shape
    if value.shape is None or len(before) != len(after):
        return
    same = {dim: name for dim, name in names.items() if _captured(before[dim]) == _captured(after[dim])}
    value.shape = ir.Shape([same.get(dim, size) for dim, size in enumerate(value.shape)])


def _captured(size: Any) -> int:
    """What a size was when the graph was captured."""
    return int(size.node.hint) if isinstance(size, torch.SymInt) else int(size)


def explain(error: BaseException) -> str:
    """An exporter's error in full, without colours and without the traceback that it quotes; and the errors that caused it."""
    lines: list[str] = []
    current: BaseException | None = error
    seen: set[int] = set()
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        text = _COLOURS.sub("", str(current)).partition("(Refer to the full stack trace above")[0].partition("Traceback (most recent")[0]
        if not any(text.strip() in line for line in lines):
            lines.append(f"{type(current).__name__}: {text.strip()}")
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return "\ncaused by ".join(lines)


def _with_placeholders(model: GraphModule, float_layers: dict[str, str]) -> GraphModule:
    graph = torch.fx.Graph()
    copies: dict[Node, Node] = {}
    for node in model.graph.nodes:
        args = torch.fx.map_arg(node.args, lambda n: copies[n])
        if node.op == "call_module":
            copies[node] = _placeholder(model, graph, node, args)
        elif node.name in float_layers:
            copies[node] = _float_placeholder(model, graph, node, float_layers[node.name], args)
        elif node.op == "output":
            graph.output(args[0])
        else:
            copies[node] = graph.node_copy(node, lambda n: copies[n])
            if node.target == aten.clamp.default:
                _bounds_of_one_kind(copies[node])
        if node.op != "output":
            copies[node].meta = {"path": node.meta.get("path", "")}
    graph.eliminate_dead_code()
    return GraphModule(model, graph)


def _bounds_of_one_kind(node: Node) -> None:
    """``x.clamp(0, 0.5)`` as ``x.clamp(0.0, 0.5)``: the exporter's promotion of types fails on one integer and one float."""
    bounds = [*node.args[1:], *node.kwargs.values()]
    if any(isinstance(bound, float) for bound in bounds):
        node.args = (node.args[0], *(float(b) if isinstance(b, int) else b for b in node.args[1:]))
        node.kwargs = {name: float(b) if isinstance(b, int) else b for name, b in node.kwargs.items()}


def _placeholder(model: GraphModule, graph: torch.fx.Graph, node: Node, args: Any) -> Node:
    """Of a quantizer, an output bias or a layer."""
    target = str(node.target)
    if "quantizer" in node.meta:
        return graph.call_function(_quantize, (args[0], decode(target)))
    if target == OUTPUT_BIAS:
        return graph.call_function(_output_bias, (args[0], target))
    return graph.call_function(*placeholder(model.get_submodule(target), args, decode(target)))


def _float_placeholder(model: GraphModule, graph: torch.fx.Graph, node: Node, name: str, args: Any) -> Node:
    if node.target == aten.matmul.default:
        return graph.call_function(_matmul, (*args[:2], name))
    if node.target not in (aten.conv2d.default, aten.linear.default):
        return graph.create_node("call_function", node.target, args, dict(node.kwargs))  # exported as it is
    weight = model.get_buffer(str(node.args[1].target))  # type: ignore[union-attr]
    parameters = [a for a in (*args[1:3],) if a is not None]
    if node.target == aten.linear.default:
        return graph.call_function(_linear, (args[0], name, weight.shape[0], parameters))
    return graph.call_function(_conv2d, (args[0], name, list(weight.shape), *conv_geometry(args), parameters))
