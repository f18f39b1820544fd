"""Tiny diffusers pipelines with random weights: a class-conditional transformer, and text pipelines with tokenizers of their own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLCogVideoX,
    AutoencoderKLTemporalDecoder,
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXTransformer3DModel,
    ControlNetModel,
    DDIMScheduler,
    DiTTransformer2DModel,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxFillPipeline,
    FluxKontextPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    StableVideoDiffusionPipeline,
    UNet2DConditionModel,
    UNetSpatioTemporalConditionModel,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
    ZImageTransformer2DModel,
)
from diffusers.pipelines.wan import pipeline_wan_i2v
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import Metaspace
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)


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


def tiny_vae(blocks: int = 2, **options: Any) -> Any:
    """4 latent channels, each of 2^(blocks − 1) pixels squared."""
    torch.manual_seed(3)
    return AutoencoderKL(
        block_out_channels=(4,) * blocks, norm_num_groups=2, latent_channels=4, sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * blocks, up_block_types=("UpDecoderBlock2D",) * blocks, **options,
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


def tiny_inpainting() -> StableDiffusionInpaintPipeline:
    """Stable Diffusion's inpainting: a mask and the masked picture are channels of the sample."""
    return _with_pictures(StableDiffusionInpaintPipeline, in_channels=9)


def tiny_pix2pix() -> StableDiffusionInstructPix2PixPipeline:
    """InstructPix2Pix: the picture is channels of the sample, and guidance has three parts."""
    return _with_pictures(StableDiffusionInstructPix2PixPipeline, in_channels=8)


def _with_pictures(kind: Any, **options: Any) -> Any:
    parts = tiny_stable_diffusion(**options).components
    parts.pop("image_encoder", None)
    pipeline = kind(**parts, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def tiny_refiner() -> StableDiffusionXLImg2ImgPipeline:
    """SDXL's refiner: one text encoder, and an aesthetic score among the conditions."""
    unet = tiny_conditioned_unet(
        cross_attention_dim=16, addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=16 + 5 * 4,
    )  # fmt: skip
    pipeline = StableDiffusionXLImg2ImgPipeline(
        vae=tiny_vae(), text_encoder=None, text_encoder_2=tiny_text_encoder(projected=True), tokenizer=None, tokenizer_2=tiny_tokenizer(),
        unet=unet, scheduler=EulerDiscreteScheduler(), requires_aesthetics_score=True,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def tiny_steered_unet(**options: Any) -> Any:
    """A conditioned UNet with a middle, which a ControlNet needs."""
    return tiny_conditioned_unet(mid_block_type="UNetMidBlock2DCrossAttn", **options)


def tiny_controlnet(unet: Any) -> ControlNetModel:
    """A ControlNet for this UNet, whose control picture has twice the latents' size."""
    torch.manual_seed(9)
    return randomized(ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 8), load_weights_from_unet=False))


def tiny_ip_adapter(folder: Path, unet: Any, *, width: int = 20) -> Path:
    """An IP-Adapter's file for this UNet: 4 tokens of a picture's embedding of ``width``, and beside it the encoder of 16×16 pixels."""
    across, tokens, generator = unet.config.cross_attention_dim, 4, torch.Generator().manual_seed(11)
    tensors = {
        "image_proj.proj.weight": torch.randn(tokens * across, width, generator=generator) / width**0.5,
        "image_proj.proj.bias": torch.zeros(tokens * across),
        "image_proj.norm.weight": torch.ones(across),
        "image_proj.norm.bias": torch.zeros(across),
    }
    layers = [name.removesuffix(".processor") for name in unet.attn_processors if "attn2" in name]
    for number, layer in enumerate(layers):
        inner = unet.get_submodule(layer).to_k.out_features
        for kind in ("to_k_ip", "to_v_ip"):
            tensors[f"ip_adapter.{2 * number + 1}.{kind}.weight"] = torch.randn(inner, across, generator=generator) / across**0.5
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "ip-adapter.safetensors")
    torch.manual_seed(12)
    encoder = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8, projection_dim=20
    )
    randomized(CLIPVisionModelWithProjection(encoder), std=0.5).save_pretrained(folder / "image_encoder")
    return folder / "ip-adapter.safetensors"


