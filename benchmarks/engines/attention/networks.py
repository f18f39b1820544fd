"""Networks built with attention in INT8 and as the default has it: kernels, fused attentions, memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

import dq_deploy
from benchmarks.engines.study import CAPABILITIES, CHEAP
from benchmarks.scale.setting import Setting
from dq_deploy.artifacts import Artifact, open_artifact
from dq_deploy.artifacts.details import EngineDetails
from dq_deploy.engines.build.engine import load_report
from dq_deploy.engines.layer_report import LayerReport
from dq_deploy.engines.loading.engine_files import engine_bytes
from dq_deploy.exporters.attention import Attention
from dq_deploy.quantization import work_path

WAYS: tuple[Attention, ...] = ("int8", "auto")
PRESET = "w8a8"


class Engine(BaseModel):
    """One engine. ``activation_bytes`` are at batch 8, ``split`` the attentions that are not one kernel, with the reasons."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kernels: int
    planned: int
    as_planned: int
    attentions: int
    fused: int
    split: dict[str, str]
    largest_tokens: int
    weights_bytes: int
    activation_bytes: int
    engine_bytes: int


class Built(BaseModel):
    """A network: way → compute capability → engine."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    network: str
    version: str
    parameters: int
    engines: dict[str, dict[str, Engine]]


@dataclass(frozen=True)
class Network:
    """What is quantized: a built-in model's name, or a module with what ``quantize`` needs for it."""

    make: Callable[[], Any]
    needs: Callable[[], dict[str, Any]] = dict


def _small_unet() -> Any:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    levels = {"down_block_types": ("CrossAttnDownBlock2D",) * 2, "up_block_types": ("CrossAttnUpBlock2D",) * 2}
    model: Any = UNet2DConditionModel(
        sample_size=32, block_out_channels=(64, 128), layers_per_block=1, cross_attention_dim=64, norm_num_groups=8, **levels,
        attention_head_dim=(1, 2),  # heads: diffusers keeps the name for the files that have it
    )  # fmt: skip
    return model.eval()


def _dit_s2() -> Any:
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(0)
    model: Any = DiTTransformer2DModel(
        num_attention_heads=6, attention_head_dim=64, num_layers=12, sample_size=32, patch_size=2, in_channels=4, out_channels=8,
        num_embeds_ada_norm=1000,
    )  # fmt: skip
    return model.eval()


def _scheduler() -> Any:
    from diffusers import DDPMScheduler

    return DDPMScheduler()


_SD = Setting(preset=PRESET)
NETWORKS: dict[str, Network] = {
    "UNet": Network(lambda: "builtin:fashion-mnist-unet"),
    "DiT": Network(lambda: "builtin:fashion-mnist-dit"),
    "UNet2DConditionModel, 64 and 128 channels, 32×32": Network(
        _small_unet,
        lambda: {"scheduler": _scheduler(), "sample_shape": (4, 32, 32), "conditions": {"encoder_hidden_states": torch.randn(2, 20, 64)}},
    ),
    "DiT-S/2, 32×32 latents": Network(
        _dit_s2,
        lambda: {"scheduler": _scheduler(), "sample_shape": (4, 32, 32), "conditions": {"class_labels": torch.arange(2)}},
    ),
    "Stable Diffusion 1.5's UNet, 64×64 latents": Network(
        _SD.model, lambda: {"scheduler": _SD.scheduler(), "sample_shape": _SD.sample_shape, "conditions": _SD.conditions(), "batch_size": 1}
    ),
}  # fmt: skip


def measure(name: str, folder: Path) -> Built:
    """Quantize, export and build both ways in ``folder``; what is there already is taken as it is."""
    network = NETWORKS[name]
    folder.mkdir(parents=True, exist_ok=True)
    model = network.make()
    parameters = sum(p.numel() for p in model.parameters()) if isinstance(model, torch.nn.Module) else 0
    options = {**CHEAP, "rounding": "nearest", "activations": "per-timestep", **({"steps": 2} if parameters else {}), **network.needs()}
    if not (folder / "checkpoint").exists():
        dq_deploy.quantize(model, folder / "checkpoint", preset=PRESET, resume=work_path(folder / "checkpoint").exists(), **options)
    del model
    built = {way: _built(folder, way) for way in WAYS}
    version = built["auto"].details.version
    return Built(network=name, version=version, parameters=parameters, engines={way: _engines(engine) for way, engine in built.items()})


def _built(folder: Path, way: Attention) -> Artifact[EngineDetails]:
    bundle, engine = folder / way, folder / f"{way}-engine"
    if not bundle.exists():
        dq_deploy.export(folder / "checkpoint", bundle, target="qdq", attention=way)
    if not engine.exists():
        dq_deploy.build_engine(bundle, engine, backend="tensorrt-rtx", compute_capabilities=CAPABILITIES)
    return open_artifact(engine, "engine")


def _engines(built: Artifact[EngineDetails]) -> dict[str, Engine]:
    return {str(report.compute_capability): engine_of(built, report) for report in load_report(built)}


def engine_of(built: Artifact[EngineDetails], report: LayerReport) -> Engine:
    """What the builder made for one compute capability."""
    summary = report.summary()
    return Engine(
        kernels=summary["kernels"], planned=summary["planned_layers"], as_planned=summary["as_planned"],
        attentions=summary["attentions"], fused=summary["attentions_fused"], split=summary["attentions_split"],
        largest_tokens=max((a.tokens or 0 for a in report.attentions), default=0), weights_bytes=summary["weights_bytes"],
        activation_bytes=summary["activation_bytes"], engine_bytes=engine_bytes(built, report.compute_capability),
    )  # fmt: skip
