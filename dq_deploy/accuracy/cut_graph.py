"""A bundle's graph without its products: what each of them gives is an input."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from ..artifacts import Artifact
from ..artifacts.details import BundleDetails
from ..artifacts.reading import read_ir
from ..exporters.cutting import cut_to, named_values

Array = np.ndarray[Any, Any]


class CutGraph:
    """A bundle's graph with every product's output as an input. ``ends``: value names by quantizer, float layer and output."""

    def __init__(self, bundle: Artifact[BundleDetails]) -> None:
        details = self.details = bundle.details
        self.ir = read_ir(bundle.file("model.onnx"), listed=bundle.manifest.files)
        graph = self.ir.graph
        products = named_values(bundle, graph, [layer.output for layer in details.layers])
        self.ends = {site.name: site.input for site in details.quantizers}
        self.ends |= {layer.name: layer.input for layer in details.layers if layer.input is not None}
        self.ends["out_sample"] = str(graph.outputs[0].name)
        self.cuts: dict[str, str] = {}
        for index, layer in enumerate(details.layers):
            value = products[layer.output]
            fed = ir.Value(name=f"product_{index}", type=value.type, shape=value.shape)
            ir.convenience.replace_all_uses_with(value, fed, replace_graph_outputs=True)
            graph.inputs.append(fed)
            self.cuts[layer.name] = str(fed.name)
            self.ends = {name: str(fed.name) if end == layer.output else end for name, end in self.ends.items()}
        given = {str(v.name) for v in graph.inputs}
        self.ends = {name: end for name, end in self.ends.items() if end not in given}
        cut_to(self.ir, self.ends.values())  # without the products, and their weights
        ir.external_data.load_to_model(self.ir)

    def model(self, outputs: list[str]) -> bytes:
        """The cut graph that gives these values."""
        copy = ir.from_proto(ir.to_proto(self.ir))
        cut_to(copy, outputs)
        serialized: bytes = ir.serde.serialize_model(copy).SerializeToString()
        return serialized

    def feeds(self, session: Any, inputs: list[torch.Tensor], fed: dict[str, torch.Tensor]) -> dict[str, Array]:
        """The inputs that a session of the cut graph has, in its types: arrays [N, ...] by name."""
        known = dict(zip(self.details.input_names, inputs, strict=True))
        known |= {cut: fed[name] for name, cut in self.cuts.items()}
        if self.details.target == "onnxruntime":
            known["timestep"] = known["timestep"][:1]
        types = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16}
        return {spec.name: known[spec.name].to(types.get(spec.type, known[spec.name].dtype)).numpy() for spec in session.get_inputs()}
