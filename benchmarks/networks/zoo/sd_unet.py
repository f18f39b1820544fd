"""``UNet2DConditionModel`` with Stable Diffusion's blocks at a quarter of its width, predicting velocity as Stable Diffusion 2 does."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..network import Network

TOKENS, TEXT = 77, 192


class StableDiffusionUNet(nn.Module):
    """Blocks, heads and layers are Stable Diffusion 1's; widths 80, 160, 320, 320."""

    def __init__(self, width: int = 80, text: int = TEXT, layers: int = 2) -> None:
        super().__init__()
        from diffusers import UNet2DConditionModel

        self.unet: Any = UNet2DConditionModel(
            sample_size=24, in_channels=4, out_channels=4, block_out_channels=(width, 2 * width, 4 * width, 4 * width),
            cross_attention_dim=text, attention_head_dim=8, norm_num_groups=8, layers_per_block=layers,
        )  # fmt: skip

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor) -> torch.Tensor:
        """The predicted velocity."""
        predicted: torch.Tensor = self.unet(sample, timestep, encoder_hidden_states).sample
        return predicted


NETWORK = Network("sd_unet", "diffusers `UNet2DConditionModel`, Stable Diffusion's at quarter width", StableDiffusionUNet, "velocity",
                  shape=(4, 24, 24), conditions="tokens", condition="encoder_hidden_states", condition_shape=(TOKENS, TEXT),
                  small={"width": 16, "layers": 1})  # fmt: skip
make = NETWORK.make
