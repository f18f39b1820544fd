"""Other people's UNets, plain modules called (x, t), go the whole way by naming their blocks and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

import dq_deploy
from dq_deploy.accuracy import check
from dq_deploy.quantization.checkpoint import Checkpoint, load_checkpoint
from dq_deploy.quantization.graph.skip_halves import whole_name
from tests.nightly import mostly_nightly
from tests.third_party import AdmUNet, LinearAttentionUNet
from tests.tiny import SHAPE, WHOLE, scheduler, snr_db

MODELS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "adm": (AdmUNet, ["input_blocks.*", "middle_block.*", "output_blocks.*"]),
    "linear-attention": (LinearAttentionUNet, ["downs.*.*", "mid_*", "ups.*.*", "final_res_block"]),
}


@pytest.fixture(scope="module", params=mostly_nightly(MODELS, "adm"))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Checkpoint]:
    model, blocks = MODELS[request.param]
    artifact = dq_deploy.quantize(
        model(), tmp_path_factory.mktemp(request.param) / "checkpoint", scheduler=scheduler(), sample_shape=SHAPE, blocks=blocks,
        steps=2, calibration_samples=4, reference_samples=24, iterations=2, batch_size=4,
    )  # fmt: skip
    return model().eval(), load_checkpoint(artifact.path)


def test_nothing_but_the_first_layer_stays_in_float(made: tuple[nn.Module, Checkpoint]) -> None:
    model, checkpoint = made
    details = checkpoint.artifact.manifest.details
    assert details["float_mac_share"] <= 0.02
    assert [layer["op"] for layer in details["float_layers"]] == ["conv2d"]
    planned = {layer["name"] for layer in details["layers"]}
    assert planned == set(checkpoint.layers)
    modules = {name for name, m in model.named_modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Linear)}
    assert len(modules & {whole_name(name) for name in planned}) == len(modules) - 1


def test_the_named_blocks_are_distilled(made: tuple[nn.Module, Checkpoint]) -> None:
    model, checkpoint = made
    blocks = {record.block for record in checkpoint.details.distillation}
    named = (
        {"input_blocks.1.0", "middle_block.0", "output_blocks.1.1"} if isinstance(model, AdmUNet) else {"downs.0.0", "mid_attn", "ups.0.2"}
    )
    assert named <= blocks


def test_the_integer_model_is_close_to_the_float_one(made: tuple[nn.Module, Checkpoint]) -> None:
    model, checkpoint = made
    torch.manual_seed(3)
    x, t = torch.randn(6, *SHAPE), torch.tensor([0.0, 500.0, 480.0, 20.0, 0.0, 500.0])
    with torch.no_grad():
        assert snr_db(model(x, t), checkpoint.model(x, t)) > 20


@pytest.mark.parametrize("target", ["qdq", "onnxruntime"])
def test_both_graphs_compute_what_the_checkpoint_does(made: tuple[nn.Module, Checkpoint], target: str, tmp_path: Path) -> None:
    _, checkpoint = made
    bundle = dq_deploy.export(checkpoint.artifact, tmp_path / "bundle", target=target, dtype="fp32", **WHOLE[target])  # type: ignore[arg-type]
    operators = {node.op_type for node in onnx.load(bundle.path / "model.onnx").graph.node}
    assert "Einsum" not in operators
    verdict = check(bundle, checkpoint.artifact, optimized=False)
    assert verdict, verdict.failures
