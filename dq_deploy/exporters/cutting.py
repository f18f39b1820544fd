"""A bundle's graph cut short: the values that its manifest names, and a graph that gives some of them."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir
import onnx_ir.passes.common as passes

from ..artifacts import Artifact
from ..errors import ArtifactError

_NAMED = 5  # values in a message


def named_values(bundle: Artifact, graph: ir.Graph, names: Iterable[str]) -> dict[str, ir.Value]:
    """The values of a bundle's graph that its manifest names. Raises ArtifactError, naming the first, where it has not all of them."""
    values, names = ir.convenience.create_value_mapping(graph), dict.fromkeys(names)
    if missing := [name for name in names if name not in values]:
        listed = ", ".join(map(repr, missing[:_NAMED]))
        raise ArtifactError(f"{bundle.path}: the graph has no value {listed}, which its manifest names", "export it again")
    return {name: values[name] for name in names}


def cut_to(model: ir.Model, outputs: Iterable[str]) -> None:
    """Let a model give these values alone, in this order, each once, and take the inputs that they need. In place."""
    graph = model.graph
    values = ir.convenience.create_value_mapping(graph)
    graph.outputs[:] = [values[name] for name in dict.fromkeys(outputs)]
    passes.RemoveUnusedNodesPass()(model)
    graph.inputs[:] = [value for value in graph.inputs if value.uses()]
