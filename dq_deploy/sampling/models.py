"""The two models that draw: an artefact on its engine, and the float model that it came from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..artifacts import Artifact
from ..engines.choice import Runtime, best_runtime
from ..engines.dropin import DropInModel, load
from ..errors import ArtifactError, UsageError
from ..sources import Source, reload_source
from .classes import input_names

IN_MEMORY = "object:"
"""How the reference of a source begins that was an object in Python."""


def quantized_model(artifact: Artifact, runtime: Runtime, *, watch: bool) -> tuple[DropInModel, str]:
    """The model to draw with, and what runs it."""
    if watch:
        return load(artifact, runtime=runtime, watch=True), "onnxruntime"
    if artifact.manifest.kind == "engine":
        return load(artifact, runtime=runtime), artifact.manifest.details["backend"]
    if artifact.manifest.kind == "bundle":
        return load(artifact, runtime=runtime), best_runtime(artifact) if runtime == "auto" else runtime
    from ..quantization.checkpoint import load_checkpoint

    return _wrapped(load_checkpoint(artifact.path).model, artifact), "pytorch"


def float_source(artifact: Artifact, hint: str | None = None) -> Source:
    """The source that was quantized, from where it came.

    Raises ArtifactError when what is there now has other weights, and UsageError when it came from no place that can be read again; both
    with ``hint``.
    """
    origin = artifact.manifest.details.get("source") or {}
    if not origin.get("reference") or origin["reference"].startswith(IN_MEMORY):
        raise UsageError(f"{artifact.path} was made from a model in memory, so there is no float model to compare with", hint)
    source = reload_source(origin)
    if source.sha256 != origin["sha256"]:
        raise ArtifactError(f"{origin['reference']} has other weights now than when {artifact.path} was made from it", hint)
    return source


def float_model(artifact: Artifact) -> DropInModel:
    """The model of ``float_source`` as what a pipeline expects. Raises as that does."""
    return _wrapped(float_source(artifact, "sample without the comparison: --no-compare-float").model, artifact)


def _wrapped(model: Callable[..., Any], artifact: Artifact) -> DropInModel:
    """Any ``model(sample, timestep, **conditions)`` as what a pipeline expects, its sizes taken from the artefact."""
    details = artifact.manifest.details
    shape, names = details["sample_shape"], input_names(artifact)
    sizes = {"in_channels": shape[0], "sample_size": tuple(shape[1:])} if len(shape) == 3 else {}

    def forward(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        sample, timestep, *conditions = (inputs[name] for name in names)
        output = model(sample, timestep.float().expand(len(sample)), **dict(zip(names[2:], conditions, strict=True)))
        return output if isinstance(output, torch.Tensor) else output[0]

    own = {name: value for name, value in (details.get("model_config") or {}).items() if value is not None or name not in sizes}
    return DropInModel(forward, names, {**sizes, **own})
