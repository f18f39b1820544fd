"""Attention in a default export: INT8 for CPUs, and one kernel of floats in a GPU's engine, by the real TensorRT-RTX compiler."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from dq_deploy.accuracy.comparing import as_exported
from dq_deploy.artifacts import Artifact, open_artifact
from dq_deploy.cli import run
from dq_deploy.engines.build.engine import build_engine, load_report
from dq_deploy.engines.layer_report import LayerReport
from dq_deploy.engines.layer_report.kernels import AttentionPlan
from dq_deploy.engines.tensorrt.fused_attention import fuse_attentions, padded_head
from dq_deploy.exporters import export
from dq_deploy.quantization.checkpoint import Checkpoint, load_checkpoint
from tests.shared import made_once
from tests.third_party import FoldedAttention
from tests.tiny import make_checkpoint, snr_db

rtx = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed")
TEXT = (5, 24)
OPTIONS: dict[str, Any] = {"steps": 2, "calibration_samples": 2, "batch_size": 2, "dilation": "none", "max_float_share": 1.0}
MASK = torch.ones(256, 256).tril() * 0.9


class Pixels(nn.Module):
    """256 pixels that attend to each other, channels first, in heads of ``size`` channels; ``behind`` changes the probabilities."""

    def __init__(self, size: int, heads: int = 2, behind: Callable[[torch.Tensor], torch.Tensor] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.leave = nn.Conv2d(1, size * heads, 3, padding=1), nn.Conv2d(size * heads, 1, 3, padding=1)
        self.attention, self.behind = FoldedAttention(size * heads, heads), behind

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        h = self.enter(x) + t[:, None, None, None] / 1000
        if self.behind is None:
            return self.leave(self.attention(h))
        tokens = h.flatten(2).transpose(1, 2)
        p = self.behind(torch.softmax(tokens @ tokens.transpose(1, 2), dim=-1))
        return self.leave((p @ tokens).transpose(1, 2).reshape(h.shape))


def text_unet() -> UNet2DConditionModel:
    """A UNet of Stable Diffusion's kind: 256 pixels attend to themselves and to text, in heads of 8 channels."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=16, block_out_channels=(16,), layers_per_block=1, cross_attention_dim=TEXT[1], norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D",), up_block_types=("UpBlock2D",), mid_block_type=None, attention_head_dim=2,
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    def make(path: Path) -> None:
        make_checkpoint(text_unet(), path, shape=(4, 16, 16), conditions={"encoder_hidden_states": torch.randn(2, *TEXT)}, **OPTIONS)

    return open_artifact(made_once(tmp_path_factory, "text-checkpoint", make), "checkpoint")


