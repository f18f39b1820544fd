"""Small artefacts to test against: a tiny random pipeline on disk, and the float bundle of its network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from dq_deploy.artifacts import Artifact, Manifest, create_artifact, open_artifact, sha256_json
from dq_deploy.sources import load_source
from tests.shared import made_once

TIMESTEPS = [0.0, 250.0, 500.0, 750.0]


@pytest.fixture(scope="session")
def pipeline_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "source", tiny_pipeline)


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory, pipeline_dir: Path) -> Artifact:
    """A float bundle of the tiny pipeline, ``timestep`` [N]. Shared by all tests: read it, do not change it."""
    return open_artifact(made_once(tmp_path_factory, "bundle", lambda path: float_bundle(path, pipeline_dir)), "bundle")


def tiny_pipeline(path: Path) -> Path:
    """A DDPMPipeline folder: a random UNet of one channel, 8×8, a few thousand weights."""
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8,),
        norm_num_groups=4,
        attention_head_dim=8,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    ).eval()
    DDPMPipeline(unet=unet, scheduler=DDPMScheduler(num_train_timesteps=1000)).save_pretrained(path)
    return path


def float_bundle(path: Path, pipeline: Path, *, target: str = "qdq") -> Artifact:
    """The pipeline's network as a float bundle: ``timestep`` is [N] in target ``qdq`` and [1] in ``onnxruntime``."""
    source = load_source(pipeline)
    scheduler = dict(source.scheduler.config)
    manifest = Manifest(
        kind="bundle",
        model=source.name,
        scheduler={"class": type(source.scheduler).__name__, "config": scheduler, "sha256": sha256_json(scheduler)},
        timesteps=TIMESTEPS,
        details={
            "target": target,
            "dtype": "fp32",
            "float": True,
            "inputs": [
                {"name": "sample", "dtype": "float32", "shape": ["batch", *source.sample_shape]},
                {"name": "timestep", "dtype": "float32", "shape": ["batch"] if target == "qdq" else [1]},
            ],
            "output": "out_sample",
            "component": source.component,
            "pipeline_class": source.pipeline_class,
            "model_config": source.config,
            "sample_shape": list(source.sample_shape),
            "source": {"reference": source.reference, "sha256": source.sha256},
            "layers": [],
            "float_layers": [],
            "quantizers": [],
        },
    )
    with create_artifact(path, manifest) as work:
        _export(source.model, source.sample_shape, target, work / "model.onnx")
    return open_artifact(path, "bundle")


def _export(model: torch.nn.Module, sample_shape: tuple[int, ...], target: str, file: Path) -> None:
    batch = torch.export.Dim("batch", min=1, max=1024)
    per_sample = target == "qdq"
    torch.onnx.export(
        _Plain(model).eval(),
        (torch.zeros(2, *sample_shape), torch.zeros(2 if per_sample else 1)),
        str(file),
        dynamo=True,
        opset_version=21,
        input_names=["sample", "timestep"],
        output_names=["out_sample"],
        dynamic_shapes=({0: batch}, {0: batch} if per_sample else None),
        external_data=False,
        verbose=False,
    )


class _Plain(torch.nn.Module):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> Any:
        return self.model(sample, timestep.expand(sample.shape[0]), return_dict=False)[0]


def write_graph(path: Path, text: str) -> Path:
    """An ONNX file from ONNX's own text notation."""
    model = onnx.parser.parse_model(text)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path
