"""Tiny pipelines of newer transformers with random weights, each with the class of text encoder that its users have."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AnimateDiffPipeline,
    AutoencoderDC,
    AutoencoderKLCogVideoX,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    UNetMotionModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
)

from tests.tiny_pipelines import randomized, tiny_t5, tiny_t5_tokenizer, tiny_text_encoder, tiny_tokenizer, tiny_vae

_CHAT = "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}"
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_WIDTH = 16


def qwen_tokenizer() -> Qwen2Tokenizer:
    """One token a byte."""
    words = [*sorted(ByteLevel.alphabet()), *_SPECIAL]
    return Qwen2Tokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], chat_template=_CHAT, pad_token="<|endoftext|>")


def _vocabulary() -> int:
    return len(ByteLevel.alphabet()) + len(_SPECIAL) + 1


def qwen3(layers: int, *, whole: bool = False) -> Any:
    """Qwen 3, or with ``whole`` its model of language around it, which FLUX.2 has."""
    torch.manual_seed(11)
    config = Qwen3Config(
        vocab_size=_vocabulary(), hidden_size=_WIDTH, intermediate_size=16, num_hidden_layers=layers, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=1024,
    )  # fmt: skip
    return randomized((Qwen3ForCausalLM if whole else Qwen3Model)(config), std=0.3)


def qwen_vl() -> Any:
    """Qwen 2.5 VL, whose text alone is read."""
    torch.manual_seed(12)
    text = {
        "vocab_size": _vocabulary(), "hidden_size": _WIDTH, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "rope_parameters": {"mrope_section": [1, 1, 2], "rope_type": "default", "rope_theta": 1e6},
    }  # fmt: skip
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": _WIDTH}
    return randomized(Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision)), std=0.3)


def tiny_flux_2() -> Flux2KleinPipeline:
    """FLUX.2 [klein]: three layers of Qwen 3, packed latents, positions of four axes."""
    torch.manual_seed(13)
    transformer = Flux2Transformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=3 * _WIDTH, timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=False,
    )  # fmt: skip
    vae = AutoencoderKLFlux2(
        block_out_channels=(4,), down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",), layers_per_block=1,
        latent_channels=4, norm_num_groups=1, use_quant_conv=False, use_post_quant_conv=False, sample_size=16,
    )  # fmt: skip
    return Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae, text_encoder=qwen3(27, whole=True), tokenizer=qwen_tokenizer(),
        transformer=randomized(transformer),
    )  # fmt: skip


def tiny_qwen_image() -> QwenImagePipeline:
    """Qwen-Image: latents of one frame, and a text as long as the longest prompt."""
    torch.manual_seed(14)
    transformer = QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=_WIDTH, guidance_embeds=False, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    vae = AutoencoderKLQwenImage(
        base_dim=4, z_dim=4, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[False], latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    return QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae, text_encoder=qwen_vl(), tokenizer=qwen_tokenizer(),
        transformer=randomized(transformer),
    )  # fmt: skip


def tiny_z_image_pipeline() -> ZImagePipeline:
    """Z-Image: samples and texts in lists."""
    torch.manual_seed(15)
    transformer = ZImageTransformer2DModel(
        all_patch_size=(2,), all_f_patch_size=(1,), in_channels=4, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2,
        cap_feat_dim=_WIDTH, axes_dims=[4, 6, 6], axes_lens=[64, 64, 64],
    )  # fmt: skip
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=tiny_vae(shift_factor=0.1), text_encoder=qwen3(2), tokenizer=qwen_tokenizer(),
        transformer=randomized(transformer),
    )  # fmt: skip


def tiny_sana() -> SanaPipeline:
    """Sana, which draws at one of its table's sizes: 512×512 at the least, 16×16 in latents."""
    torch.manual_seed(16)
    transformer = SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2, attention_head_dim=4, num_cross_attention_heads=2,
        cross_attention_head_dim=4, cross_attention_dim=8, caption_channels=_WIDTH, sample_size=16, patch_size=1,
    )  # fmt: skip
    blocks: dict[str, Any] = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in {"block_types": "ResBlock", "block_out_channels": (4,) * 6, "layers_per_block": (1,) * 6,
                            "qkv_multiscales": ((),) * 6}.items()
    }  # fmt: skip
    vae = AutoencoderDC(in_channels=3, latent_channels=4, attention_head_dim=2, **blocks).eval()
    encoder = Gemma2Model(
        Gemma2Config(
            vocab_size=64, hidden_size=_WIDTH, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
            head_dim=8,
        )
    )  # fmt: skip
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *"abcdefghijklmnopqrstuvwxyz"]
    tokenizer = GemmaTokenizer(vocab={word: i for i, word in enumerate(tokens)}, merges=[])
    return SanaPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae, text_encoder=randomized(encoder, std=0.3), tokenizer=tokenizer,
        transformer=randomized(transformer),
    )  # fmt: skip


def tiny_animate_diff() -> AnimateDiffPipeline:
    """AnimateDiff: a UNet of frames that lie in the batch, and text that is given once for each frame."""
    torch.manual_seed(9)
    unet = UNetMotionModel(
        sample_size=8, down_block_types=("CrossAttnDownBlockMotion",), up_block_types=("CrossAttnUpBlockMotion",), block_out_channels=(8,),
        layers_per_block=1, norm_num_groups=4, cross_attention_dim=16, num_attention_heads=2, motion_num_attention_heads=2,
    )  # fmt: skip
    return AnimateDiffPipeline(
        vae=tiny_vae(), text_encoder=tiny_text_encoder(), tokenizer=tiny_tokenizer(), unet=randomized(unet), motion_adapter=None,
        scheduler=DDIMScheduler(),
    )  # fmt: skip


def tiny_cogvideox() -> CogVideoXPipeline:
    """CogVideoX 2B, which has positions for videos of one size: [(frames + 3) / 4, 4, H / 8, W / 8] in latents."""
    torch.manual_seed(17)
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=8, text_embed_dim=24, num_layers=2,
        sample_width=4, sample_height=2, sample_frames=9, patch_size=2, temporal_compression_ratio=4,
    )  # fmt: skip
    vae = AutoencoderKLCogVideoX(
        in_channels=3, out_channels=3, down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2, temporal_compression_ratio=4,
    )  # fmt: skip
    return CogVideoXPipeline(
        tokenizer=tiny_t5_tokenizer(), text_encoder=tiny_t5(), vae=vae.eval(), transformer=randomized(transformer),
        scheduler=CogVideoXDDIMScheduler(),
    )  # fmt: skip