def tiny_lora(folder: Path, unet: Any, targets: Sequence[str] = ("to_q", "to_k", "to_v", "to_out.0", "proj_in")) -> Path:
    """A LoRA's file for this UNet, whose weights matter."""
    unet.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=list(targets), init_lora_weights=False), adapter_name="lora")
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(unet, adapter_name="lora"))
    unet.delete_adapters("lora")
    return folder / "pytorch_lora_weights.safetensors"


def tiny_picture(seed: int = 0, size: tuple[int, int] = (16, 16)) -> Image.Image:
    """Noise in RGB of (width, height) pixels."""
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(values)


def tiny_mask(size: tuple[int, int] = (16, 16)) -> Image.Image:
    """Its left half is to be drawn anew."""
    mask = Image.new("L", size)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    return mask


def tiny_t5_tokenizer() -> T5TokenizerFast:
    """One token a letter."""
    words = ["<pad>", "</s>", "<unk>", "▁", *_LETTERS]
    tokenizer = Tokenizer(Unigram([(word, -1.0) for word in words], unk_id=2))
    tokenizer.pre_tokenizer = Metaspace()
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return T5TokenizerFast(tokenizer_object=tokenizer, extra_ids=0, model_max_length=8, **special)


def tiny_t5(width: int = 24) -> Any:
    torch.manual_seed(4)
    return randomized(T5EncoderModel(T5Config(vocab_size=32, d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2)), std=0.5)


def tiny_stable_diffusion_3() -> StableDiffusion3Pipeline:
    """SD3 with two of its three text encoders; flow matching."""
    torch.manual_seed(5)
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, caption_projection_dim=32, pooled_projection_dim=32, pos_embed_max_size=16,
    )  # fmt: skip
    encoders = {name: tiny_text_encoder(projected=True) for name in ("text_encoder", "text_encoder_2")}
    tokenizers = {name: tiny_tokenizer() for name in ("tokenizer", "tokenizer_2")}
    return StableDiffusion3Pipeline(
        transformer=randomized(transformer), scheduler=FlowMatchEulerDiscreteScheduler(), vae=tiny_vae(shift_factor=0.1),
        **encoders, **tokenizers, text_encoder_3=None, tokenizer_3=None,
    )  # fmt: skip


def tiny_pixart(sample_size: int = 32) -> PixArtAlphaPipeline:
    """PixArt-α, which draws at one of its table's sizes: 256×256 at the least, 32×32 in latents; for a size below it has no table."""
    torch.manual_seed(6)
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=8, num_layers=2, cross_attention_dim=32,
        sample_size=sample_size, patch_size=4, caption_channels=24, use_additional_conditions=False,
    )  # fmt: skip
    return PixArtAlphaPipeline(
        transformer=randomized(transformer), scheduler=DDIMScheduler(), vae=tiny_vae(blocks=4), text_encoder=tiny_t5(),
        tokenizer=tiny_t5_tokenizer(),
    )  # fmt: skip


def tiny_flux() -> FluxPipeline:
    """FLUX.1: packed latents, positions without a batch dimension, timesteps from 0 to 1, guidance as an input."""
    torch.manual_seed(7)
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=24, pooled_projection_dim=16, guidance_embeds=True, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    return FluxPipeline(
        transformer=randomized(transformer), scheduler=FlowMatchEulerDiscreteScheduler(), vae=tiny_vae(shift_factor=0.1),
        text_encoder=tiny_text_encoder(), tokenizer=tiny_tokenizer(), text_encoder_2=tiny_t5(), tokenizer_2=tiny_t5_tokenizer(),
    )  # fmt: skip


def tiny_kontext(blocks: int = 2) -> FluxKontextPipeline:
    """FLUX.1 Kontext, which draws about a million pixels whatever it is asked for: with 6 ``blocks`` in its VAE they are 256 tokens."""
    return FluxKontextPipeline(**{**tiny_flux().components, "vae": tiny_vae(blocks, shift_factor=0.1)})


