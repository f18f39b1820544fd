"""The two models that draw: an artefact on its engine, and the float model that it came from."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..artifacts import Artifact, is_kind
from ..artifacts.details import RunnableDetails
from ..engines.descriptors.registry import REFERENCE
from ..engines.dropin import DropInModel, load, watchable
from ..engines.loading.choice import Runtime, runtime_name
from ..engines.loading.size_range import SizeRange
from ..errors import ArtifactError, UsageError
from ..quantization.calling import TIMESTEP, CallForm, packed
from ..sources import Source, reload_source

IN_MEMORY = "object:"
"""How the reference of a source begins that was an object in Python."""


def quantized_model(artifact: Artifact, runtime: Runtime, *, watch: bool, cache: float | None = None) -> tuple[DropInModel, str]:
    """The model to draw with, and what runs it. Raises UsageError for a checkpoint with ``cache``, and as ``load`` does."""
    if watch:
        return load(watchable(artifact, runtime), runtime=runtime, watch=True, cache=cache), REFERENCE.name
    if is_kind(artifact, RunnableDetails):
        return load(artifact, runtime=runtime, cache=cache), runtime_name(artifact, runtime)
    if cache is not None:
        raise UsageError(
            f"{artifact.path} is a checkpoint, which PyTorch runs whole, and only a bundle is cached across steps",
            f"dq-deploy export {artifact.path} -o BUNDLE --target qdq, and give that",
        )
    from ..quantization.checkpoint import load_checkpoint

    model, sizes = load_checkpoint(artifact.path).model, SizeRange.of(artifact)

    def forward(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        sizes.check(inputs)
        sample = next(iter(inputs.values()))
        if not sizes.free and list(sample.shape[1:]) != artifact.details.sample_shape:
            raise UsageError(
                f"the sample is {list(sample.shape[1:])}, and {artifact.path} was calibrated at {artifact.details.sample_shape}",
                "leave --height and --width out, or quantize it at several sizes: --sizes",
            )
        answered: torch.Tensor = model(*inputs.values())
        return answered

    return _wrapped(forward, artifact), "pytorch"


def float_source(artifact: Artifact, hint: str | None = None) -> Source:
    """The source that was quantized, from where it came.

    Raises ArtifactError when what is there now has other weights, and UsageError when it came from no place that can be read again; both
    with ``hint``.
    """
    origin = artifact.details.source
    if origin is None or not origin.reference or origin.reference.startswith(IN_MEMORY):
        raise UsageError(f"{artifact.path} was made from a model in memory, so there is no float model to compare with", hint)
    source = reload_source(origin, artifact.path)
    if source.sha256 != origin.sha256:
        raise ArtifactError(f"{origin.reference} has other weights now than when {artifact.path} was made from it", hint)
    return source


def float_model(artifact: Artifact) -> DropInModel:
    """The model of ``float_source`` as what a pipeline expects. Raises as that does."""
    model = float_source(artifact, "sample without the comparison: --no-compare-float").model
    arguments = (artifact.details.call_record or {}).get("arguments")
    form = CallForm.of_record(arguments) if arguments else CallForm.plain(model, artifact.details.input_names)
    return _wrapped(lambda inputs: packed(form.call(model, inputs), sample_list=form.sample_list), artifact)


def _wrapped(model: Callable[[dict[str, torch.Tensor]], torch.Tensor], artifact: Artifact) -> DropInModel:
    """A model of inputs by name as what a pipeline expects, its sizes taken from the artefact."""
    details = artifact.details
    shape, names = details.sample_shape, details.input_names
    sizes = {"in_channels": shape[0], "sample_size": tuple(shape[1:])} if len(shape) == 3 else {}

    def forward(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        timestep = inputs[TIMESTEP].float().expand(len(inputs[names[0]]))
        return model({name: inputs[name] for name in names} | {TIMESTEP: timestep})

    own = {name: value for name, value in (details.network_config or {}).items() if value is not None or name not in sizes}
    return DropInModel(forward, names, {**sizes, **own}, call=details.call_record)
