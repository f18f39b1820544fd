"""``UNet2DModel`` of diffusers as google/ddpm-cifar10-32 has it, at three eighths of its width."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..network import Network


def build(width: int = 48) -> nn.Module:
    """The model."""
    from diffusers import UNet2DModel

    model: Any = UNet2DModel(
        sample_size=32, in_channels=1, out_channels=1, block_out_channels=(width, 2 * width, 2 * width, 2 * width), layers_per_block=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"), attention_head_dim=None, downsample_padding=0,
        flip_sin_to_cos=False, freq_shift=1, norm_eps=1e-6, norm_num_groups=width // 3,
    )  # fmt: skip
    return Plain(model)


class Plain(nn.Module):
    """Gives the tensor itself."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, sample: Any, timestep: Any) -> Any:
        """The predicted noise."""
        return self.model(sample, timestep).sample


NETWORK = Network("unet2d", "diffusers `UNet2DModel`, DDPM's structure", build, "noise", small={"width": 12})
make = NETWORK.make
