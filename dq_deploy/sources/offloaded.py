"""Weights that are not where the module has them: accelerate and diffusers keep those of an offloaded module elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..artifacts.reading.safetensors_files import read_tensors


def offloaded_values(module: nn.Module) -> dict[int, torch.Tensor]:
    """Value, of any shape, of every parameter and buffer that is offloaded, by the id of the tensor that stands in its place."""
    found: dict[int, torch.Tensor] = {}
    for part in module.modules():
        for hook in _accelerate_hooks(vars(part).get("_hf_hook")):
            found |= _from_map(part, hook)
        registry = vars(part).get("_diffusers_hook")
        for hook in getattr(registry, "hooks", {}).values():
            found |= _from_disk(getattr(hook, "group", None))
    return found


def _accelerate_hooks(hook: Any) -> Iterator[Any]:
    if hook is not None:
        yield hook
        for inner in getattr(hook, "hooks", ()):  # of a SequentialHook
            yield from _accelerate_hooks(inner)


def _from_map(part: nn.Module, hook: Any) -> dict[int, torch.Tensor]:
    """What accelerate has put on the meta device (``enable_sequential_cpu_offload``, ``device_map``)."""
    weights = getattr(hook, "weights_map", None)
    if weights is None:
        return {}
    deep = bool(getattr(hook, "place_submodules", False))
    tensors = [*part.named_parameters(recurse=deep), *part.named_buffers(recurse=deep)]
    found = {}
    for name, tensor in tensors:
        if tensor.is_meta:
            with suppress(KeyError):  # accelerate's maps list their names with prefixes, and are asked without
                found[id(tensor)] = weights[name]
    return found


def _from_disk(group: Any) -> dict[int, torch.Tensor]:
    """What diffusers' group offloading has written to a file; the tensors in memory are then empty."""
    file = getattr(group, "safetensors_file_path", None)
    if file is None or not Path(file).exists():
        return {}
    stored = read_tensors(Path(file))
    return {id(tensor): stored[key] for tensor, key in group.tensor_to_key.items()}
