"""Families of transformers that make pictures."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AuraFlowTransformer2DModel,
    BriaTransformer2DModel,
    ChromaTransformer2DModel,
    CogView3PlusTransformer2DModel,
    CogView4Transformer2DModel,
    DiTTransformer2DModel,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    HiDreamImageTransformer2DModel,
    HunyuanDiT2DModel,
    HunyuanImageTransformer2DModel,
    Kandinsky5Transformer3DModel,
    Lumina2Transformer2DModel,
    LuminaNextDiT2DModel,
    OmniGenTransformer2DModel,
    OvisImageTransformer2DModel,
    PixArtTransformer2DModel,
    PriorTransformer,
    PRXTransformer2DModel,
    QwenImageTransformer2DModel,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    UnCLIPScheduler,
    ZImageTransformer2DModel,
)
from diffusers.models.embeddings import get_2d_rotary_pos_embed, get_2d_rotary_pos_embed_lumina
from torch import nn

from tests.families.family import PROMPTS, TOKENS, Conditions, Family, Fixed, Refusal, flow, mask, positions, seeded, text

LATENT = (4, 8, 8)
TOKEN_SIDE = 4
PACKED = (TOKEN_SIDE**2, 16)  # FLUX's latents, packed into tokens
PLACES = {"img_ids": positions(TOKEN_SIDE**2, width=TOKEN_SIDE), "txt_ids": positions(TOKENS)}
PLACES_4 = {"img_ids": positions(TOKEN_SIDE**2, 4, TOKEN_SIDE), "txt_ids": positions(TOKENS, 4)}

_FLUX: dict[str, Any] = {
    "patch_size": 1, "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2,
    "joint_attention_dim": 24, "axes_dims_rope": (4, 6, 6),
}  # fmt: skip


def pooled(width: int = 16, name: str = "pooled_projections") -> Conditions:
    return {name: seeded(PROMPTS, width)}


def guidance() -> Conditions:
    return {"guidance": torch.full((PROMPTS,), 3.5)}


def flux(**options: Any) -> FluxTransformer2DModel:
    return FluxTransformer2DModel(**{**_FLUX, "pooled_projection_dim": 16, "guidance_embeds": True, **options})


class Kontext(nn.Module):
    """FLUX.1 Kontext: the tokens of the picture to edit stand behind those of the sample, and what comes out for them is cut off."""

    def __init__(self) -> None:
        super().__init__()
        self.network = flux()

    def forward(self, hidden_states: Any, timestep: Any, image_latents: Any, **conditions: Any) -> Any:
        """``image_latents`` [N, L, C]."""
        tokens = torch.cat([hidden_states, image_latents], dim=1)
        own = positions(TOKEN_SIDE**2, width=TOKEN_SIDE)
        edited = own.clone()
        edited[:, 0] = 1
        places = torch.cat([own, edited])
        output = self.network(tokens, timestep=timestep / 1000, img_ids=places, txt_ids=positions(TOKENS), **conditions).sample
        return output[:, : hidden_states.shape[1]]


class HiDream(nn.Module):
    """HiDream calls its timestep "timesteps"; the hidden states of Llama come layer by layer."""

    def __init__(self) -> None:
        super().__init__()
        self.network = HiDreamImageTransformer2DModel(
            patch_size=2, in_channels=4, out_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=4,
            caption_channels=(24, 24), text_emb_dim=16, num_routed_experts=2, num_activated_experts=2, axes_dims_rope=(4, 2, 2),
            max_resolution=(8, 8), llama_layers=(0, 1), force_inference_output=True,
        )  # fmt: skip

    def forward(self, hidden_states: Any, timestep: Any, t5: Any, llama: Any, pooled: Any) -> Any:
        """``llama`` [N, layers, L, D]."""
        return self.network(hidden_states, timestep, t5, llama.transpose(0, 1), pooled).sample


def kandinsky_5(frames: int = 1) -> nn.Module:
    network = Kandinsky5Transformer3DModel(
        in_visual_dim=4, out_visual_dim=4, in_text_dim=24, in_text_dim2=16, time_dim=32, patch_size=(1, 2, 2), model_dim=32, ff_dim=64,
        num_text_blocks=1, num_visual_blocks=1, axes_dims=(4, 6, 6),
    )  # fmt: skip
    side = TOKEN_SIDE
    visual = [torch.arange(frames), torch.arange(side), torch.arange(side)]
    return Fixed(network, visual_rope_pos=visual, text_rope_pos=torch.arange(TOKENS))


def omnigen() -> nn.Module:
    network = OmniGenTransformer2DModel(
        in_channels=4, patch_size=2, hidden_size=32, num_attention_heads=4, num_key_value_heads=4, intermediate_size=64, num_layers=2,
        pad_token_id=0, vocab_size=40, pos_embed_max_size=8,
        rope_scaling={"long_factor": [1.0] * 4, "short_factor": [1.0] * 4}, time_step_dim=16,
    )  # fmt: skip
    return Fixed(network, time_scale=1e-3, input_img_latents=[], input_image_sizes={})


def omnigen_conditions() -> Conditions:
    length = TOKENS + 1 + TOKEN_SIDE**2
    return {
        "input_ids": torch.arange(PROMPTS * TOKENS).reshape(PROMPTS, TOKENS) % 40,
        "attention_mask": torch.ones(PROMPTS, length, length),
        "position_ids": torch.arange(length).expand(PROMPTS, -1).clone(),
    }


def hunyuan_dit() -> nn.Module:
    network = HunyuanDiT2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, patch_size=2, sample_size=8, hidden_size=32, num_layers=4,
        cross_attention_dim=24, cross_attention_dim_t5=16, pooled_projection_dim=16, text_len=TOKENS, text_len_t5=5,
    )  # fmt: skip
    side = TOKEN_SIDE
    rotary = get_2d_rotary_pos_embed(16, ((0, 0), (side, side)), (side, side), output_type="pt")
    return Fixed(network, image_rotary_emb=rotary)


def hunyuan_dit_conditions() -> Conditions:
    return {
        **text(24), **mask(name="text_embedding_mask"), **text(16, 5, "encoder_hidden_states_t5"), **mask(5, "text_embedding_mask_t5"),
        "image_meta_size": 100 * seeded(PROMPTS, 6).abs(), "style": torch.zeros(PROMPTS, dtype=torch.int64),
    }  # fmt: skip


def lumina_next() -> nn.Module:
    network = LuminaNextDiT2DModel(
        sample_size=8, patch_size=2, in_channels=4, hidden_size=32, num_layers=2, num_attention_heads=2, num_kv_heads=1, multiple_of=16,
        ffn_dim_multiplier=1.5, learn_sigma=True, cross_attention_dim=24,
    )  # fmt: skip
    return Fixed(network, time_scale=1e-3, cross_attention_kwargs={}, image_rotary_emb=get_2d_rotary_pos_embed_lumina(16, 4, 4))


def sizes(names: tuple[str, ...] = ("original_size", "target_size", "crop_coords")) -> Conditions:
    return {name: 64 * torch.ones(PROMPTS, 2) for name in names}


FAMILIES = [
    Family(
        "DiT",
        lambda: DiTTransformer2DModel(
            num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=8, num_layers=2, sample_size=8, patch_size=2,
            num_embeds_ada_norm=10,
        ),
        LATENT, lambda: {"class_labels": torch.tensor([1, 2, 10])},
    ),
    Family(
        "PixArt-α",
        lambda: PixArtTransformer2DModel(
            num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=8, num_layers=2, cross_attention_dim=32,
            sample_size=8, patch_size=2, caption_channels=24, use_additional_conditions=False,
        ),
        LATENT, lambda: {**text(24), **mask()},
    ),
    Family(
        "Stable Diffusion 3",
        lambda: SD3Transformer2DModel(
            sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=24, caption_projection_dim=32, pooled_projection_dim=16, pos_embed_max_size=16,
        ),
        LATENT, lambda: {**text(24), **pooled()}, flow(),
    ),
    Family(
        "Stable Diffusion 3.5",
        lambda: SD3Transformer2DModel(
            sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=24, caption_projection_dim=32, pooled_projection_dim=16, pos_embed_max_size=16,
            dual_attention_layers=(0,), qk_norm="rms_norm",
        ),
        LATENT, lambda: {**text(24), **pooled()}, flow(),
    ),
    Family("FLUX.1", lambda: Fixed(flux(), time_scale=1e-3, **PLACES), PACKED, lambda: {**text(24), **pooled(), **guidance()}, flow()),
    Family("FLUX.1 Kontext", Kontext, PACKED,
           lambda: {"image_latents": seeded(PROMPTS, *PACKED), **text(24), **pooled(), **guidance()}, flow()),
    Family(
        "FLUX.2",
        lambda: Fixed(
            Flux2Transformer2DModel(**{**_FLUX, "axes_dims_rope": (4, 4, 4, 4)}, timestep_guidance_channels=16), time_scale=1e-3, **PLACES_4
        ),
        PACKED, lambda: {**text(24), **guidance()}, flow(),
    ),
    Family(
        "Chroma",
        lambda: Fixed(
            ChromaTransformer2DModel(**_FLUX, approximator_num_channels=16, approximator_hidden_dim=32, approximator_layers=1),
            time_scale=1e-3, **PLACES,
        ),
        PACKED, lambda: text(24), flow(),
    ),
    Family(
        "Bria 3.2",
        lambda: Fixed(BriaTransformer2DModel(**{**_FLUX, "axes_dims_rope": [4, 6, 6]}), **PLACES), PACKED, lambda: text(24), flow(),
    ),
    Family(
        "Ovis-Image",
        lambda: Fixed(OvisImageTransformer2DModel(**_FLUX, out_channels=16), time_scale=1e-3, **PLACES), PACKED, lambda: text(24), flow(),
    ),
    Family(
        "Qwen-Image",
        lambda: Fixed(
            QwenImageTransformer2DModel(
                patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
                joint_attention_dim=24, axes_dims_rope=(4, 6, 6),
            ),
            time_scale=1e-3, img_shapes=[[(1, TOKEN_SIDE, TOKEN_SIDE)]],
        ),
        PACKED, lambda: {**text(24), **mask(name="encoder_hidden_states_mask")}, flow(),
    ),
    Family(
        "Z-Image",
        lambda: ZImageTransformer2DModel(
            in_channels=4, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=24, axes_dims=[4, 6, 6],
            axes_lens=[64, 16, 16],
        ),
        (4, 1, 8, 8), lambda: text(24, name="cap_feats"), flow(),
    ),
    Family(
        "Sana",
        lambda: SanaTransformer2DModel(
            in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8, num_layers=2, num_cross_attention_heads=2,
            cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=24, sample_size=8,
        ),
        LATENT, lambda: {**text(24), **mask()}, flow(),
    ),
    Family(
        "Lumina 2",
        lambda: Fixed(
            Lumina2Transformer2DModel(
                sample_size=8, patch_size=2, in_channels=4, hidden_size=32, num_layers=2, num_refiner_layers=1, num_attention_heads=2,
                num_kv_heads=1, multiple_of=16, axes_dim_rope=(4, 6, 6), axes_lens=(32, 16, 16), cap_feat_dim=24,
            ),
            time_scale=-1e-3, time_offset=1.0,
        ),
        LATENT, lambda: {**text(24), **mask(dtype=torch.bool)}, flow(),
        refused=Refusal(
            "quantize", "ArtifactError", "unhashable type: non-nested SymInt",
            "the lengths of the prompts are read from the values of their mask, and pictures and texts are put together sample by sample",
        ),
    ),
    Family("Lumina-Next", lumina_next, LATENT, lambda: {**text(24), **mask(name="encoder_mask")}, flow()),
    Family("HunyuanDiT", hunyuan_dit, LATENT, hunyuan_dit_conditions),
    Family(
        "HunyuanImage 2.1",
        lambda: HunyuanImageTransformer2DModel(
            in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=1, num_single_layers=1,
            num_refiner_layers=1, text_embed_dim=24, text_embed_2_dim=16, rope_axes_dim=(8, 8),
        ),
        LATENT,
        lambda: {**text(24), **mask(), **text(16, 5, "encoder_hidden_states_2"), **mask(5, "encoder_attention_mask_2")}, flow(),
        refused=Refusal(
            "quantize", "ArtifactError", "Could not guard on data-dependent expression",
            "the tokens of two texts are put together by the values of their masks, sample by sample",
        ),
    ),
    Family(
        "AuraFlow",
        lambda: Fixed(
            AuraFlowTransformer2DModel(
                sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_mmdit_layers=1, num_single_dit_layers=1,
                attention_head_dim=16, num_attention_heads=2, joint_attention_dim=24, caption_projection_dim=32, pos_embed_max_size=64,
            ),
            time_scale=1e-3,
        ),
        LATENT, lambda: text(24), flow(),
    ),
    Family(
        "CogView 3 Plus",
        lambda: CogView3PlusTransformer2DModel(
            patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2, text_embed_dim=24,
            time_embed_dim=16, condition_dim=8, pos_embed_max_size=8, sample_size=8,
        ),
        LATENT, lambda: {**text(24), **sizes()},
    ),
    Family(
        "CogView 4",
        lambda: CogView4Transformer2DModel(
            patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2, text_embed_dim=24,
            time_embed_dim=16, condition_dim=8, pos_embed_max_size=8, sample_size=8, rope_axes_dim=(8, 8),
        ),
        LATENT, lambda: {**text(24), **sizes()}, flow(),
    ),
    Family(
        "PRX",
        lambda: Fixed(
            PRXTransformer2DModel(in_channels=4, patch_size=2, context_in_dim=24, hidden_size=32, num_heads=2, depth=2, axes_dim=[8, 8]),
            time_scale=1e-3,
        ),
        LATENT, lambda: text(24), flow(),
    ),
    Family(
        "OmniGen", omnigen, LATENT, omnigen_conditions, flow(),
        refused=Refusal(
            "quantize", "ArtifactError", "Could not guard on data-dependent expression",
            "which rotary factors it takes depends on the largest of its positions, a value of its inputs",
        ),
    ),
    Family(
        "HiDream-I1", HiDream, LATENT,
        lambda: {"t5": seeded(PROMPTS, 4, 24), "llama": seeded(PROMPTS, 2, 4, 24), "pooled": seeded(PROMPTS, 16)}, flow(),
        refused=Refusal(
            "quantize", "ArtifactError", ".numpy() is not supported for tensor subclasses",
            "its experts get as many tokens as the router sends them, a number that depends on the sample's values",
        ),
    ),
    Family("Kandinsky 5, pictures", kandinsky_5, (1, 8, 8, 4), lambda: {**text(24), **pooled(16)}, flow()),
    Family(
        "unCLIP's prior",
        lambda: PriorTransformer(num_attention_heads=2, attention_head_dim=8, num_layers=2, embedding_dim=16, num_embeddings=TOKENS),
        (16,), lambda: {"proj_embedding": seeded(PROMPTS, 16), **text(16), **mask(name="attention_mask", dtype=torch.bool)},
        UnCLIPScheduler, {"sampler": "pipeline"},
    ),
]  # fmt: skip
