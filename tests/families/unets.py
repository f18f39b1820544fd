"""Families whose denoiser is a UNet or a part of one."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    ControlNetModel,
    DDPMScheduler,
    EulerDiscreteScheduler,
    I2VGenXLUNet,
    Kandinsky3UNet,
    LCMScheduler,
    StableCascadeUNet,
    UNet1DModel,
    UNet2DConditionModel,
    UNet2DModel,
    UNet3DConditionModel,
    UNetMotionModel,
    UNetSpatioTemporalConditionModel,
)
from torch import nn

from tests.families.family import PROMPTS, TOKENS, Conditions, Family, Refusal, mask, seeded, text

LATENT = (4, 8, 8)
FRAMES = 2


def unet(**options: Any) -> UNet2DConditionModel:
    """Stable Diffusion's UNet, two levels, text of width 32."""
    config: dict[str, Any] = {
        "sample_size": 8, "block_out_channels": (16, 32), "layers_per_block": 1, "cross_attention_dim": 32, "norm_num_groups": 8,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": 4,
    }  # fmt: skip
    return UNet2DConditionModel(**{**config, **options})


def sdxl() -> UNet2DConditionModel:
    return unet(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4), use_linear_projection=True, transformer_layers_per_block=(1, 1), addition_embed_type="text_time",
        addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 16,
    )  # fmt: skip


class WithIpAdapter(nn.Module):
    """A UNet whose cross-attention also reads 4 tokens of a picture's embedding, as ``load_ip_adapter`` makes it."""

    def __init__(self, network: UNet2DConditionModel, width: int = 20) -> None:
        super().__init__()
        network._load_ip_adapter_weights([ip_adapter_weights(network, width)])
        self.network = network

    def forward(self, sample: Any, timestep: Any, encoder_hidden_states: Any, image_embeds: Any) -> Any:
        """``image_embeds`` [N, 1, width]."""
        return self.network(sample, timestep, encoder_hidden_states, added_cond_kwargs={"image_embeds": [image_embeds]}).sample


def ip_adapter_weights(network: UNet2DConditionModel, width: int, tokens: int = 4) -> dict[str, Any]:
    """What an adapter's file has: a projection of the picture's embedding, and keys and values for each cross-attention."""
    across = network.config.cross_attention_dim
    weights = {
        "image_proj": {
            "proj.weight": seeded(tokens * across, width) / width**0.5, "proj.bias": torch.zeros(tokens * across),
            "norm.weight": torch.ones(across), "norm.bias": torch.zeros(across),
        },
        "ip_adapter": {},
    }  # fmt: skip
    across_attentions = [name.removesuffix(".processor") for name in network.attn_processors if "attn2" in name]
    for i, name in enumerate(across_attentions):
        inner = network.get_submodule(name).to_k.out_features
        for kind in ("to_k_ip", "to_v_ip"):
            weights["ip_adapter"][f"{2 * i + 1}.{kind}.weight"] = seeded(inner, across, seed=i) / across**0.5
    return weights


class Inpainting(nn.Module):
    """Inpainting's UNet of 9 channels: the sample, and behind it the mask and the masked picture as conditions."""

    def __init__(self) -> None:
        super().__init__()
        self.network = unet(in_channels=9)

    def forward(self, sample: Any, timestep: Any, encoder_hidden_states: Any, mask: Any, masked: Any) -> Any:
        """``mask`` [N, 1, H, W], ``masked`` [N, 4, H, W]."""
        return self.network(torch.cat([sample, mask, masked], dim=1), timestep, encoder_hidden_states).sample


class ImageToVideo(nn.Module):
    """Stable Video Diffusion's UNet of 8 channels: the sample, and behind it the picture that the video begins with as a condition."""

    def __init__(self) -> None:
        super().__init__()
        self.network = UNetSpatioTemporalConditionModel(
            sample_size=8, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=32, num_attention_heads=(2, 4),
            down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
            up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
            addition_time_embed_dim=8, projection_class_embeddings_input_dim=24, num_frames=FRAMES,
        )  # fmt: skip

    def forward(self, sample: Any, timestep: Any, encoder_hidden_states: Any, image_latents: Any, added_time_ids: Any) -> Any:
        """``image_latents`` [N, frames, 4, H, W]."""
        return self.network(torch.cat([sample, image_latents], dim=2), timestep, encoder_hidden_states, added_time_ids).sample


def residuals() -> Conditions:
    """What a ControlNet gives to ``unet()``: a residual for each skip, and one for the middle."""
    sizes = [(16, 8), (16, 8), (16, 4), (32, 4)]
    down = tuple(0.1 * seeded(PROMPTS, c, s, s, seed=s + c) for c, s in sizes)
    return {**text(32), "down_block_additional_residuals": down, "mid_block_additional_residual": 0.1 * seeded(PROMPTS, 32, 4, 4)}


def controlnet() -> ControlNetModel:
    return ControlNetModel(
        block_out_channels=(16, 32), layers_per_block=1, cross_attention_dim=32, norm_num_groups=8, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), conditioning_embedding_out_channels=(8, 16),
    )  # fmt: skip


_VIDEO: dict[str, Any] = {"block_out_channels": (16, 32), "layers_per_block": 1, "cross_attention_dim": 32, "norm_num_groups": 8}


