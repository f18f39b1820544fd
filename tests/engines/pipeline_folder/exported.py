"""A small denoiser as a bundle, and a pipeline as the exporters of other tools leave it, with the inputs that they give a denoiser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dq_deploy.artifacts import Artifact, Manifest, create_artifact, open_artifact
from dq_deploy.engines.running.runner import MODEL_FILE
from tests.bundles import write_graph

CONFIG = {"_class_name": "UNet2DConditionModel", "in_channels": 2, "sample_size": 4}
# A number for each sample, a text, and positions that are the same for every sample: each leaves its mark on the output.
BODY = """{
  shape = Constant<value = int64[4] {-1, 1, 1, 1}>()
  time = Reshape(timestep, shape)
  text = ReduceMean<keepdims = 0, noop_with_empty_axes = 0>(encoder_hidden_states)
  axes = Constant<value = int64[2] {1, 2}>()
  positions = ReduceMean<keepdims = 0>(img_ids, axes)
  place = Reshape(positions, shape)
  scaled = Mul(sample, time)
  moved = Add(scaled, text)
  result = Add(moved, place)
}"""
TIMESTEPS = {"qdq": "float[batch] timestep", "onnxruntime": "float[1] timestep"}


def make_bundle(path: Path, target: str = "qdq", config: dict[str, Any] | None = None) -> Artifact:
    inputs = [
        ("sample", ["batch", 2, 4, 4]),
        ("timestep", ["batch"]),
        ("encoder_hidden_states", ["batch", 3, 2]),
        ("img_ids", ["batch", 2, 3]),
    ]
    manifest = Manifest(
        kind="bundle", model="tests:graph", timesteps=[1.0, 2.0], quantization={"weight_bits": 8, "activation_bits": 8},
        scheduler={"class": "DDIMScheduler", "config": {}, "sha256": "0" * 64},
        details={
            "target": target, "dtype": "fp32", "float": False, "output": "result", "component": "unet", "layers": [], "float_layers": [],
            "inputs": [{"name": name, "dtype": "float32", "shape": shape} for name, shape in inputs],
            "pipeline_class": "StableDiffusionPipeline", "model_config": config or CONFIG, "sample_shape": [2, 4, 4], "quantizers": [],
            "source": {"reference": "tests:graph", "sha256": "0" * 64},
        },
    )  # fmt: skip
    head = (
        '<ir_version: 10, opset_import: ["": 20]> denoiser (float[batch, 2, 4, 4] sample, '
        f"{TIMESTEPS[target]}, float[batch, 3, 2] encoder_hidden_states, float[batch, 2, 3] img_ids) => (float[batch, 2, 4, 4] result) "
    )
    with create_artifact(path, manifest) as work:
        write_graph(work / MODEL_FILE, head + BODY)
    return open_artifact(path, "bundle")


def make_exported(path: Path, graph: str, *, timestep: str, inputs: str = "", config: dict[str, Any] | None = None) -> Path:
    """A pipeline as an exporter leaves it: a denoiser, another part, the scheduler, the index."""
    (path / "unet").mkdir(parents=True)
    (path / "text_encoder").mkdir()
    (path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    (path / "unet" / "config.json").write_text(json.dumps({**(config or CONFIG), "_name_or_path": "elsewhere"}))
    (path / "text_encoder" / "config.json").write_text("{}")
    inputs = inputs or f"float[b, 2, h, w] sample, {timestep}, float[b, t, 2] encoder_hidden_states, float[p, 3] img_ids"
    text = (
        f'<ir_version: 10, opset_import: ["": 20]> theirs ({inputs}) => (float[b, c, h, w] out_sample) {{ out_sample = Identity(sample) }}'
    )
    if graph == "onnx":
        write_graph(path / "unet" / "model.onnx", text)
    else:
        import openvino

        file = write_graph(path / "theirs.onnx", text)
        openvino.save_model(openvino.Core().read_model(file), path / "unet" / "openvino_model.xml")
        file.unlink()
    return path
