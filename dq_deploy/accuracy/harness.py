"""A bundle's graph cut open at every quantizer: fed the recorded inputs of the reference, it gives all codes and layer outputs.

So an error is seen in the layer that makes it, and not what the network makes of it later.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

from ..artifacts import Artifact
from ..artifacts.details import BundleDetails, QuantizerSite
from ..artifacts.reading import read_ir
from ..errors import ArtifactError
from ..exporters.cutting import cut_to, named_values
from ..exporters.exact_sums import for_this_cpu

Array = np.ndarray[Any, Any]


def site_input(index: int) -> str:
    """Name of the harness input that stands for the input of the bundle's quantizer number ``index``."""
    return f"site_{index}"


def layer_input(index: int) -> str:
    """Name of the harness input that stands for the input of the bundle's layer number ``index``, whose activation stays float."""
    return f"layer_{index}"


def build_harness(bundle: Artifact[BundleDetails]) -> tuple[bytes, list[str]]:
    """The cut graph as a serialized ONNX model, and the names of its outputs: codes of every quantizer, then output of every layer.

    Layers whose activations stay float are cut at their input.

    Raises ArtifactError when the graph lacks values that the manifest names.
    """
    details = bundle.details
    model = read_ir(bundle.file("model.onnx"), listed=bundle.manifest.files)
    graph = model.graph
    compared = [site.codes for site in details.quantizers] + [layer.output for layer in details.layers]
    floats = [(i, layer, layer.input) for i, layer in enumerate(details.layers) if layer.input is not None]
    cut_at = [site.input for site in details.quantizers] + [read for _, _, read in floats]
    values = named_values(bundle, graph, [*compared, *cut_at])
    for index, site in enumerate(details.quantizers):
        _cut(graph, values[site.input], f"quantizer '{site.name}'", _prefix(site), site_input(index))
    for index, layer, read in floats:
        _cut(graph, values[read], f"layer '{layer.name}'", f"{layer.name}/", layer_input(index))
    outputs = list(dict.fromkeys(compared))
    cut_to(model, outputs)
    ir.external_data.load_to_model(model)
    for_this_cpu(model)
    return ir.serde.serialize_model(model).SerializeToString(), outputs


def _prefix(site: QuantizerSite) -> str:
    """What the names of a quantizer's nodes start with."""
    return f"{site.name}#pad{'x'.join(map(str, site.pads))}/" if site.pads else f"{site.name}/"


def _cut(graph: ir.Graph, value: ir.Value, what: str, prefix: str, name: str) -> None:
    """Feed a new graph input to the nodes of a quantizer or layer in the place of ``value``."""
    entries = list(_entries(value, prefix))
    if not entries:
        raise ArtifactError(f"{what} does not read the value '{value.name}' that the manifest names")
    shape = ir.Shape(list(value.shape)) if value.shape is not None else None
    first, position = entries[0]
    read = first.inputs[position]
    fed = ir.Value(name=name, type=ir.TensorType((read.dtype if read else None) or ir.DataType.FLOAT), shape=shape)
    graph.inputs.append(fed)
    for node, position in entries:
        node.replace_input_with(position, fed)


def _entries(value: ir.Value, prefix: str) -> Iterator[tuple[ir.Node, int]]:
    """Uses of ``value`` by nodes whose names start with ``prefix``, directly or behind a cast."""
    for node, position in list(value.uses()):
        if (node.name or "").startswith(prefix):
            yield node, position
        elif node.op_type == "Cast":
            yield from _entries(node.outputs[0], prefix)
