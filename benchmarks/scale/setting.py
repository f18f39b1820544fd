"""What is quantized, and with which options."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, cast

import torch

FLOAT_BYTES = 4


@dataclass(frozen=True)
class Setting:
    """A UNet of Stable Diffusion 1.5's kind, and a calibration that its user would wait for. The defaults are its real configuration."""

    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    cross_attention_dim: int = 768
    sample_size: int = 64  # latents; a picture's edge is 8 times as long
    tokens: int = 77
    preset: str = "w8a8"
    dilation: str = "none"
    steps: int = 4
    calibration_samples: int = 2
    reference_samples: int = 1
    batch_size: int = 1
    seed: int = 0

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Setting:
        """The inverse of ``to_json``."""
        return cls(**{**values, "block_out_channels": tuple(values["block_out_channels"])})

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "block_out_channels": list(self.block_out_channels)}

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """Of one latent."""
        return 4, self.sample_size, self.sample_size

    def model(self) -> torch.nn.Module:
        """The UNet, with random weights."""
        from diffusers import UNet2DConditionModel

        torch.manual_seed(self.seed)
        levels = len(self.block_out_channels)
        model: Any = UNet2DConditionModel(
            sample_size=self.sample_size,
            block_out_channels=self.block_out_channels,
            layers_per_block=self.layers_per_block,
            cross_attention_dim=self.cross_attention_dim,
            attention_head_dim=8,  # eight heads: diffusers keeps the name for the files that have it
            down_block_types=("CrossAttnDownBlock2D",) * (levels - 1) + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (levels - 1),
        )
        return cast("torch.nn.Module", model.eval())

    def scheduler(self) -> Any:
        """Stable Diffusion 1.5's noise schedule."""
        from diffusers import DDIMScheduler

        return DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1
        )

    def conditions(self) -> dict[str, torch.Tensor]:
        """Text embeddings: noise of their size."""
        generator = torch.Generator().manual_seed(self.seed)
        shape = (self.calibration_samples, self.tokens, self.cross_attention_dim)
        return {"encoder_hidden_states": torch.randn(shape, generator=generator)}


SMALL = Setting(block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=32, sample_size=16, tokens=8, steps=2)
"""Every stage in seconds."""
