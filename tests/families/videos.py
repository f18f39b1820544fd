"""Families of transformers that make videos or sound."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AllegroTransformer3DModel,
    CogVideoXDDIMScheduler,
    CogVideoXTransformer3DModel,
    CosmosTransformer3DModel,
    EasyAnimateTransformer3DModel,
    EDMDPMSolverMultistepScheduler,
    HunyuanVideoTransformer3DModel,
    LatteTransformer3DModel,
    LTXVideoTransformer3DModel,
    MochiTransformer3DModel,
    SkyReelsV2Transformer3DModel,
    StableAudioDiTModel,
    WanTransformer3DModel,
)
from diffusers.models.embeddings import get_1d_rotary_pos_embed, get_3d_rotary_pos_embed
from torch import nn

from tests.families.family import PROMPTS, TOKENS, Conditions, Family, Fixed, Refusal, flow, mask, seeded, text
from tests.families.pictures import guidance, kandinsky_5, pooled

FRAMES = 2
VIDEO = (4, FRAMES, 8, 8)  # channels, frames, height, width
FRAMES_FIRST = (FRAMES, 4, 8, 8)

_WAN: dict[str, Any] = {
    "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4, "text_dim": 24,
    "freq_dim": 16, "ffn_dim": 32, "num_layers": 2, "rope_max_seq_len": 32,
}  # fmt: skip


def ltx() -> nn.Module:
    network = LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=12, cross_attention_dim=24, num_layers=2,
        caption_channels=16,
    )  # fmt: skip
    return Fixed(network, num_frames=FRAMES, height=4, width=4)


def cogvideox(*, rotary: bool) -> nn.Module:
    network = CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=8, text_embed_dim=24, num_layers=2,
        sample_width=8, sample_height=8, sample_frames=5, patch_size=2, max_text_seq_length=TOKENS, use_rotary_positional_embeddings=rotary,
    )  # fmt: skip
    if not rotary:
        return network
    places = get_3d_rotary_pos_embed(16, ((0, 0), (4, 4)), (4, 4), FRAMES)
    return Fixed(network, image_rotary_emb=places)


def latte() -> LatteTransformer3DModel:
    return LatteTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=8, num_layers=1, cross_attention_dim=32,
        attention_bias=True, sample_size=8, patch_size=2, activation_fn="gelu-approximate", num_embeds_ada_norm=1000,
        norm_type="ada_norm_single", norm_elementwise_affine=False, norm_eps=1e-6, caption_channels=24, video_length=FRAMES,
    )  # fmt: skip


def stable_audio() -> nn.Module:
    network = StableAudioDiTModel(
        sample_size=8, in_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2, num_key_value_attention_heads=2,
        out_channels=4, cross_attention_dim=24, time_proj_dim=16, global_states_input_dim=16, cross_attention_input_dim=24,
    )  # fmt: skip
    rotary = get_1d_rotary_pos_embed(8, 8 + 1, use_real=True, repeat_interleave_real=False)
    return Fixed(network, rotary_embedding=rotary)


def allegro() -> nn.Module:
    network = AllegroTransformer3DModel(
        patch_size=2, patch_size_t=1, num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, num_layers=2,
        cross_attention_dim=24, sample_height=8, sample_width=8, sample_frames=FRAMES, caption_channels=24,
    )  # fmt: skip
    return Fixed(network, image_rotary_emb=allegro_places(4))


def allegro_places(side: int, dim: int = 4) -> tuple[Any, Any]:
    """Cosines and sines [1, tokens, dim] and whole positions [1, tokens] of the axes time, height and width."""
    grid = torch.meshgrid(torch.arange(FRAMES), torch.arange(side), torch.arange(side), indexing="ij")
    freqs = tuple(get_1d_rotary_pos_embed(dim, n, use_real=True, repeat_interleave_real=False) for n in (FRAMES, side, side))
    return freqs, tuple(axis.reshape(1, -1) for axis in grid)


def cosmos_conditions() -> Conditions:
    return {**text(24)}


FAMILIES = [
    Family("Wan 2.1", lambda: WanTransformer3DModel(**_WAN), VIDEO, lambda: text(24), flow()),
    Family(
        "Wan 2.1, image to video", lambda: WanTransformer3DModel(**_WAN, image_dim=16, added_kv_proj_dim=24), VIDEO,
        lambda: {**text(24, 512), "encoder_hidden_states_image": seeded(PROMPTS, 4, 16)}, flow(),
    ),
    Family("SkyReels V2", lambda: SkyReelsV2Transformer3DModel(**_WAN), VIDEO, lambda: text(24), flow()),
    Family("LTX-Video", ltx, (FRAMES * 16, 8), lambda: {**text(16), **mask()}, flow()),
    Family("CogVideoX 2B", lambda: cogvideox(rotary=False), FRAMES_FIRST, lambda: text(24), CogVideoXDDIMScheduler,
           {"sampler": "pipeline"}, quick=True),
    Family("CogVideoX 5B", lambda: cogvideox(rotary=True), FRAMES_FIRST, lambda: text(24), CogVideoXDDIMScheduler,
           {"sampler": "pipeline"}),
    Family("Latte", latte, VIDEO, lambda: text(24)),
    Family(
        "HunyuanVideo",
        lambda: HunyuanVideoTransformer3DModel(
            in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=1, num_single_layers=1,
            num_refiner_layers=1, patch_size=2, patch_size_t=1, text_embed_dim=24, pooled_projection_dim=16, rope_axes_dim=(4, 6, 6),
        ),
        VIDEO, lambda: {**text(24), **mask(), **pooled(), **guidance()}, flow(),
    ),
    Family(
        "Mochi",
        lambda: MochiTransformer3DModel(
            patch_size=2, num_attention_heads=2, attention_head_dim=16, num_layers=2, pooled_projection_dim=16, in_channels=4,
            text_embed_dim=24, time_embed_dim=16, max_sequence_length=TOKENS,
        ),
        VIDEO, lambda: {**text(24), **mask()}, flow(),
        refused=Refusal(
            "quantize", "ArtifactError", "is bound to the batch that it was captured at",
            "its attention goes through the samples one by one, and cuts each prompt at the length that the mask's values give",
        ),
    ),
    Family("Allegro", allegro, VIDEO, lambda: {**text(24), **mask()}),
    Family(
        "Cosmos",
        lambda: Fixed(
            CosmosTransformer3DModel(
                in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=2, mlp_ratio=2, text_embed_dim=24,
                adaln_lora_dim=4, max_size=(4, 16, 16), patch_size=(1, 2, 2), concat_padding_mask=False,
            ),
            fps=30,
        ),
        VIDEO, cosmos_conditions, flow(),
    ),
    Family(
        "EasyAnimate 5.1",
        lambda: EasyAnimateTransformer3DModel(
            num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, patch_size=2, sample_width=8, sample_height=8,
            num_layers=1, mmdit_layers=1, time_embed_dim=8, add_norm_text_encoder=True, text_embed_dim=24,
        ),
        VIDEO, lambda: text(24), flow(),
    ),
    Family("Kandinsky 5, videos", lambda: kandinsky_5(FRAMES), (FRAMES, 8, 8, 4), lambda: {**text(24), **pooled(16)}, flow()),
    Family(
        "Stable Audio", stable_audio, (4, 8), lambda: {**text(24), "global_hidden_states": seeded(PROMPTS, 1, 16)},
        EDMDPMSolverMultistepScheduler, {"sampler": "pipeline"},
    ),
]  # fmt: skip
