"""Further tiny pipelines with random weights that draw from pictures."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from diffusers import (
    AutoencoderKLLTXVideo,
    AutoencoderKLQwenImage,
    ChromaPipeline,
    ChromaTransformer2DModel,
    ChronoEditPipeline,
    ChronoEditTransformer3DModel,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxControlNetModel,
    FluxControlPipeline,
    FluxTransformer2DModel,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    LTXImageToVideoPipeline,
    LTXVideoTransformer3DModel,
    QwenImageEditPipeline,
    SanaSprintPipeline,
    SanaTransformer2DModel,
    SCMScheduler,
    SD3ControlNetModel,
    SkyReelsV2ImageToVideoPipeline,
    SkyReelsV2Transformer3DModel,
    StableDiffusionAdapterPipeline,
    StableDiffusionUpscalePipeline,
    StableDiffusionXLInstructPix2PixPipeline,
    StableDiffusionXLPipeline,
    T2IAdapter,
)
from diffusers.pipelines.chronoedit import pipeline_chronoedit
from diffusers.pipelines.skyreels_v2 import pipeline_skyreels_v2_i2v
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    BatchFeature,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLImageProcessorPil,
)

from tests.text_encoder_pipelines import tiny_qwen_image, tiny_sana
from tests.tiny_pipelines import (
    randomized,
    tiny_flux,
    tiny_stable_diffusion,
    tiny_stable_diffusion_xl,
    tiny_t5,
    tiny_t5_tokenizer,
    tiny_wan,
)


def tiny_flux_control() -> FluxControlPipeline:
    """FLUX.1 Control: the control picture's latents are channels of every token."""
    own = tiny_flux()
    torch.manual_seed(7)
    transformer = randomized(FluxTransformer2DModel(**{**own.transformer.config, "in_channels": 32, "out_channels": 16}))
    parts = {name: part for name, part in own.components.items() if name not in ("image_encoder", "feature_extractor")}
    return FluxControlPipeline(**{**parts, "transformer": transformer})


def tiny_chroma() -> ChromaPipeline:
    """Chroma, whose image-to-image no automatic choice of diffusers has."""
    torch.manual_seed(7)
    transformer = ChromaTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=24, axes_dims_rope=(4, 6, 6), approximator_hidden_dim=16, approximator_layers=1, approximator_num_channels=16,
    )  # fmt: skip
    flux = tiny_flux()
    return ChromaPipeline(
        scheduler=flux.scheduler, vae=flux.vae, text_encoder=flux.text_encoder_2, tokenizer=flux.tokenizer_2,
        transformer=randomized(transformer),
    )  # fmt: skip


def tiny_lcm() -> LatentConsistencyModelPipeline:
    """A latent consistency model, whose guidance is an embedding."""
    parts = tiny_stable_diffusion(LCMScheduler(), time_cond_proj_dim=8).components
    kept = {name: part for name, part in parts.items() if name != "image_encoder"}
    return LatentConsistencyModelPipeline(**kept, requires_safety_checker=False)


def tiny_upscaler() -> StableDiffusionUpscalePipeline:
    """Stable Diffusion's upscaler: the small picture is channels of the sample, and its noise a class."""
    parts = tiny_stable_diffusion(in_channels=7).components
    kept = {name: parts[name] for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler")}
    return StableDiffusionUpscalePipeline(**kept, low_res_scheduler=DDPMScheduler())


def tiny_sdxl_pix2pix() -> StableDiffusionXLInstructPix2PixPipeline:
    """SDXL's InstructPix2Pix."""
    own = tiny_stable_diffusion_xl()
    parts = {name: part for name, part in own.components.items() if name not in ("image_encoder", "feature_extractor")}
    return StableDiffusionXLInstructPix2PixPipeline(
        **{**parts, "unet": randomized(type(own.unet)(**{**own.unet.config, "in_channels": 8}))}
    )


def tiny_steered_sdxl() -> StableDiffusionXLPipeline:
    """SDXL whose UNet has a middle, which a ControlNet needs."""
    pipeline = tiny_stable_diffusion_xl()
    pipeline.register_modules(unet=randomized(type(pipeline.unet)(**{**pipeline.unet.config, "mid_block_type": "UNetMidBlock2DCrossAttn"})))
    return pipeline


def tiny_flux_controlnet(pipeline: Any) -> FluxControlNetModel:
    """Of FLUX.1: residuals for each block of two kinds."""
    torch.manual_seed(9)
    own = pipeline.transformer.config
    names = ("patch_size", "in_channels", "num_layers", "num_single_layers", "attention_head_dim", "num_attention_heads",
             "joint_attention_dim", "pooled_projection_dim", "axes_dims_rope")  # fmt: skip
    return randomized(FluxControlNetModel(guidance_embeds=False, **{name: own[name] for name in names}))


def tiny_sd3_controlnet(pipeline: Any) -> SD3ControlNetModel:
    """Of Stable Diffusion 3: one block, whose residual serves both of the transformer's."""
    torch.manual_seed(9)
    own = pipeline.transformer.config
    names = ("sample_size", "patch_size", "in_channels", "out_channels", "attention_head_dim", "num_attention_heads", "joint_attention_dim",
             "caption_projection_dim", "pooled_projection_dim", "pos_embed_max_size")  # fmt: skip
    return randomized(SD3ControlNetModel(num_layers=1, **{name: own[name] for name in names}))


def tiny_t2i_adapter() -> StableDiffusionAdapterPipeline:
    """Stable Diffusion with a T2I-Adapter, whose features are residuals within the UNet's blocks."""
    torch.manual_seed(9)
    adapter = T2IAdapter(in_channels=3, channels=(8,), num_res_blocks=1, downscale_factor=2, adapter_type="full_adapter")
    parts = tiny_stable_diffusion().components
    kept = {name: parts[name] for name in ("vae", "text_encoder", "tokenizer", "unet", "scheduler", "safety_checker", "feature_extractor")}
    return StableDiffusionAdapterPipeline(**kept, adapter=randomized(adapter), requires_safety_checker=False)


class TextAndPicture:
    """What Qwen2VLProcessor makes of texts and pictures, by the same parts: transformers' own asks for torchvision, for videos."""

    def __init__(self, tokenizer: Any, size: int) -> None:
        self.tokenizer, self.pictures = tokenizer, Qwen2VLImageProcessorPil(min_pixels=size**2, max_pixels=size**2)

    def __call__(self, text: list[str], images: Any, **_: Any) -> Any:
        """As many of the picture's tokens stand in each text as its encoder makes."""
        seen = [self.pictures(images=images, return_tensors="pt") for _ in text]
        count = int(seen[0]["image_grid_thw"][0].prod()) // self.pictures.merge_size**2
        tokens = self.tokenizer([one.replace("<|image_pad|>", "<|image_pad|>" * count) for one in text], padding=True, return_tensors="pt")
        return BatchFeature({**tokens, **{name: torch.cat([one[name] for one in seen]) for name in seen[0]}})


def tiny_qwen_image_edit(kind: Any = QwenImageEditPipeline) -> Any:
    """Qwen-Image-Edit, or its Plus: the picture is read by the text's encoder, and its latents stand behind the sample as further tokens.

    It draws about a million pixels whatever it is asked for, here 256 tokens.
    """
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
    words = [*sorted(ByteLevel.alphabet()), *special]
    tokenizer = Qwen2Tokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], pad_token=special[0])
    tokenizer.add_special_tokens({"additional_special_tokens": list(special[1:])})
    own = tiny_qwen_image()
    config = own.text_encoder.config.to_dict()
    numbers = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("vision_start", "vision_end")}
    numbers["image_token_id"] = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    config["text_config"]["vocab_size"] = len(words) + 1
    torch.manual_seed(12)
    encoder = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**{**config, **numbers}))
    vae = AutoencoderKLQwenImage(
        base_dim=4, z_dim=4, dim_mult=[1] * 6, num_res_blocks=1, temperal_downsample=[False] * 5, latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )  # fmt: skip
    return kind(
        scheduler=own.scheduler, vae=vae, text_encoder=randomized(encoder, std=0.3), tokenizer=tokenizer,
        processor=TextAndPicture(tokenizer, 56), transformer=own.transformer,
    )  # fmt: skip


