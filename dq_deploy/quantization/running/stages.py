"""What a finished stage of a run is as tensors and JSON, and back."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch.fx import GraphModule

from ..calibration.trajectories import Trajectories
from .work_folder import Stage


def pack_trajectories(data: Trajectories) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors [T, n, ...], and all else: every field of the class, whatever they are."""
    tensors: dict[str, torch.Tensor] = {}
    record: dict[str, Any] = {}
    for field in fields(data):
        value = getattr(data, field.name)
        if isinstance(value, torch.Tensor):
            tensors[field.name] = value
        elif isinstance(value, dict):
            record[field.name] = list(value)
            tensors.update({f"{field.name}.{key}": tensor for key, tensor in value.items()})
        elif isinstance(value, tuple):
            packed = [pack_trajectories(other) for other in value]
            record[field.name] = {"of each": [inner for _, inner in packed]}
            tensors.update({f"{field.name}.{i}.{key}": tensor for i, (inner, _) in enumerate(packed) for key, tensor in inner.items()})
        else:
            record[field.name] = value
    return tensors, record


def unpack_trajectories(stage: Stage) -> Trajectories:
    """The trajectories that ``pack_trajectories`` was given."""
    values: dict[str, Any] = {}
    for field in fields(Trajectories):
        keys = stage.record.get(field.name)
        if field.name in stage.tensors:
            values[field.name] = stage.tensors[field.name]
        elif isinstance(keys, list):
            values[field.name] = {key: stage.tensors[f"{field.name}.{key}"] for key in keys}
        elif isinstance(keys, dict):
            values[field.name] = tuple(_inner(stage, f"{field.name}.{i}.", record) for i, record in enumerate(keys["of each"]))
        else:
            values[field.name] = keys
    return Trajectories(**values)


def _inner(stage: Stage, prefix: str, record: dict[str, Any]) -> Trajectories:
    """Trajectories within others."""
    tensors = {name.removeprefix(prefix): tensor for name, tensor in stage.tensors.items() if name.startswith(prefix)}
    return unpack_trajectories(Stage(tensors, record))


@torch.no_grad()
def load_state(model: GraphModule, tensors: dict[str, torch.Tensor], *, partial: bool = False) -> None:
    """Set parameters and buffers of a quantized graph, of any shape, into the memory that they have.

    ``partial``: weights that are not among ``tensors`` stay as they are.
    """
    for name, tensor in model.state_dict().items():
        if not (partial and name.endswith(".weight") and name not in tensors):
            tensor.copy_(tensors[name])
