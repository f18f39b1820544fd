"""A LoRA that peft saved: adapter_config.json and its file of weights, for any denoiser, its pipeline in diffusers asked or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..artifacts.reading import read_json, read_tensors, tensor_shapes
from ..errors import ArtifactError, raise_if_out_of_memory, summarized

CONFIG_NAME = "adapter_config.json"
"""Beside the weights, as ``PeftModel.save_pretrained`` writes it."""
_PREFIX = "base_model.model."
_ADAPTER = "lora"


def saved_by_peft(file: Path) -> bool:
    """Whether a file of weights is peft's own: by its configuration beside it and the names of its tensors."""
    return (file.parent / CONFIG_NAME).is_file() and all(name.startswith(_PREFIX) for name in tensor_shapes(file))


def load_peft(model: torch.nn.Module, file: Path, scale: float) -> None:
    """Wrap the layers of ``model`` that the adapter changes, in place, with weights from ``file`` that count ``scale`` times.

    Raises ArtifactError for an adapter of another kind than LoRA, one that was trained for other layers, and one that is not whole.
    """
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
    from peft.tuners.lora import LoraLayer

    path, kind = file.parent / CONFIG_NAME, type(model).__name__
    made_of: Any = LoraConfig  # peft has no types
    found: Any
    fields = read_json(path, "the configuration of an adapter")
    if not isinstance(fields, dict) or fields.get("peft_type") != "LORA":
        raise ArtifactError(f"{path} is not that of a LoRA, and no other adapter is read from a file", _OTHERWISE)
    try:
        config = made_of.from_peft_type(**{**fields, "inference_mode": True})
    except Exception as error:  # peft raises several kinds for fields that it does not know
        raise ArtifactError(f"{path} is not a configuration that this peft reads: {summarized(error)}") from error
    weights = {name.removeprefix(_PREFIX): tensor for name, tensor in read_tensors(file).items()}
    try:
        inject_adapter_in_model(config, model, adapter_name=_ADAPTER)
        found = set_peft_model_state_dict(model, weights, adapter_name=_ADAPTER)
    except Exception as error:  # peft and torch raise several kinds for layers that are not there
        raise_if_out_of_memory(error, f"loading the LoRA {file}")
        raise ArtifactError(f"cannot load the LoRA {file} into a {kind}: {summarized(error)}") from error
    left, missing = list(found.unexpected_keys), [name for name in found.missing_keys if "lora_" in name]
    if left or missing:
        which = f"belong to no layer of it: {left[0]}" if left else f"are missing: {missing[0]}"
        raise ArtifactError(f"the LoRA {file} does not fit the {kind}: {len(left or missing)} of its matrices {which}", _OTHERWISE)
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.set_scale(_ADAPTER, scale)


_OTHERWISE = "take one that was trained for this model, or merge it yourself: PeftModel.from_pretrained(pipe.unet, DIR).merge_and_unload()"