def tiny_ltx_from_image() -> LTXImageToVideoPipeline:
    """LTX-Video, image to video: each token has a timestep of its own, 0 where the picture is known."""
    torch.manual_seed(3)
    widths, halved = (8, 8, 8, 8), (True, True, False, False)
    vae = AutoencoderKLLTXVideo(
        latent_channels=8, block_out_channels=widths, decoder_block_out_channels=widths, layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5, spatio_temporal_scaling=halved, decoder_spatio_temporal_scaling=halved,
        decoder_inject_noise=(False,) * 5, upsample_residual=(False,) * 4, upsample_factor=(1,) * 4, patch_size=1, patch_size_t=1,
    )  # fmt: skip
    transformer = LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, patch_size=1, patch_size_t=1, num_attention_heads=2, attention_head_dim=12, cross_attention_dim=24,
        num_layers=1, caption_channels=24,
    )  # fmt: skip
    pipeline = LTXImageToVideoPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=vae.eval(), text_encoder=tiny_t5(), tokenizer=tiny_t5_tokenizer(),
        transformer=randomized(transformer),
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def tiny_skyreels_from_image() -> SkyReelsV2ImageToVideoPipeline:
    """SkyReels V2, image to video: as Wan, with the picture's embedding too."""
    return SkyReelsV2ImageToVideoPipeline(**_as_wan(SkyReelsV2Transformer3DModel, pipeline_skyreels_v2_i2v))


def tiny_chrono_edit() -> ChronoEditPipeline:
    """ChronoEdit, which edits a picture as the last frame of a video."""
    return ChronoEditPipeline(**_as_wan(ChronoEditTransformer3DModel, pipeline_chronoedit))


def _as_wan(network: Any, module: Any) -> dict[str, Any]:
    """Parts of a pipeline like Wan's from a picture, with this network; ``module`` is the pipeline's own."""
    if not hasattr(module, "ftfy"):  # as tests/tiny_pipelines.py has it
        module.ftfy = SimpleNamespace(fix_text=str)
    own = tiny_wan()
    encoder = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=16, projection_dim=16
    )
    torch.manual_seed(8)
    transformer = network(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=10, out_channels=4, text_dim=16, freq_dim=32,
        ffn_dim=32, num_layers=1, rope_max_seq_len=32, image_dim=16, added_kv_proj_dim=24,
    )  # fmt: skip
    return {
        **{name: getattr(own, name) for name in ("tokenizer", "text_encoder", "vae", "scheduler")},
        "transformer": randomized(transformer),
        "image_encoder": randomized(CLIPVisionModelWithProjection(encoder), std=0.5),
        "image_processor": CLIPImageProcessorPil(size=32, crop_size=32),
    }


def tiny_sana_sprint() -> SanaSprintPipeline:
    """Sana-Sprint, which draws a megapixel in two steps."""
    own = tiny_sana()
    torch.manual_seed(16)
    fields = {**own.transformer.config, "sample_size": 32, "guidance_embeds": True, "qk_norm": "rms_norm_across_heads"}
    transformer = randomized(SanaTransformer2DModel(**fields))
    return SanaSprintPipeline(**{**own.components, "transformer": transformer, "scheduler": SCMScheduler()})
