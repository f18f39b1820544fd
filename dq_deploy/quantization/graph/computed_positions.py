"""Positions that a network computes anew for another size than its configuration's, in a way that torch.export follows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

_LONGEST = 1 << 20  # more tokens than any table of positions has


@contextmanager
def positions_that_export(module: nn.Module) -> Iterator[None]:
    """Let CogVideoX's patch embeddings put their positions together by concatenation: diffusers writes them through ``Tensor.data``.

    And Qwen-Image's rotary embeddings cut the text's positions by its length as a symbol, of which diffusers takes ``int``.
    """
    kinds = {type(part) for part in module.modules()}
    with ExitStack() as stack:
        for kind in kinds:
            if kind.__name__ == "CogVideoXPatchEmbed":
                stack.enter_context(patch.object(kind, "_get_positional_embeddings", _of_videos))
            elif kind.__name__ in ("QwenEmbedRope", "QwenEmbedLayer3DRope"):
                stack.enter_context(patch.object(kind, "forward", _cut_to_the_text(kind.forward)))
        yield


def _cut_to_the_text(own: Callable[..., Any]) -> Callable[..., Any]:
    """A rotary embedding's forward that takes all positions that a text can have, and as many of them as it has."""

    def forward(embed: Any, *args: Any, max_txt_seq_len: Any = None, **options: Any) -> Any:
        if not isinstance(max_txt_seq_len, torch.SymInt):
            return own(embed, *args, max_txt_seq_len=max_txt_seq_len, **options)
        of_picture, of_text = own(embed, *args, max_txt_seq_len=_LONGEST, **options)
        return of_picture, of_text[:max_txt_seq_len]

    return forward


def _of_videos(embed: Any, sample_height: int, sample_width: int, sample_frames: int, device: torch.device | None = None) -> torch.Tensor:
    """[1, text tokens + patches, C]: zeros for the text, and 3-d sines and cosines for the patches of a video."""
    from diffusers.models.embeddings import get_3d_sincos_pos_embed

    frames = (sample_frames - 1) // embed.temporal_compression_ratio + 1
    size = (sample_width // embed.patch_size, sample_height // embed.patch_size)
    scales = (embed.spatial_interpolation_scale, embed.temporal_interpolation_scale)
    patches = get_3d_sincos_pos_embed(embed.embed_dim, size, frames, *scales, device=device, output_type="pt").flatten(0, 1)
    return torch.cat([patches.new_zeros(embed.max_text_seq_length, embed.embed_dim), patches])[None]
