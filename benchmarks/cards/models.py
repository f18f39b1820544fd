"""Large denoisers as their authors configured them, without weights (on the meta device), and the inputs of one pass.

The numbers are those of the published ``config.json`` files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

META = torch.device("meta")


def noise(*shape: int) -> Tensor:
    """An input of that shape, which holds no values."""
    return torch.empty(shape, device=META)


@dataclass(frozen=True)
class Model:
    """A network and one sample of its inputs, at the size that it was trained for."""

    name: str
    make: Callable[[], Any]
    inputs: Callable[[], dict[str, Any]]

    def parameters(self) -> int:
        """How many numbers it learned."""
        with META:
            return sum(p.numel() for p in self.make().parameters())

    def macs(self) -> int:
        """Multiply-accumulates of one pass of one sample, attention's products too; counted, not computed."""
        with META, FlopCounterMode(display=False) as counter, torch.no_grad():
            self.make()(**self.inputs())
        return int(counter.get_total_flops()) // 2


def _sd15() -> Any:
    return UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)


def _sdxl() -> Any:
    return UNet2DConditionModel(
        sample_size=128, block_out_channels=(320, 640, 1280), cross_attention_dim=2048, attention_head_dim=(5, 10, 20),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10), use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
    )  # fmt: skip


def _sd35(layers: int, dual: int, positions: int) -> Any:
    return SD3Transformer2DModel(
        sample_size=128, num_layers=layers, num_attention_heads=layers, attention_head_dim=64, caption_projection_dim=64 * layers,
        joint_attention_dim=4096, pos_embed_max_size=positions, dual_attention_layers=tuple(range(dual)), qk_norm="rms_norm",
    )  # fmt: skip


def _flux() -> Any:
    return FluxTransformer2DModel(guidance_embeds=True)


def _unet(latent: int, width: int, **more: Any) -> dict[str, Any]:
    return {"sample": noise(1, 4, latent, latent), "timestep": noise(1), "encoder_hidden_states": noise(1, 77, width), **more}


def _of_sdxl() -> dict[str, Any]:
    return _unet(128, 2048, added_cond_kwargs={"text_embeds": noise(1, 1280), "time_ids": noise(1, 6)})


def _of_sd35() -> dict[str, Any]:
    text = {"encoder_hidden_states": noise(1, 333, 4096), "pooled_projections": noise(1, 2048)}
    return {"hidden_states": noise(1, 16, 128, 128), "timestep": noise(1), **text}


def _of_flux() -> dict[str, Any]:
    text = {"encoder_hidden_states": noise(1, 512, 4096), "pooled_projections": noise(1, 768), "txt_ids": noise(512, 3)}
    return {"hidden_states": noise(1, 4096, 64), "timestep": noise(1), "guidance": noise(1), "img_ids": noise(4096, 3), **text}


MODELS = (
    Model("SD 1.5, 512²", _sd15, lambda: _unet(64, 768)),
    Model("SDXL, 1024²", _sdxl, _of_sdxl),
    Model("SD3.5 medium, 1024²", lambda: _sd35(24, 13, 384), _of_sd35),
    Model("SD3.5 large, 1024²", lambda: _sd35(38, 0, 192), _of_sd35),
    Model("FLUX.1, 1024²", _flux, _of_flux),
)