class PerFrame(nn.Module):
    """AnimateDiff's network, whose text is given once for each frame."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, sample: Any, timestep: Any, encoder_hidden_states: Any) -> Any:
        return self.network(sample, timestep, encoder_hidden_states.repeat_interleave(sample.shape[2], dim=0)).sample


FAMILIES = [
    Family(
        "UNet2D",
        lambda: UNet2DModel(
            sample_size=8, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        ),
        (3, 8, 8), scheduler=DDPMScheduler,
    ),
    Family("Stable Diffusion 1.5", unet, LATENT, lambda: text(32)),
    Family(
        "Stable Diffusion XL", sdxl, LATENT,
        lambda: {**text(32), "text_embeds": seeded(PROMPTS, 16), "time_ids": 100 * seeded(PROMPTS, 6).abs()},
    ),
    Family("ControlNet's residuals", unet, LATENT, residuals),
    Family("ControlNet", controlnet, LATENT, lambda: {**text(32), "controlnet_cond": seeded(PROMPTS, 3, 16, 16)}),
    Family("Inpainting", Inpainting, LATENT, lambda: {**text(32), "mask": seeded(PROMPTS, 1, 8, 8), "masked": seeded(PROMPTS, *LATENT)}),
    Family(
        "Inpainting, called directly", lambda: unet(in_channels=9), (9, 8, 8), lambda: text(32),
        refused=Refusal(
            "quantize", "UsageError", "takes samples of [9, 8, 8] and gives [4, 8, 8]",
            "9 channels in and 4 out are not a sample that a scheduler can step; mask and masked picture are conditions in the row above",
        ),
    ),
    Family("IP-Adapter", lambda: WithIpAdapter(unet()), LATENT, lambda: {**text(32), "image_embeds": seeded(PROMPTS, 1, 20)}),
    Family(
        "LCM", lambda: unet(time_cond_proj_dim=16), LATENT, lambda: {**text(32), "timestep_cond": seeded(PROMPTS, 16)},
        LCMScheduler, {"sampler": "pipeline"},
    ),
    Family(
        "Kandinsky 3",
        lambda: Kandinsky3UNet(
            in_channels=4, time_embedding_dim=16, groups=4, attention_head_dim=8, layers_per_block=2, block_out_channels=(16, 32),
            cross_attention_dim=16, encoder_hid_dim=24,
        ),
        LATENT, lambda: {**text(24), **mask()}, snr_db=9.0,
        why="the noise of 239 layers adds up: −45 dB put into each is −25 dB at the end, and −31 dB in Stable Diffusion 1.5",
    ),
    Family(
        "Stable Video Diffusion", ImageToVideo, (FRAMES, 4, 8, 8),
        lambda: {**text(32, 1), "image_latents": seeded(PROMPTS, FRAMES, 4, 8, 8), "added_time_ids": seeded(PROMPTS, 3).abs()},
        EulerDiscreteScheduler,
    ),
    Family(
        "AnimateDiff",
        lambda: PerFrame(
            UNetMotionModel(
                sample_size=8, down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
                up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"), num_attention_heads=2, motion_num_attention_heads=2, **_VIDEO,
            )
        ),
        (4, FRAMES, 8, 8), lambda: text(32),
    ),
    Family(
        "Text-to-video (ModelScope)",
        lambda: UNet3DConditionModel(
            sample_size=8, attention_head_dim=8, down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
            up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"), **_VIDEO,
        ),
        (4, FRAMES, 8, 8), lambda: text(32),
    ),
    Family(
        "I2VGen-XL",
        lambda: I2VGenXLUNet(
            sample_size=8, attention_head_dim=8, num_attention_heads=2, down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
            up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"), **_VIDEO,
        ),
        (4, FRAMES, 8, 8),
        lambda: {**text(32), "fps": torch.tensor([8.0, 12.0, 16.0]), "image_latents": seeded(PROMPTS, 4, FRAMES, 8, 8),
                 "image_embeddings": seeded(PROMPTS, 32)},
    ),
    Family(
        "Stable Cascade, prior",
        lambda: StableCascadeUNet(
            in_channels=4, out_channels=4, timestep_ratio_embedding_dim=8, conditioning_dim=16, block_out_channels=(16, 16),
            num_attention_heads=(2, 2), down_num_layers_per_block=(1, 1), up_num_layers_per_block=(1, 1), clip_text_in_channels=20,
            clip_text_pooled_in_channels=20, clip_image_in_channels=20, clip_seq=2, switch_level=(False,),
        ),
        (4, 8, 8),
        lambda: {"clip_text_pooled": seeded(PROMPTS, 1, 20), "clip_text": seeded(PROMPTS, TOKENS, 20),
                 "clip_img": seeded(PROMPTS, 1, 20)},
    ),
    Family(
        "UNet1D",
        lambda: UNet1DModel(
            sample_size=16, in_channels=4, out_channels=4, extra_in_channels=0, time_embedding_type="positional",
            use_timestep_embedding=True, block_out_channels=(16, 32), layers_per_block=1, act_fn="mish", norm_num_groups=8,
            out_block_type="OutConv1DBlock",
            down_block_types=("DownResnetBlock1D", "DownResnetBlock1D"), up_block_types=("UpResnetBlock1D",),
            mid_block_type="MidResTemporalBlock1D", downsample_each_block=False, freq_shift=1.0, flip_sin_to_cos=False,
        ),
        (4, 16), quick=True,
    ),
]  # fmt: skip
