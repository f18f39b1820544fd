"""Super-resolution by concatenation as SR3 does it: the network sees the noisy picture beside the enlarged small one."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..network import Network


class SuperResolution(nn.Module):
    """``low`` [N, 1, 8, 8] is what becomes sharp."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        from diffusers import UNet2DModel

        self.net: Any = UNet2DModel(
            sample_size=32, in_channels=2, out_channels=1, block_out_channels=(width, 2 * width, 3 * width), layers_per_block=1,
            down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"), norm_num_groups=8,
            up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"), attention_head_dim=8,
        )  # fmt: skip

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
        """The predicted noise."""
        up = torch.nn.functional.interpolate(low, scale_factor=4.0, mode="nearest")
        predicted: torch.Tensor = self.net(torch.cat([sample, up], dim=1), timestep).sample
        return predicted


NETWORK = Network("super_resolution", "super-resolution, SR3's way, `UNet2DModel`", SuperResolution, "noise", conditions="pictures",
                  condition="low", small={"width": 8})  # fmt: skip
make = NETWORK.make
