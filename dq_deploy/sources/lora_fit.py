"""Whether an adapter file is at work, all of it, in the pipeline that it was loaded into: diffusers only warns of what it leaves out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import ArtifactError

_SHOWN = 3
_HINT = (
    "take one that was trained for this model; one that peft saved (names that begin with base_model.model) needs its adapter_config.json "
    "beside it"
)


def check_fit(pipeline: Any, path: Path) -> None:
    """Compare the matrices of the file ``path`` with those of the adapters in the pipeline's models, by value: names differ by format.

    Raises ArtifactError for matrices that no model has taken, and for those that a model asks for and the file lacks.
    """
    given, held = _of_file(pipeline, path), _of_models(pipeline)
    known = {_digest(tensor) for tensor in held.values() if not tensor.is_meta}
    left = [name for name, tensor in given.items() if _digest(tensor) not in known]
    _refuse(pipeline, path, left, len(given))
    offered = {_digest(tensor) for tensor in given.values()}
    missing = [name for name, tensor in held.items() if tensor.is_meta or _digest(tensor) not in offered]
    if missing:
        raise ArtifactError(
            f"the LoRA {path} is not whole: it has one of the two matrices of a layer, and lacks {_listed(missing)}", "get the file again"
        )


def check_layers(pipeline: Any, path: Path) -> None:
    """As ``check_fit`` does for what fits no layer, by name: for a file that diffusers could not load.

    Names that do not say a layer of one of the pipeline's parts, as other formats' do, are passed over.
    """
    given = _of_file(pipeline, path)
    left = []
    for name in given:
        part, _, inside = name.partition(".")
        layer, found, _ = inside.partition(".lora_")
        module = pipeline.components.get(part)
        if found and isinstance(module, torch.nn.Module) and not _has_layer(module, layer):
            left.append(name)
    _refuse(pipeline, path, left, len(given))


def _has_layer(module: torch.nn.Module, layer: str) -> bool:
    """Whether a module has a layer of that name, which may have a wrapper's before it, such as ``text_model``, or lack one."""
    names = (f".{name}" for name, _ in module.named_modules() if name)
    return any(name.endswith(f".{layer}") or f".{layer}".endswith(name) for name in names)


def _refuse(pipeline: Any, path: Path, left: Sequence[str], count: int) -> None:
    if left:
        kind = type(pipeline).__name__
        raise ArtifactError(f"{len(left)} of the {count} matrices in {path} belong to no layer of this {kind}: {_listed(left)}", _HINT)


def _of_file(pipeline: Any, path: Path) -> dict[str, torch.Tensor]:
    """Its matrices, under the names and in the form that diffusers gives those of other formats."""
    found = pipeline.lora_state_dict(str(path.parent), weight_name=path.name, local_files_only=True)
    state: Mapping[str, Any] = found[0] if isinstance(found, tuple) else found
    return {name: tensor for name, tensor in state.items() if _is_matrix(name, tensor)}


def _of_models(pipeline: Any) -> dict[str, torch.Tensor]:
    models = {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
    return {
        f"{part}.{name}": parameter
        for part, model in models.items()
        for name, parameter in model.named_parameters()
        if _is_matrix(name, parameter)
    }


def _is_matrix(name: str, tensor: Any) -> bool:
    return isinstance(tensor, torch.Tensor) and tensor.dim() > 1 and "lora" in name and "magnitude" not in name


def _digest(tensor: torch.Tensor) -> str:
    plain = tensor.detach().to("cpu", torch.float32).contiguous()
    return hashlib.sha256(plain.numpy().tobytes()).hexdigest()


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
