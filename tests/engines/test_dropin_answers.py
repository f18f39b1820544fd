"""Everything that diffusers' pipelines ask of their denoiser beside its output: answered as the model does, or refused with a sentence.

The uses are read out of the installed diffusers, so that a new one shows here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import (
    HiDreamImageTransformer2DModel,
    HunyuanDiT2DModel,
    Kandinsky5Transformer3DModel,
    LuminaNextDiT2DModel,
    UNet2DConditionModel,
    WanTransformer3DModel,
)

from dq_deploy.engines.dropin import DropInModel
from dq_deploy.errors import UsageError

_USE = re.compile(r"self\.(?:unet|transformer|transformer_2)\.([A-Za-z_]\w*)")
ANSWERED = {
    "config", "dtype", "device", "to", "parameters", "modules", "named_modules", "named_children", "zero_grad", "cache_context",
    "__class__", "add_embedding", "in_channels", "is_cache_enabled",
}  # fmt: skip
"""By the module itself, or from its configuration."""
BY_THE_CLASS = {"head_dim", "inner_dim", "max_seq", "num_heads", "visual_cond"}
"""Numbers that the class computes: ``test_numbers_of_the_class`` has them beside the float models'."""
OF_OTHER_MODELS = {
    "action_dim", "height", "width", "num_latent_pixels", "num_vector_embeds", "transformer", "image_proj", "model", "base_add_embedding",
}  # fmt: skip
"""Asked of what is not a denoiser here: text decoders, VQ-Diffusion, parts of BLIP's and of ControlNet-XS's."""
REFUSED = {
    "attn_processors", "set_attn_processor", "fuse_qkv_projections", "unfuse_qkv_projections", "enable_freeu",
    "disable_freeu", "down_blocks", "mid_block", "up_blocks", "encoder_hid_proj", "text_encoder_hid_proj",
    "transformer_blocks", "single_transformer_blocks", "rope", "audio_rope", "build_attention_mask",
    "build_rotary_emb_for_absolute_positions",
}  # fmt: skip


@cache
def uses() -> dict[str, list[str]]:
    """Attribute → files of diffusers' pipelines and loaders that read it."""
    found: dict[str, list[str]] = {}
    root = Path(diffusers.__file__).parent
    for folder in ("pipelines", "loaders"):
        for file in sorted((root / folder).rglob("*.py")):
            for name in _USE.findall(file.read_text(encoding="utf-8")):
                found.setdefault(name, []).append(str(file.relative_to(root)))
    return found


def of(model: Any) -> DropInModel:
    return DropInModel(lambda inputs: inputs["sample"], ["sample", "timestep"], {**model.config, "_class_name": type(model).__name__})


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(8,), norm_num_groups=4, attention_head_dim=4, cross_attention_dim=8, mid_block_type=None,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=40,
    )  # fmt: skip


def test_every_use_in_diffusers_is_known() -> None:
    """One that is new must be looked at, and answered or refused."""
    private = {name for name in uses() if name.startswith("_") and name != "__class__"}
    assert set(uses()) - private <= ANSWERED | BY_THE_CLASS | OF_OTHER_MODELS | REFUSED
    assert private <= {"_orig_mod", "_internal_dict", "_load_ip_adapter_weights", "_reset_stateful_cache", "_set_ar_attention"}


def test_what_is_answered_is_there(unet: UNet2DConditionModel) -> None:
    dropin = of(unet)
    for name in ANSWERED:
        assert hasattr(dropin, name), name
    assert dropin.config.sample_size == unet.config.sample_size
    assert dropin.in_channels == unet.config.in_channels
    assert dropin.add_embedding.linear_1.in_features == unet.add_embedding.linear_1.in_features == 40
    assert next(dropin.parameters()).dtype == next(unet.parameters()).dtype
    assert [type(module) for module in dropin.modules()] == [DropInModel]


@pytest.mark.parametrize("name", sorted(REFUSED | OF_OTHER_MODELS))
def test_what_is_not_answered_is_refused_with_a_sentence(unet: UNet2DConditionModel, name: str) -> None:
    dropin = of(unet)
    assert not hasattr(dropin, name)
    assert getattr(dropin, name, None) is None
    with pytest.raises(UsageError, match=f"a drop-in has no attribute '{name}': it runs an engine, and answers a UNet2DConditionModel's"):
        getattr(dropin, name)


MODELS: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "HunyuanDiT": (lambda: HunyuanDiT2DModel(num_attention_heads=2, attention_head_dim=8, num_layers=2, hidden_size=16, in_channels=4,
                                             patch_size=2, cross_attention_dim=8, cross_attention_dim_t5=8, pooled_projection_dim=4),
                   ["inner_dim", "num_heads"]),
    "Lumina": (lambda: LuminaNextDiT2DModel(sample_size=8, hidden_size=16, num_layers=1, num_attention_heads=2, num_kv_heads=1,
                                            cross_attention_dim=8), ["head_dim"]),
    "HiDream": (lambda: HiDreamImageTransformer2DModel(num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
                                                       caption_channels=[8, 8], text_emb_dim=8, max_resolution=(32, 32), patch_size=2,
                                                       in_channels=4, out_channels=4, axes_dims_rope=(4, 2, 2), llama_layers=[0, 0]),
                ["max_seq"]),
    "Kandinsky 5": (lambda: Kandinsky5Transformer3DModel(in_visual_dim=4, out_visual_dim=4, in_text_dim=8, in_text_dim2=8, time_dim=8,
                                                         model_dim=16, ff_dim=16, num_text_blocks=1, num_visual_blocks=1,
                                                         axes_dims=(2, 4, 2)), ["visual_cond"]),
    "Wan": (lambda: WanTransformer3DModel(num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=8,
                                          freq_dim=8, ffn_dim=16, num_layers=1), ["in_channels", "patch_size"]),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_numbers_of_the_class(name: str) -> None:
    make, asked = MODELS[name]
    model = make()
    dropin = of(model)
    for attribute in asked:
        expected = model.config[attribute] if attribute in model.config else getattr(model, attribute)
        assert getattr(dropin, attribute) == expected
    assert not hasattr(dropin, "enable_gradient_checkpointing")
    assert dropin.state_dict().keys() == {"placement"}


def test_what_is_private_to_a_class_is_refused_too() -> None:
    """SkyReels' pipelines set an attention's mask on their model."""
    dropin = DropInModel(lambda inputs: inputs["sample"], ["sample"], {"_class_name": "SkyReelsV2Transformer3DModel"})
    with pytest.raises(UsageError, match="a drop-in has no attribute '_set_ar_attention'"):
        dropin._set_ar_attention(1)
    assert not hasattr(dropin, "_reset_stateful_cache")


def test_a_class_that_diffusers_has_not_answers_nothing() -> None:
    dropin = DropInModel(lambda inputs: inputs["sample"], ["sample"], {"_class_name": "MyNet", "width": 3})
    assert dropin.width == 3
    with pytest.raises(
        AttributeError, match="a drop-in has no attribute 'inner_dim': it runs an engine, and answers a MyNet's forward pass"
    ):
        dropin.inner_dim  # noqa: B018
    with pytest.raises(AttributeError, match="object has no attribute '_private'"):
        dropin._private  # noqa: B018
    assert torch.nn.Module.__getattr__ is not type(dropin).__getattr__
