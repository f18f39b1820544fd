"""One small pipeline taken through the command line's stages, once for all tests that judge what comes out. Read it, do not change it."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from dq_deploy.artifacts import MANIFEST_NAME, Artifact, create_artifact, open_artifact
from dq_deploy.exporters import export
from dq_deploy.quantization import quantize
from tests.shared import made_once

STEPS = 5
OPTIONS = {
    "steps": STEPS,
    "calibration_samples": 4,
    # SNRs of two forwards scatter: this many samples of 8×8 bring the difference well below half a decibel.
    "reference_samples": 24,
    "iterations": 0,
    "rounding": "nearest",
    "max_float_share": 0.2,  # the first layer weighs more in a tiny model
}


@dataclass(frozen=True)
class Flow:
    """Folders of one pipeline's artefacts."""

    pipeline: Path
    checkpoint: Path
    bundles: dict[str, Path]

    def bundle(self, name: str) -> Artifact:
        return open_artifact(self.bundles[name], "bundle")


@pytest.fixture(scope="session")
def flow_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DDPMPipeline folder: ResNet blocks and attention on one channel of 8×8, random weights."""
    pipeline = DDPMPipeline(unet=small_unet(), scheduler=DDPMScheduler(num_train_timesteps=1000))
    return made_once(tmp_path_factory, "flow-source/pipeline", pipeline.save_pretrained)


@pytest.fixture(scope="session")
def flow(flow_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Flow:
    """W8A8, five timesteps, not distilled; bundles qdq (fp32), qdq-fp16, onnxruntime and float."""
    kinds: dict[str, dict[str, Any]] = {
        "qdq": {"target": "qdq", "dtype": "fp32"},
        "qdq-fp16": {"target": "qdq"},
        "onnxruntime": {"target": "onnxruntime", "convolutions": "integer"},
        "float": {"target": "qdq", "float": True},
    }

    def make(root: Path) -> None:
        checkpoint = quantize(flow_pipeline, root / "checkpoint", **OPTIONS)
        for name, options in kinds.items():
            export(checkpoint, root / name, **options)

    root = made_once(tmp_path_factory, "flow", make)
    return Flow(flow_pipeline, root / "checkpoint", {name: root / name for name in kinds})


@pytest.fixture(scope="session")
def narrow(flow_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Flow:
    """W4A4 of the same pipeline, calibrated on fewer samples; the bundle qdq (fp32)."""

    def make(root: Path) -> None:
        checkpoint = quantize(flow_pipeline, root / "checkpoint", preset="w4a4", **{**OPTIONS, "reference_samples": 8})
        export(checkpoint, root / "narrow", target="qdq", dtype="fp32")

    root = made_once(tmp_path_factory, "flow-narrow", make)
    return Flow(flow_pipeline, root / "checkpoint", {"qdq": root / "narrow"})


def small_unet() -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(16,),
        norm_num_groups=4,
        attention_head_dim=8,
        add_attention=False,
        down_block_types=("AttnDownBlock2D",),
        up_block_types=("UpBlock2D",),
    ).eval()


def altered(bundle: Artifact, path: Path, change: Callable[[onnx.ModelProto], None]) -> Artifact:
    """A copy of a bundle with other numbers in its graph and a manifest that vouches for them."""
    with create_artifact(path, bundle.manifest.model_copy(deep=True)) as work:
        model = onnx.load(bundle.file("model.onnx"))
        change(model)
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, work / "model.onnx")
    return open_artifact(path, "bundle")


def altered_manifest(source: Artifact, path: Path, **fields: object) -> Artifact:
    """A copy of an artefact whose manifest has other fields."""
    with create_artifact(path, source.manifest.model_copy(update=fields, deep=True)) as work:
        for name in source.manifest.files:
            shutil.copyfile(source.path / name, work / name)
    return open_artifact(path, source.manifest.kind)


def snapshot(folder: Path) -> dict[str, str]:
    """sha256 of every file below a folder, hidden ones too; "" for a folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in folder.rglob("*")
    }


def tampered(source: Path, path: Path) -> Path:
    """A copy of an artefact in which one byte of its largest file is another."""
    shutil.copytree(source, path)
    file = max((p for p in path.iterdir() if p.name != MANIFEST_NAME), key=lambda p: p.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    return path