@pytest.fixture(scope="module")
def pixels(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Heads of 16 channels in front of the pixels."""
    made = made_once(tmp_path_factory, "pixels-checkpoint", lambda p: make_checkpoint(Pixels(16), p, shape=(1, 16, 16), **OPTIONS))
    return open_artifact(made, "checkpoint")


def built(bundle: Artifact, output: Path) -> tuple[Artifact, LayerReport]:
    engine = build_engine(bundle, output, compute_capabilities=["8.9"])
    (report,) = load_report(engine)
    return engine, report


@rtx
def test_every_attention_of_a_default_export_is_one_kernel(text: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = export(text, tmp_path / "bundle", target="qdq")
    assert bundle.details.attention == "auto"
    engine, report = built(bundle, tmp_path / "engine")
    assert [(a.tokens, a.keys, a.heads, a.head_size) for a in report.attentions] == [(256, 256, 2, 8), (256, 5, 2, 8)]
    assert all(a.planned and a.fused and a.precision == "fp16" and a.macs > 0 and len(a.kernels) == 1 for a in report.attentions)
    products = [layer.name for layer in bundle.details.layers if layer.op == "matmul"]
    assert engine.details.float_attention == products
    assert len(products) == 4
    # Every other layer is in INT8 as before, and no product of attention is named as one that went wrong.
    assert len(report.as_planned()) == len(report.layers) == len(bundle.details.layers) - 4
    assert not {name for name in report.summary()["float_products"] if name.partition("/")[0] in products}
    entry = engine.manifest.details["engines"][0]
    assert (entry["attentions"], entry["attentions_fused"], entry["as_planned"]) == (2, 2, len(report.layers))
    assert run(["layers", str(engine.path)]) == 0
    assert re.search(
        r"\d+ of \d+ products are in float or not as planned, beside 4 within attentions in one kernel", capsys.readouterr().out
    )


@rtx
def test_heads_in_front_of_the_pixels_are_fused_too(pixels: Artifact, tmp_path: Path) -> None:
    _, report = built(export(pixels, tmp_path / "bundle", target="qdq"), tmp_path / "engine")
    assert report.summary()["attentions_fused"] == report.summary()["attentions"] == 1


@rtx
def test_int8_that_was_asked_for_stays(pixels: Artifact, tmp_path: Path) -> None:
    engine, report = built(export(pixels, tmp_path / "bundle", target="qdq", attention="int8"), tmp_path / "engine")
    assert engine.details.float_attention == []
    (attention,) = report.attentions
    assert (attention.fused, attention.planned, attention.reason) == (False, False, "exported with --attention int8")
    assert len(attention.kernels) == 2
    assert len(report.as_planned()) == len(report.layers) == len(pixels.manifest.details["layers"])
    assert report.summary()["attentions_split"] == {attention.name: attention.reason}


@pytest.mark.parametrize("network", ["text", "pixels"])
def test_the_fused_graph_computes_float_attention(network: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Padded heads and all: what ``--attention float`` exports, to the rounding of fp16, and not what INT8 computes."""
    checkpoint: Artifact = request.getfixturevalue(network)
    auto, plans = fused(export(checkpoint, tmp_path / "auto", target="qdq"))
    assert all(plan.fused for plan in plans)
    feeds = some_inputs(export(checkpoint, tmp_path / "float", target="qdq", attention="float"))
    int8, want = (outputs(ir.load(tmp_path / name / "model.onnx"), feeds) for name in ("auto", "float"))
    got = outputs(auto, feeds)
    assert snr_db(want, got) > 60
    assert snr_db(want, int8) < snr_db(want, got) - 6


def fused(bundle: Artifact) -> tuple[ir.Model, list[AttentionPlan]]:
    model = ir.load(bundle.path / "model.onnx")
    return model, fuse_attentions(model, bundle.details)


def some_inputs(bundle: Artifact) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    shapes = {entry.name: [3 if size == "batch" else int(size) for size in entry.shape] for entry in bundle.details.inputs}
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def outputs(model: ir.Model, feeds: dict[str, np.ndarray]) -> torch.Tensor:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    running = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(running.run(None, feeds)[0])


def test_an_engine_is_judged_by_the_forward_that_it_has(text: Artifact, tmp_path: Path) -> None:
    checkpoint, bundle = load_checkpoint(text.path), export(text, tmp_path / "bundle", target="qdq")
    names = [layer.name for layer in bundle.details.layers if layer.op == "matmul"]
    details = {**bundle.manifest.details, "backend": "tensorrt-rtx", "version": "1.7", "batch": [1, 1, 8], "float_attention": names[:2]}
    details["engines"] = [{"compute_capability": "8.9", "file": "a", "report": "b"}]
    engine = Artifact(tmp_path, bundle.manifest.model_copy(update={"kind": "engine", "details": details}))
    assert {*as_exported(checkpoint, engine.details).layers} == {*checkpoint.layers} - {*names[:2]}
    assert {*as_exported(checkpoint, bundle.details).layers} == {*checkpoint.layers}


WHY = {
    "wide": (Pixels(256, 1), {}, "its heads need 264 channels with padding, and those of up to 256 are fused"),
    "fp32": (Pixels(16), {"dtype": "fp32"}, "an operand is fp32, and only 16-bit types are fused"),
    "masked": (Pixels(16, 1, lambda p: p * MASK), {}, "it has a Mul behind its softmax"),
}


@pytest.mark.parametrize("case", WHY)
def test_what_is_not_fused_is_as_it_was_and_says_why(case: str, tmp_path: Path) -> None:
    network, options, why = WHY[case]
    checkpoint = make_checkpoint(network, tmp_path / "checkpoint", shape=(1, 16, 16), **OPTIONS)
    bundle = export(checkpoint.artifact, tmp_path / "bundle", target="qdq", **options)
    model, (plan,) = fused(bundle)
    assert (plan.fused, plan.reason) == (False, why)
    products = [node for node in model.graph if node.op_type == "MatMul" and node.name in plan.nodes]
    assert {value.producer().op_type for node in products for value in node.inputs} == {"DequantizeLinear"}


@pytest.mark.parametrize(
    ("channels", "always", "size"), [(4, False, 16), (16, False, 16), (20, False, 24), (64, False, 64), (64, True, 72)]
)
def test_heads_are_padded_to_what_has_a_kernel(channels: int, always: bool, size: int) -> None:
    assert padded_head(channels, always=always) == size


@rtx
def test_one_head_is_fused_on_older_gpus_too(plain_checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Its compiler needs padding for that, and none for newer ones."""
    bundle = export(plain_checkpoint.artifact, tmp_path / "bundle", target="qdq")
    (report,) = load_report(build_engine(bundle, tmp_path / "engine", compute_capabilities=["8.6"]))
    assert [(attention.heads, attention.fused) for attention in report.attentions] == [(1, True)]
    for capability, pads in (((8, 6), 3), ((8, 9), 0)):
        model = ir.load(bundle.path / "model.onnx")
        before = sum(node.op_type == "Pad" for node in model.graph)
        fuse_attentions(model, bundle.details, [capability])
        assert sum(node.op_type == "Pad" for node in model.graph) - before == pads
