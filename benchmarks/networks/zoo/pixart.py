"""``PixArtTransformer2DModel`` of diffusers: adaLN-single, cross-attention to text, a learned variance beside the prediction."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..network import Network

TOKENS, TEXT = 40, 256


class PixArt(nn.Module):
    """PixArt-α's structure, with a head size and a depth that one thread can handle."""

    def __init__(self, layers: int = 10, heads: int = 6) -> None:
        super().__init__()
        from diffusers import PixArtTransformer2DModel

        self.transformer: Any = PixArtTransformer2DModel(
            num_attention_heads=heads, attention_head_dim=64, in_channels=4, out_channels=8, num_layers=layers, sample_size=24,
            patch_size=2, cross_attention_dim=64 * heads, caption_channels=TEXT,
        )  # fmt: skip

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor) -> torch.Tensor:
        """The prediction and the variance [N, 8, H, W]."""
        predicted: torch.Tensor = self.transformer(sample, encoder_hidden_states, timestep).sample
        return predicted


NETWORK = Network("pixart", "diffusers `PixArtTransformer2DModel`, 10 layers of 384", PixArt, "velocity", shape=(4, 24, 24),
                  conditions="tokens", condition="encoder_hidden_states", condition_shape=(TOKENS, TEXT), family="transformer",
                  small={"layers": 1, "heads": 1})  # fmt: skip
make = NETWORK.make
