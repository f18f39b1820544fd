"""What a drop-in answers for the diffusers model that it stands for, and how it refuses the rest.

Pipelines ask their denoiser for more than its output: a number from its class, a layer, a method that changes it. Numbers are answered from
a model of that class without weights; nothing else can be, and every refusal says so in the same words.
"""

from __future__ import annotations

import functools
import json
import logging
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...errors import UsageError
from ...sources.ip_adapter import CONFIG_KEY as IP_ADAPTER

_LOG = logging.getLogger(__name__)
_ADAPTERS = "quantize the model with its adapter: dq-deploy quantize SOURCE --lora FILE, or give quantize the pipeline that has loaded it"
_PICTURES = "an IP-Adapter is quantized with the model: dq-deploy quantize SOURCE --ip-adapter FILE --ip-adapter-image PICTURE"
_SAVING = "the folder that it was loaded from is what there is to keep: copy that"
_OTHERWISE = "do this to the float model before it is quantized, or put the float model back for this"


class NotInDropInError(UsageError, AttributeError):
    """A drop-in has no such attribute. ``hasattr`` takes it for the AttributeError that it is."""

    def __init__(self, name: str, class_name: str | None, path: Path | None) -> None:
        what = f"runs {path}" if path else "runs an engine"
        whose = f"a {class_name}'s" if class_name else "the model's"
        super().__init__(
            f"a drop-in has no attribute '{name}': it {what}, and answers {whose} forward pass and configuration, "
            "while the layers and the code around them are inside the engine",
            _hint(name),
        )


def _hint(name: str) -> str:
    if name == "encoder_hid_proj":
        return _PICTURES
    if any(word in name for word in ("adapter", "lora", "load_attn_procs")):
        return _ADAPTERS
    return _SAVING if name.startswith(("save_", "push_to_hub")) else _OTHERWISE


def controlnet_class(config: Mapping[str, Any]) -> Any:
    """The class of diffusers where this configuration is a ControlNet's, else None: pipelines ask for that class by ``isinstance``."""
    kind = _class_of(config.get("_class_name"))
    return kind if kind is not None and "ControlNet" in kind.__name__ else None


def class_has(config: Mapping[str, Any], name: str) -> bool:
    """Whether diffusers' class of this configuration has such a method."""
    return hasattr(_class_of(config.get("_class_name")), name)


def plain_attribute(config: Mapping[str, Any], name: str) -> Any:
    """A number, text or tuple that diffusers' model of this configuration has under ``name``; None where it has none."""
    kind = _class_of(config.get("_class_name"))
    if kind is None or isinstance(getattr(kind, name, None), types.FunctionType):
        return None
    try:
        found = getattr(_skeleton(json.dumps(dict(config), sort_keys=True, default=str)), name, None)
    except Exception:  # noqa: BLE001  a class may refuse to be made without weights, in words of its own
        _LOG.debug("%s cannot be asked for %s", config.get("_class_name"), name, exc_info=True)
        return None
    return found if _is_plain(found) else None


def _class_of(name: str | None) -> Any:
    import diffusers

    found = getattr(diffusers, name, None) if name else None
    return found if isinstance(found, type) and issubclass(found, diffusers.ModelMixin) else None


@functools.lru_cache(maxsize=4)
def _skeleton(config: str) -> Any:
    """The model without weights: its tensors have shapes and no numbers."""
    fields = json.loads(config)
    fields.pop(IP_ADAPTER, None)  # diffusers loads it into the model that is made
    with torch.device("meta"):
        return _class_of(fields["_class_name"]).from_config(fields)


def _is_plain(value: Any) -> bool:
    return isinstance(value, bool | int | float | str) or (isinstance(value, tuple) and all(map(_is_plain, value)))
