"""Each family of diffusers' denoisers, small and with random weights, the whole way: quantize, export for both targets, check, build."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from torch import nn

from dq_deploy.accuracy import check
from dq_deploy.artifacts import Artifact
from dq_deploy.engines.bench.contenders import contenders_from
from dq_deploy.engines.bench.statistics import snr_db
from dq_deploy.engines.build.engine import build_engine, load_report
from dq_deploy.exporters import export
from dq_deploy.formats import ScaleSource
from dq_deploy.quantization import load_checkpoint, quantize
from tests.nightly import mostly_nightly

PROMPTS, TOKENS = 3, 7


@dataclass(frozen=True)
class Architecture:
    """A denoiser, the shape of one sample, its conditions [PROMPTS, ...], and the scheduler that its pipelines have."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    conditions: dict[str, torch.Tensor]
    scheduler: Any = field(default_factory=DDIMScheduler)

    @property
    def options(self) -> dict[str, Any]:
        """Flow matching is not DDIM's: such a model is calibrated by its own scheduler."""
        return {} if isinstance(self.scheduler, DDIMScheduler) else {"sampler": "pipeline"}


class SDXL(nn.Module):
    """SDXL's UNet, whose pooled text and sizes come in a dictionary, with a named input for each."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: Any, timestep: Any, encoder_hidden_states: Any, text_embeds: Any, time_ids: Any) -> Any:
        added = {"text_embeds": text_embeds, "time_ids": time_ids}
        return self.unet(sample, timestep, encoder_hidden_states, added_cond_kwargs=added, return_dict=False)[0]


class Flux(nn.Module):
    """FLUX's transformer at one picture size, whose positions are constants; its timesteps are those of the scheduler, 0 … 1000."""

    def __init__(self, transformer: FluxTransformer2DModel, side: int) -> None:
        super().__init__()
        self.transformer = transformer
        places = torch.zeros(side * side, 3)
        places[:, 1], places[:, 2] = torch.arange(side * side) // side, torch.arange(side * side) % side
        self.register_buffer("places", places)
        self.register_buffer("text_places", torch.zeros(TOKENS, 3))

    def forward(self, hidden_states: Any, timestep: Any, encoder_hidden_states: Any, pooled_projections: Any, guidance: Any) -> Any:
        return self.transformer(
            hidden_states=hidden_states, timestep=timestep / 1000, encoder_hidden_states=encoder_hidden_states,
            pooled_projections=pooled_projections, guidance=guidance, img_ids=self.places, txt_ids=self.text_places, return_dict=False,
        )[0]  # fmt: skip


_UNET = {"sample_size": 8, "block_out_channels": (16, 32), "layers_per_block": 1, "cross_attention_dim": 32, "norm_num_groups": 8}
_LATENT = (4, 8, 8)


def text(width: int) -> dict[str, torch.Tensor]:
    return {"encoder_hidden_states": torch.randn(PROMPTS, TOKENS, width)}


ARCHITECTURES: dict[str, Architecture] = {
    "stable-diffusion-1.5": Architecture(
        lambda: UNet2DConditionModel(
            **_UNET, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            attention_head_dim=4,
        ),
        _LATENT, text(32),
    ),
    "stable-diffusion-xl": Architecture(
        lambda: SDXL(
            UNet2DConditionModel(
                **_UNET, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
                attention_head_dim=(2, 4), use_linear_projection=True, transformer_layers_per_block=(1, 1), addition_embed_type="text_time",
                addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 16,
            )
        ),
        _LATENT, {**text(32), "text_embeds": torch.randn(PROMPTS, 16), "time_ids": 100 * torch.rand(PROMPTS, 6)},
    ),
    "pixart": Architecture(
        lambda: PixArtTransformer2DModel(
            num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=8, num_layers=2, cross_attention_dim=32,
            sample_size=8, patch_size=2, caption_channels=24, use_additional_conditions=False,
        ),
        _LATENT, text(24),
    ),
    "stable-diffusion-3": Architecture(
        lambda: SD3Transformer2DModel(
            sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=24, caption_projection_dim=32, pooled_projection_dim=16, pos_embed_max_size=16,
        ),
        _LATENT, {**text(24), "pooled_projections": torch.randn(PROMPTS, 16)}, FlowMatchEulerDiscreteScheduler(),
    ),
    "flux": Architecture(
        lambda: Flux(
            FluxTransformer2DModel(
                patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
                joint_attention_dim=24, pooled_projection_dim=16, guidance_embeds=True, axes_dims_rope=(4, 6, 6),
            ),
            side=4,
        ),
        (16, 16), {**text(24), "pooled_projections": torch.randn(PROMPTS, 16), "guidance": torch.full((PROMPTS,), 3.5)},
        FlowMatchEulerDiscreteScheduler(),
    ),
}  # fmt: skip