def tiny_video_diffusion() -> StableVideoDiffusionPipeline:
    """Stable Video Diffusion: a video from a picture and no prompt, with guidance that grows from frame to frame."""
    torch.manual_seed(13)
    unet = UNetSpatioTemporalConditionModel(
        sample_size=8, block_out_channels=(32,), layers_per_block=1, cross_attention_dim=32, num_attention_heads=2, num_frames=2,
        down_block_types=("CrossAttnDownBlockSpatioTemporal",), up_block_types=("UpBlockSpatioTemporal",), addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
    )  # fmt: skip
    vae = AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=4, sample_size=16, layers_per_block=1
    )
    encoder = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=224, patch_size=112, projection_dim=32
    )
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction", timestep_type="continuous",
        use_karras_sigmas=True, sigma_min=0.002, sigma_max=700.0, steps_offset=1, timestep_spacing="leading",
    )  # fmt: skip
    pipeline = StableVideoDiffusionPipeline(
        vae=vae.eval(), image_encoder=randomized(CLIPVisionModelWithProjection(encoder), std=0.5), unet=randomized(unet, std=0.05),
        scheduler=scheduler, feature_extractor=CLIPImageProcessorPil(size=224, crop_size=224),
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def tiny_fill() -> FluxFillPipeline:
    """FLUX.1 Fill: the masked picture and its mask are channels of every token."""
    torch.manual_seed(7)
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=48, out_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=24, pooled_projection_dim=16, guidance_embeds=True, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    parts = {name: part for name, part in tiny_flux().components.items() if name not in ("image_encoder", "feature_extractor")}
    return FluxFillPipeline(**{**parts, "transformer": randomized(transformer)})


def tiny_wan_from_image() -> WanImageToVideoPipeline:
    """Wan, image to video: the picture's latents and which frames are known are channels of the sample."""
    if not hasattr(pipeline_wan_i2v, "ftfy"):  # it mends prompts, and diffusers uses it without asking whether it is there
        pipeline_wan_i2v.ftfy = SimpleNamespace(fix_text=str)
    own = tiny_wan()
    torch.manual_seed(8)
    transformer = WanTransformer3DModel(**{**own.transformer.config, "in_channels": 10})
    parts = {name: getattr(own, name) for name in ("tokenizer", "text_encoder", "vae", "scheduler")}
    return WanImageToVideoPipeline(**parts, transformer=randomized(transformer), image_encoder=None, image_processor=None)


def tiny_cogvideox_from_image() -> CogVideoXImageToVideoPipeline:
    """CogVideoX, image to video: the picture's latents are channels of the sample, whose frames stand before its channels."""
    torch.manual_seed(14)
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=8, out_channels=4, time_embed_dim=8, text_embed_dim=24, num_layers=1,
        sample_width=8, sample_height=8, sample_frames=5, patch_size=2, max_text_seq_length=8, use_rotary_positional_embeddings=True,
    )  # fmt: skip
    vae = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 2, up_block_types=("CogVideoXUpBlock3D",) * 2, block_out_channels=(8, 8),
        latent_channels=4, layers_per_block=1, norm_num_groups=2,
    )  # fmt: skip
    return CogVideoXImageToVideoPipeline(
        tokenizer=tiny_t5_tokenizer(), text_encoder=tiny_t5(), vae=vae.eval(), transformer=randomized(transformer, std=0.05),
        scheduler=CogVideoXDDIMScheduler(),
    )  # fmt: skip


def tiny_wan() -> WanPipeline:
    """Wan: videos, whose latents are [4, (frames + 1) / 2, H / 2, W / 2]."""
    torch.manual_seed(8)
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16, freq_dim=32,
        ffn_dim=32, num_layers=2, cross_attn_norm=True, qk_norm="rms_norm_across_heads", rope_max_seq_len=32,
    )  # fmt: skip
    vae = AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[True], latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
        scale_factor_temporal=2, scale_factor_spatial=2,
    )  # fmt: skip
    return WanPipeline(
        tokenizer=tiny_t5_tokenizer(), text_encoder=tiny_t5(16), vae=vae, scheduler=FlowMatchEulerDiscreteScheduler(),
        transformer=randomized(transformer),
    )  # fmt: skip


def tiny_z_image() -> Any:
    """Z-Image's transformer, which takes its samples and texts as lists."""
    torch.manual_seed(10)
    return randomized(
        ZImageTransformer2DModel(
            all_patch_size=(2,), all_f_patch_size=(1,), in_channels=4, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2,
            cap_feat_dim=16, axes_dims=[4, 6, 6], axes_lens=[64, 64, 64],
        )
    )  # fmt: skip
