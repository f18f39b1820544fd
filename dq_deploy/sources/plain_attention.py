"""Attention as diffusers makes it by default: products and a softmax that a graph can hold, whatever was switched on to save memory."""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

_FUSED = ("to_qkv", "to_kv", "to_added_qkv")


def set_plain_attention(model: nn.Module) -> None:
    """Undo slicing, chunking, fused projections, xformers and other backends, in place. Adapters of images keep their weights."""
    if "diffusers" not in sys.modules:
        return
    _unfuse(model)
    part: Any
    for part in model.modules():
        if getattr(part, "_chunk_size", None) is not None and hasattr(part, "set_chunk_feed_forward"):
            part._chunk_size = None
        processor = getattr(part, "processor", None)
        if processor is not None and hasattr(part, "set_processor"):
            _plain_processor(part, processor)


def _unfuse(model: Any) -> None:
    before = getattr(model, "original_attn_processors", None)
    fused = [part for part in model.modules() if getattr(part, "fused_projections", False) is True and hasattr(part, "to_q")]
    if before is not None and fused:
        model.set_attn_processor(before)
        vars(model).pop("original_attn_processors")
    for part in fused:
        for name in _FUSED:
            if hasattr(part, name):
                delattr(part, name)
        part.fused_projections = False


def _plain_processor(part: Any, processor: Any) -> None:
    from diffusers.models import attention_processor as of_diffusers

    name = type(processor).__name__
    if name == "XFormersJointAttnProcessor":
        part.set_processor(of_diffusers.JointAttnProcessor2_0())
    elif "AddedKV" in name and ("XFormers" in name or name.startswith("Sliced")):
        part.set_processor(of_diffusers.AttnAddedKVProcessor2_0())
    elif "XFormers" in name or name.startswith("Sliced"):
        part.set_use_memory_efficient_attention_xformers(False)  # the one that keeps an image adapter's weights
    elif hasattr(processor, "_attention_backend"):
        from diffusers.models.attention_dispatch import AttentionBackendName

        # Setting a backend on a model sets it for all that have none.
        processor._attention_backend = AttentionBackendName.NATIVE
