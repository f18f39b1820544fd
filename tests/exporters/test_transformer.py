"""A class-conditional transformer from its folder to both targets: integer products, and graphs that agree with the checkpoint."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from diffusers import DDPMScheduler, DiTPipeline

from dq_deploy.accuracy import check
from dq_deploy.artifacts import Artifact
from dq_deploy.exporters import export
from dq_deploy.quantization import quantize
from dq_deploy.quantization.checkpoint import Checkpoint, load_checkpoint
from dq_deploy.sources import load_source
from tests.tiny import run, snr_db
from tests.tiny_pipelines import tiny_dit


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DiTPipeline folder of a model in pixel space, without a VAE."""
    path: Path = tmp_path_factory.mktemp("transformer") / "pipeline"
    model = tiny_dit(out_channels=1, attention_head_dim=32)
    model.save_pretrained(path / "transformer")
    DDPMScheduler().save_pretrained(path / "scheduler")
    DiTPipeline(model, None, DDPMScheduler()).save_config(path)
    return path


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Checkpoint:
    quantize(folder, folder.parent / "checkpoint", steps=3, calibration_samples=6, reference_samples=8, iterations=0, batch_size=16)
    return load_checkpoint(folder.parent / "checkpoint")


@pytest.fixture(scope="module", params=["qdq", "onnxruntime"])
def bundle(request: pytest.FixtureRequest, checkpoint: Checkpoint) -> Artifact:
    return export(checkpoint.artifact, checkpoint.artifact.path.parent / request.param, target=request.param, dtype="fp32")


def test_only_the_patches_stay_in_float(checkpoint: Checkpoint) -> None:
    details = checkpoint.artifact.manifest.details
    assert [layer["name"] for layer in details["float_layers"]] == ["pos_embed.proj"]
    assert details["float_mac_share"] < 0.02
    planned = {layer["name"] for layer in details["layers"]}
    block = "transformer_blocks.1"
    linear = ("norm1.linear", "attn1.to_q", "attn1.to_out.0", "ff.net.0.proj", "ff.net.2", "attn1.matmul", "attn1.matmul_1")
    assert {f"{block}.{name}" for name in linear} | {"proj_out_1", "proj_out_2"} <= planned


def test_the_graph_agrees_with_the_checkpoint(bundle: Artifact, checkpoint: Checkpoint) -> None:
    result = check(bundle, checkpoint.artifact, optimized=False)
    assert result, result.failures
    assert len(result.timesteps) == 3


def test_classes_and_timesteps_may_be_mixed_in_a_batch(bundle: Artifact, checkpoint: Checkpoint, folder: Path) -> None:
    """The null class (5) and every timestep beside each other; the labels count."""
    torch.manual_seed(0)
    samples, timesteps, labels = torch.randn(4, 1, 8, 8), torch.tensor([0.0, 333.0, 666.0, 666.0]), torch.tensor([0, 5, 3, 5])
    with torch.no_grad():
        expected = load_source(folder).model(samples, timesteps, class_labels=labels).sample
    got = run(bundle, samples, timesteps, class_labels=labels)
    assert snr_db(expected, got) > 25
    assert snr_db(expected, run(bundle, samples, timesteps, class_labels=labels.flip(0))) < 20


def test_inputs_keep_their_names_and_patches_are_put_together_by_a_transposition(bundle: Artifact) -> None:
    graph = onnx.load(bundle.file("model.onnx")).graph
    assert [i.name for i in graph.input] == ["hidden_states", "timestep", "class_labels"]
    assert "Einsum" not in {node.op_type for node in graph.node}