# tests/test_sizes.py takes such a U-Net, and tests/families two other kinds, the whole way always.
@pytest.fixture(scope="module", params=mostly_nightly(ARCHITECTURES))
def architecture(request: pytest.FixtureRequest) -> Architecture:
    return ARCHITECTURES[request.param]


@pytest.fixture(scope="module")
def checkpoint(architecture: Architecture, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """W8A8, four timesteps, not distilled. Small models are mostly first and last layer, hence the float share."""
    torch.manual_seed(0)
    return quantize(
        architecture.make().eval(), tmp_path_factory.mktemp("architecture") / "checkpoint", scheduler=architecture.scheduler,
        sample_shape=architecture.shape, conditions=architecture.conditions, steps=4, calibration_samples=4, reference_samples=16,
        iterations=0, dilation="asymmetric", max_float_share=0.05, **architecture.options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def bundle(checkpoint: Artifact) -> Artifact:
    return export(checkpoint, checkpoint.path.parent / "qdq", target="qdq", dtype="fp32")


def test_only_the_layer_that_reads_the_sample_stays_in_float(checkpoint: Artifact) -> None:
    details = checkpoint.manifest.details
    (left,) = details["float_layers"]
    assert "reads the model's input" in left["reason"]
    assert len(details["layers"]) > 30


def test_conditions_are_named_inputs_of_the_graph(architecture: Architecture, bundle: Artifact) -> None:
    inputs = {i["name"]: i["shape"] for i in bundle.manifest.details["inputs"]}
    first = next(iter(inputs))
    assert first in ("sample", "hidden_states")
    assert {name: inputs[name] for name in architecture.conditions} == {
        name: ["batch", *value.shape[1:]] for name, value in architecture.conditions.items()
    }
    assert set(inputs) == {first, "timestep", *architecture.conditions}


def test_both_graphs_compute_what_the_checkpoint_does(checkpoint: Artifact, bundle: Artifact) -> None:
    for made in (bundle, export(checkpoint, checkpoint.path.parent / "onnxruntime", target="onnxruntime")):
        verdict = check(made, checkpoint)
        assert verdict, verdict.failures
        assert {row.layer for row in verdict.layers} == {layer["name"] for layer in checkpoint.manifest.details["layers"]}


def test_rows_are_selected_by_value(checkpoint: Artifact) -> None:
    """Flow matching's timesteps are any numbers: near a calibrated one its row counts."""
    loaded = load_checkpoint(checkpoint.path)
    for quantizer in (q for q in loaded.quantizers.values() if q.source is ScaleSource.TABLE):
        scale, zero_point = quantizer.selected(loaded.table_timesteps + 0.25)
        assert torch.equal(scale, quantizer.scale_table())
        assert torch.equal(zero_point.to(torch.int8), quantizer.zero_point_table())


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed")
def test_the_compiler_makes_every_planned_product_int8(architecture: Architecture, bundle: Artifact, tmp_path: Path) -> None:
    # Each capability is a compilation of its own: Blackwell is compiled for once, with the smallest graph.
    capabilities = ["8.9", "12.0"] if architecture is ARCHITECTURES["flux"] else ["8.9"]
    reports = load_report(build_engine(bundle, tmp_path / "engine", compute_capabilities=capabilities))
    planned = {layer["name"]: "int8" for layer in bundle.manifest.details["layers"]}
    assert [{layer.name: layer.precision for layer in report.layers} for report in reports] == [planned] * len(capabilities)


def test_openvino_computes_what_onnxruntime_does(architecture: Architecture, bundle: Artifact) -> None:
    if architecture is ARCHITECTURES["stable-diffusion-xl"]:
        pytest.skip("its blocks are Stable Diffusion 1.5's, and compiling them takes longest")
    one, other = contenders_from([bundle], engines=["onnxruntime", "openvino"], threads=1)
    for inputs in one.inputs(2)[:2]:
        snr = snr_db(one.runner.run(inputs), other.runner.run(inputs))
        assert snr is None or snr > 30  # another order of float sums moves a code at a tie now and then


def test_openvino_makes_every_planned_product_int8(architecture: Architecture, bundle: Artifact, tmp_path: Path) -> None:
    if architecture is ARCHITECTURES["stable-diffusion-xl"]:
        pytest.skip("its blocks are Stable Diffusion 1.5's, and compiling them takes longest")
    (report,) = load_report(build_engine(bundle, tmp_path / "engine", backend="openvino", int8_kernels="always"))
    assert {layer.name: layer.precision for layer in report.layers} == {
        layer["name"]: "int8" for layer in bundle.manifest.details["layers"]
    }
