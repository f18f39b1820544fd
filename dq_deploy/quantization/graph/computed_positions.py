"""Positions that a network computes anew for another size than its configuration's, in a way that torch.export follows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

_METHODS = {"CogVideoXPatchEmbed": "_get_positional_embeddings"}


@contextmanager
def positions_that_export(module: nn.Module) -> Iterator[None]:
    """Let CogVideoX's patch embeddings put their positions together by concatenation: diffusers writes them through ``Tensor.data``."""
    kinds = {type(part) for part in module.modules() if type(part).__name__ in _METHODS}
    with ExitStack() as stack:
        for kind in kinds:
            stack.enter_context(patch.object(kind, _METHODS[kind.__name__], _of_videos))
        yield


def _of_videos(embed: Any, sample_height: int, sample_width: int, sample_frames: int, device: torch.device | None = None) -> torch.Tensor:
    """[1, text tokens + patches, C]: zeros for the text, and 3-d sines and cosines for the patches of a video."""
    from diffusers.models.embeddings import get_3d_sincos_pos_embed

    frames = (sample_frames - 1) // embed.temporal_compression_ratio + 1
    size = (sample_width // embed.patch_size, sample_height // embed.patch_size)
    scales = (embed.spatial_interpolation_scale, embed.temporal_interpolation_scale)
    patches = get_3d_sincos_pos_embed(embed.embed_dim, size, frames, *scales, device=device, output_type="pt").flatten(0, 1)
    return torch.cat([patches.new_zeros(embed.max_text_seq_length, embed.embed_dim), patches])[None]
