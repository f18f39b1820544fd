"""The float model that a checkpoint came from, for the baseline graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.fx import GraphModule

from ..errors import ArtifactError, UsageError
from .calling import CallForm
from .graph.capture import capture
from .graph.products import find_layers

if TYPE_CHECKING:
    from .checkpoint import Checkpoint


@dataclass(frozen=True)
class FloatModel:
    """A captured float graph, example inputs in its order, its products' names by node name, and its free dimensions' by input."""

    graph: GraphModule
    examples: dict[str, torch.Tensor]
    layers: dict[str, str]
    free: dict[str, dict[int, str]]


def load_float(checkpoint: Checkpoint) -> FloatModel:
    """Load and capture the source that the checkpoint's manifest names, and verify that its weights are the same.

    Raises UsageError when the checkpoint was made from a module in memory, ArtifactError when the source has changed.
    """
    from ..sources import reload_source

    source = checkpoint.details.source
    if source is None:
        raise UsageError("this checkpoint was made from a module in memory: the float model cannot be loaded again")
    loaded = reload_source(source, checkpoint.artifact.path)
    if loaded.sha256 != source.sha256:
        raise ArtifactError(f"the weights of {source.reference} are not those that the checkpoint was made from")
    examples = checkpoint.examples()
    call = checkpoint.details.call_record or {}
    form = CallForm.of_record(call["arguments"]) if call.get("arguments") else None
    graph = capture(loaded.model, examples, form=form, others=checkpoint.examples_elsewhere())
    return FloatModel(graph, examples, {layer.node.name: layer.name for layer in find_layers(graph)}, checkpoint.free_axes())
