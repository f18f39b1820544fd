"""What both targets share: walking the placeholders, and products that stay in float."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from ..errors import ArtifactError
from ..quantization.checkpoint import Layer
from ..quantization.layers import ActivationQuantizer
from ..quantization.output_bias import OutputBias
from ..quantization.weight_only import WeightOnly
from .emitter import Emitter, attributes, replace
from .skeleton import DOMAIN
from .weight_only import weight_only_product

Array = np.ndarray[Any, Any]


@dataclass
class Sites:
    """Where in the graph each quantizer and layer ended up, for the bundle's manifest."""

    quantizers: list[dict[str, Any]] = field(default_factory=list)
    layers: dict[str, str] = field(default_factory=dict)  # layer → output value
    inputs: dict[str, str] = field(default_factory=dict)  # layer whose activation stays float → the value that it reads


@dataclass(frozen=True)
class Operand:
    """A quantized activation in the graph: the value to multiply, and what its quantizer is."""

    value: ir.Value
    quantizer: ActivationQuantizer
    name: str
    padded: bool = False


class Target(Protocol):
    """How a target writes quantizers and integer layers."""

    def pads_first(self, quantizer: ActivationQuantizer) -> bool:
        """Whether the padding of a convolution belongs in front of its quantizer."""

    def quantize(self, emit: Emitter, x: ir.Value, quantizer: ActivationQuantizer, name: str, pads: list[int], *,
                 right: bool) -> tuple[Operand, ir.Value]:  # fmt: skip
        """Emit a quantizer of ``x``; gives the operand and the value that holds the codes.

        ``right``: the operand is the right side of products alone.
        """

    def product(self, emit: Emitter, layer: Layer, node: ir.Node, operands: list[Operand], name: str) -> ir.Value:
        """Emit an integer layer and give its output."""

    def row_of(self, emit: Emitter, name: str, table: Array) -> ir.Value:
        """The rows [N, ...] or the row [...] of a table [T, ...] for this timestep; a constant [1, ...] where all rows are the same."""


def lower(model: ir.Model, target: Target | None, layers: dict[str, Layer], quantizers: dict[str, ActivationQuantizer], *,
          correction: OutputBias | None = None, int4: bool = False, folds: bool = False) -> Sites:  # fmt: skip
    """Replace every placeholder of ``to_onnx``, in place. Without a target all products are float ones.

    ``int4`` stores weights of up to 4 bits as INT4 where activations stay float; beside integer ones the target decides.
    ``folds``: the engine computes what is constant once, when it loads the graph, but a DequantizeLinear on every run.
    """
    graph, sites = model.graph, Sites()
    emitted: dict[tuple[str, tuple[int, ...]], Operand] = {}
    for node in list(graph):
        if node.domain != DOMAIN or node.op_type == "Quantize":
            continue
        name = attributes(node)["name"]
        if node.op_type == "OutputBias":
            assert target is not None
            assert correction is not None
            replace(node, _corrected(Emitter(graph, name, node), target, node, correction, name))
            continue
        if name not in layers:
            replace(node, _float_product(Emitter(graph, name, node, fp32=False), node))
            continue
        if target is None:
            raise ArtifactError(f"layer '{name}' is quantized, and a float graph was asked for")
        layer = layers[name]
        if isinstance(layer, WeightOnly):
            assert node.inputs[0] is not None
            sites.inputs[name] = str(node.inputs[0].name)
            output = weight_only_product(graph, layer, node, name, int4=int4, folds=folds)
            replace(node, output)
            sites.layers[name] = str(output.name)
            continue
        operands = [_operand(graph, target, value, node, quantizers, emitted, sites) for value in node.inputs if value is not None]
        output = target.product(Emitter(graph, name, node), layer, node, operands, name)
        replace(node, output)
        sites.layers[name] = str(output.name)
    for node in list(graph):
        if node.domain == DOMAIN:  # quantizers, now without readers
            graph.remove(node, safe=True)
    return sites


def _corrected(emit: Emitter, target: Target, node: ir.Node, correction: OutputBias, name: str) -> ir.Value:
    (y,) = node.inputs
    assert y is not None
    assert y.shape is not None
    return emit.op("Sub", [y, target.row_of(emit, f"{name}.table", correction.rows(len(y.shape)).numpy())])


def _operand(graph: ir.Graph, target: Target, value: ir.Value, node: ir.Node, quantizers: dict[str, ActivationQuantizer],
             emitted: dict[tuple[str, tuple[int, ...]], Operand], sites: Sites) -> Operand:  # fmt: skip
    """The quantized form of a layer's input; consumers with equal padding share one."""
    producer = value.producer()
    assert producer is not None
    assert producer.op_type == "Quantize"
    name = attributes(producer)["name"]
    pads = list(attributes(node).get("pads", []))
    key = (name, tuple(pads) if any(pads) and target.pads_first(quantizers[name]) else ())
    if key not in emitted:
        x = producer.inputs[0]
        assert x is not None
        prefix = name + (f"#pad{'x'.join(map(str, pads))}" if key[1] else "")
        right = all(user.op_type == "MatMul" and index == 1 for user, index in producer.outputs[0].uses())
        operand, codes = target.quantize(Emitter(graph, prefix, producer), x, quantizers[name], name, list(key[1]), right=right)
        emitted[key] = operand
        sites.quantizers.append(
            {
                "name": name,
                "input": str(x.name),
                "codes": str(codes.name),
                "pads": list(key[1]),
                "code_type": str(codes.dtype),
            }
        )
    return emitted[key]


def _float_product(emit: Emitter, node: ir.Node) -> ir.Value:
    """A product that stays in float. Bias is separate only where ONNX has no input for it."""
    options = {k: v for k, v in attributes(node).items() if k != "name"}
    inputs = [v for v in node.inputs if v is not None]
    if node.op_type == "Conv":
        return emit.op("Conv", inputs, **options)
    if node.op_type == "MatMul":
        return emit.op("MatMul", inputs)
    weight = inputs[1].const_value
    assert weight is not None
    transposed = emit.constant(f"{inputs[1].name}.T", np.ascontiguousarray(weight.numpy().T))
    y = emit.op("MatMul", [inputs[0], transposed])
    return y if len(inputs) < 3 else emit.op("Add", [y, inputs[2]])
