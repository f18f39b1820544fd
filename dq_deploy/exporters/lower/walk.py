"""The walk over a graph's placeholders, which replaces each by its nodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir

from ...errors import ArtifactError
from ...formats import ScaleSource
from ...quantization.output_bias import OutputBias
from ...quantization.quantizers import ActivationQuantizer, computed_scale
from ..emitter import Emitter, attributes, replace
from ..skeleton import DOMAIN
from .float_product import float_product
from .kinds import Operand, Place, TargetWriter
from .output_bias import corrected


@dataclass
class Sites:
    """Where in the graph each quantizer and layer ended up, for the bundle's manifest."""

    quantizers: list[dict[str, Any]] = field(default_factory=list)
    layers: dict[str, str] = field(default_factory=dict)  # layer → output value
    inputs: dict[str, str] = field(default_factory=dict)  # layer whose activation stays float → the value that it reads
    planes: set[str] = field(default_factory=set)  # layers whose weights are bit planes


def lower(model: ir.Model, target: TargetWriter | None, layers: Mapping[str, Any], quantizers: Mapping[str, ActivationQuantizer], *,
          correction: OutputBias | None = None) -> Sites:  # fmt: skip
    """Replace every placeholder of ``to_onnx``, in place. Without a target all products are float ones.

    Raises ArtifactError for a layer that has no float form, or a kind for which nothing is registered.
    """
    graph, sites = model.graph, Sites()
    written = None if target is None else _Operands(graph, target, quantizers, sites)
    for node in list(graph):
        if node.domain != DOMAIN or node.op_type == "Quantize":
            continue
        name = attributes(node)["name"]
        if node.op_type == "OutputBias":
            assert target is not None
            assert correction is not None
            replace(node, corrected(Place(target, node, name), correction))
        elif name not in layers:
            replace(node, float_product(Emitter(graph, name, node, fp32=False), node))
        elif written is None:
            raise ArtifactError(f"layer '{name}' is quantized, and a float graph was requested")
        else:
            at = Place(written.target, node, name, written.of(node))
            if not at.operands:
                sites.inputs[name] = str(at.x.name)
            output = written.target.product(layers[name], at)
            replace(node, output)
            sites.layers[name] = str(output.name)
    for node in list(graph):
        if node.domain == DOMAIN:  # quantizers, now without readers
            graph.remove(node, safe=True)
    return sites


class _Operands:
    """The quantized forms of layers' inputs, each written once."""

    def __init__(self, graph: ir.Graph, target: TargetWriter, quantizers: Mapping[str, ActivationQuantizer], sites: Sites) -> None:
        self.graph, self.target, self.quantizers, self.sites = graph, target, quantizers, sites
        self._written: dict[tuple[str, tuple[int, ...]], Operand] = {}

    def of(self, node: ir.Node) -> tuple[Operand, ...]:
        """The operands of a layer's placeholder: none where it reads no quantizer."""
        producers = [value.producer() for value in node.inputs if value is not None]
        return tuple(self._operand(p, node) for p in producers if p is not None and (p.domain, p.op_type) == (DOMAIN, "Quantize"))

    def _operand(self, quantize: ir.Node, node: ir.Node) -> Operand:
        """The quantized form of what ``quantize`` reads; consumers with equal padding share one."""
        name = attributes(quantize)["name"]
        quantizer, pads = self.quantizers[name], list(attributes(node).get("pads", []))
        if not (any(pads) and self.target.pads_first and not quantizer.symmetric):
            pads = []
        key = (name, tuple(pads))
        if key not in self._written:
            x = quantize.inputs[0]
            assert x is not None
            emit = Emitter(self.graph, name + (f"#pad{'x'.join(map(str, pads))}" if pads else ""), quantize)
            right = all(user.op_type == "MatMul" and index == 1 for user, index in quantize.outputs[0].uses())
            operand = self.target.quantize(emit, x, quantizer, name, pads, right=right)
            self._written[key] = operand
            # FP8 codes as floats between Q/DQ: NumPy, which reads a graph's outputs, has no type for them. FP4 codes are floats where they
            # can be read at all (fp4_emulation).
            codes = operand.value if quantizer.format.floating and not quantizer.format.block else operand.codes
            site = {"name": name, "input": str(x.name), "codes": str(codes.name), "pads": pads, "code_type": str(operand.codes.dtype)}
            if quantizer.source is ScaleSource.COMPUTED:
                site |= computed_scale(quantizer)
            self.sites.quantizers.append(site)
        return self._written[key]
