"""Tiny diffusers pipelines with random weights: a class-conditional transformer, and text pipelines with a tokenizer of their own."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DiTTransformer2DModel,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer


def randomized(model: torch.nn.Module, std: float = 0.15) -> Any:
    """Random weights where an architecture starts with zeros (a fresh DiT ignores its classes and its timestep)."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return model.eval()


def tiny_dit(**options: Any) -> Any:
    """A pixel transformer: one channel of 8×8, 5 classes and the null class, predicting noise and variance."""
    torch.manual_seed(0)
    config: dict[str, Any] = {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "in_channels": 1,
        "out_channels": 2,
        "num_layers": 2,
        "sample_size": 8,
        "patch_size": 2,
        "num_embeds_ada_norm": 5,
        "norm_num_groups": 4,
    }
    return randomized(DiTTransformer2DModel(**{**config, **options}))


_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def tiny_tokenizer() -> CLIPTokenizer:
    """One token a letter, padded to 8."""
    words = [*_LETTERS, *(letter + "</w>" for letter in _LETTERS), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=8)


def tiny_text_encoder(width: int = 16, *, projected: bool = False) -> Any:
    """CLIP's text encoder, one layer; ``projected`` is SDXL's second one."""
    config = CLIPTextConfig(
        vocab_size=54, hidden_size=width, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=8,
        bos_token_id=52, eos_token_id=53, pad_token_id=53, projection_dim=width,
    )  # fmt: skip
    torch.manual_seed(1)
    return randomized((CLIPTextModelWithProjection if projected else CLIPTextModel)(config), std=0.5)


def tiny_conditioned_unet(**options: Any) -> Any:
    """A UNet with cross-attention on 16 channels of text, 4 latent channels of 8×8."""
    torch.manual_seed(2)
    config: dict[str, Any] = {
        "sample_size": 8,
        "layers_per_block": 1,
        "block_out_channels": (8,),
        "norm_num_groups": 4,
        "attention_head_dim": 4,
        "cross_attention_dim": 16,
        "mid_block_type": None,
        "down_block_types": ("CrossAttnDownBlock2D",),
        "up_block_types": ("UpBlock2D",),
    }
    return randomized(UNet2DConditionModel(**{**config, **options}))


def tiny_vae() -> Any:
    torch.manual_seed(3)
    return AutoencoderKL(
        block_out_channels=(4, 4), norm_num_groups=2, latent_channels=4, sample_size=16, down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    ).eval()  # fmt: skip


def tiny_stable_diffusion(scheduler: Any = None, **options: Any) -> StableDiffusionPipeline:
    """Stable Diffusion with everything tiny; PNDM with its offset, as the original ships."""
    pipeline = StableDiffusionPipeline(
        vae=tiny_vae(),
        text_encoder=tiny_text_encoder(),
        tokenizer=tiny_tokenizer(),
        unet=tiny_conditioned_unet(**options),
        scheduler=scheduler or PNDMScheduler(skip_prk_steps=True, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def tiny_stable_diffusion_xl() -> StableDiffusionXLPipeline:
    """SDXL: two text encoders, a pooled embedding and size conditions in ``added_cond_kwargs``."""
    unet = tiny_conditioned_unet(
        cross_attention_dim=32, addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=16 + 6 * 4,
    )  # fmt: skip
    pipeline = StableDiffusionXLPipeline(
        vae=tiny_vae(),
        text_encoder=tiny_text_encoder(),
        text_encoder_2=tiny_text_encoder(projected=True),
        tokenizer=tiny_tokenizer(),
        tokenizer_2=tiny_tokenizer(),
        unet=unet,
        scheduler=EulerDiscreteScheduler(),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
