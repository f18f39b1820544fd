"""The two models that draw: an artefact on its engine, and the float model that it came from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..artifacts import Artifact
from ..engines.choice import Runtime, best_runtime
from ..engines.dropin import DropInModel, load
from ..errors import ArtifactError, UsageError
from ..sources import reload_source
from .classes import input_names


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


def float_model(artifact: Artifact) -> DropInModel:
    """The model that was quantized, from where it came.

    Raises ArtifactError when what is there now has other weights, and UsageError when it came from no place that can be read again.
    """
    origin = artifact.manifest.details.get("source") or {}
    hint = "sample without the comparison: --no-compare-float"
    if not origin.get("reference"):
        raise UsageError(f"{artifact.path} was made from a model in memory, so there is no float model to compare with", hint)
    source = reload_source(origin)
    if source.sha256 != origin["sha256"]:
        raise ArtifactError(f"{origin['reference']} has other weights now than when {artifact.path} was made from it", hint)
    return _wrapped(source.model, artifact)


def _wrapped(model: Callable[..., Any], artifact: Artifact) -> DropInModel:
    """Any ``model(sample, timestep, **conditions)`` as what a pipeline expects, its sizes taken from the artefact."""
    details = artifact.manifest.details
    channels, height, width = details["sample_shape"]
    names = input_names(artifact)

    def forward(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        sample, timestep, *conditions = (inputs[name] for name in names)
        output = model(sample, timestep.float().expand(len(sample)), **dict(zip(names[2:], conditions, strict=True)))
        return output if isinstance(output, torch.Tensor) else output[0]

    config = {**(details.get("model_config") or {}), "in_channels": channels, "sample_size": (height, width)}
    return DropInModel(forward, names, config)
