"""A bundle's graph cut open at every quantizer: fed the recorded inputs of the reference, it gives all codes and layer outputs.

So an error is seen in the layer that makes it, and not what the network makes of it later.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from ..artifacts import Artifact
from ..errors import ArtifactError

Array = np.ndarray[Any, Any]


def site_input(index: int) -> str:
    """Name of the harness input that stands for the input of the bundle's quantizer number ``index``."""
    return f"site_{index}"


def build_harness(bundle: Artifact) -> tuple[bytes, list[str]]:
    """The cut graph as a serialized ONNX model, and the names of its outputs: codes of every quantizer, then output of every layer.

    Raises ArtifactError when the graph has not the values that the manifest names.
    """
    details = bundle.manifest.details
    model = ir.load(bundle.file("model.onnx"))
    graph = model.graph
    values = _values_by_name(graph)
    wanted = [q["codes"] for q in details["quantizers"]] + [layer["output"] for layer in details["layers"]]
    missing = [name for name in [*wanted, *(q["input"] for q in details["quantizers"])] if name not in values]
    if missing:
        raise ArtifactError(f"{bundle.path}: the graph has no value {', '.join(map(repr, missing[:5]))}, which its manifest names")
    for index, quantizer in enumerate(details["quantizers"]):
        _cut(graph, values[quantizer["input"]], quantizer, index)
    outputs = list(dict.fromkeys(wanted))
    graph.outputs[:] = [values[name] for name in outputs]
    passes.RemoveUnusedNodesPass()(model)
    used = [v for v in graph.inputs if v.uses()]
    graph.inputs[:] = used
    ir.external_data.load_to_model(model)
    return ir.serde.serialize_model(model).SerializeToString(), outputs


def _values_by_name(graph: ir.Graph) -> dict[str, ir.Value]:
    found = {str(v.name): v for v in graph.inputs}
    for node in graph:
        found.update({str(v.name): v for v in node.outputs})
    return found


def _cut(graph: ir.Graph, value: ir.Value, quantizer: dict[str, Any], index: int) -> None:
    """Feed a new graph input to the quantizer's nodes in the place of ``value``."""
    entries = list(_entries(value, quantizer["name"], quantizer["pads"]))
    if not entries:
        raise ArtifactError(f"quantizer '{quantizer['name']}' does not read the value '{quantizer['input']}' that the manifest names")
    shape = ir.Shape(list(value.shape)) if value.shape is not None else None
    fed = ir.Value(name=site_input(index), type=ir.TensorType(ir.DataType.FLOAT), shape=shape)
    graph.inputs.append(fed)
    for node, position in entries:
        node.replace_input_with(position, fed)


def _entries(value: ir.Value, name: str, pads: list[int]) -> Iterator[tuple[ir.Node, int]]:
    """Uses of ``value`` by the quantizer's own nodes, directly or behind a cast to fp32."""
    prefix = f"{name}#pad{'x'.join(map(str, pads))}/" if pads else f"{name}/"
    for node, position in list(value.uses()):
        if (node.name or "").startswith(prefix):
            yield node, position
        elif node.op_type == "Cast":
            yield from _entries(node.outputs[0], name, pads)
