"""A transformer whose layers read rotated values: both targets and both engines have what the checkpoint has."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from onnx import numpy_helper

from dq_deploy.accuracy import check
from dq_deploy.artifacts import Artifact, open_artifact
from dq_deploy.engines.build.engine import build_engine
from dq_deploy.engines.openvino.int8_kernels import int8_serves
from dq_deploy.exporters import export
from dq_deploy.quantization.checkpoint import Checkpoint, load_checkpoint
from tests.command_line import Cli
from tests.flow import altered
from tests.shared import made_once
from tests.tiny import FAST, make_checkpoint
from tests.tiny_pipelines import tiny_dit

BLOCK = "transformer_blocks.0"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Heads of 64 channels, trained for some steps, so that a rotation goes through all of it."""

    def make(path: Path) -> None:
        options = FAST | {"activations": "per-token", "conditions": {"class_labels": torch.arange(5)}, "max_float_share": 0.6}
        model = tiny_dit(out_channels=1, num_layers=1, num_attention_heads=2, attention_head_dim=64)
        make_checkpoint(model, path, **options, rotation="64")

    return load_checkpoint(made_once(tmp_path_factory, "rotation", make))


@pytest.fixture(scope="module", params=[("qdq", "fp32"), ("qdq", "fp16"), ("onnxruntime", "fp32")], ids="-".join)
def bundle(request: pytest.FixtureRequest, checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    target, dtype = request.param
    make: Callable[[Path], object] = lambda path: export(checkpoint.artifact, path, target=target, dtype=dtype)  # noqa: E731
    return open_artifact(made_once(tmp_path_factory, f"rotation-{target}-{dtype}", make), "bundle")


def test_a_checkpoint_says_what_is_rotated_and_where_it_costs_nothing(checkpoint: Checkpoint, cli: Cli) -> None:
    found = {entry.layers[-1]: (entry.block, entry.folded_into) for entry in checkpoint.details.rotation}
    assert found[f"{BLOCK}.attn1.to_out.0"] == (64, f"{BLOCK}.attn1.to_v")
    assert found[f"{BLOCK}.attn1.to_v"] == found[f"{BLOCK}.ff.net.2"] == (64, None)
    words = f"{len(found)} of {len(found)} inputs of linear layers, in blocks of 64, 1 of them by the layer before"
    assert checkpoint.details.rotated == words
    assert f"{len(found)} of {len(found)} inputs" in cli("inspect", checkpoint.artifact.path).out


def test_a_bundle_agrees_with_the_checkpoint(bundle: Artifact, checkpoint: Checkpoint) -> None:
    assert check(bundle, checkpoint.artifact).failures == []
    products = [node for node in onnx.load(bundle.path / "model.onnx").graph.node if node.name.endswith(".rotation/MatMul")]
    assert len(products) == sum(entry.folded_into is None for entry in checkpoint.details.rotation)


def test_a_wrong_rotation_fails_the_check(bundle: Artifact, checkpoint: Checkpoint, tmp_path: Path) -> None:
    def change(model: onnx.ModelProto) -> None:
        (node,) = (n for n in model.graph.node if n.name == f"{BLOCK}.ff.net.2.rotation/MatMul")
        (tensor,) = (t for t in model.graph.initializer if t.name == node.input[1])
        turned = numpy_helper.to_array(tensor).copy()
        turned[:, 5] *= -1
        tensor.CopyFrom(numpy_helper.from_array(turned, tensor.name))

    assert check(altered(bundle, tmp_path / "wrong", change), checkpoint.artifact).failures


@pytest.mark.parametrize("backend", ["openvino", "tensorrt-rtx"])
def test_engines_still_multiply_integers(checkpoint: Checkpoint, tmp_path: Path, backend: str) -> None:
    dtype = "fp32" if backend == "openvino" else "fp16"
    bundle = export(checkpoint.artifact, tmp_path / "bundle", target="qdq", dtype=dtype)
    options = {} if backend == "openvino" else {"compute_capabilities": ["8.9"]}
    engine = build_engine(bundle, tmp_path / "engine", backend=backend, batch=(1, 2, 2), **options)
    report = json.loads(next(engine.path.glob("layers*.json")).read_text())
    rotated = {name for entry in checkpoint.details.rotation for name in entry.layers}
    found = {entry["name"]: entry["precision"] for entry in report["layers"] if entry["name"] in rotated}
    assert set(found) == rotated
    if backend == "tensorrt-rtx" or int8_serves(without_vnni=False):
        assert set(found.values()) == {"int8"}
    if backend == "openvino":
        assert check(engine, checkpoint.artifact).failures == []
