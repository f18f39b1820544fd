"""Integer products on a CPU without VNNI: made uint8 by uint8 when the graph is loaded, wherever it is run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from dq_deploy.accuracy.local import local_parity
from dq_deploy.artifacts import Artifact
from dq_deploy.engines.onnxruntime import runner as engine
from dq_deploy.engines.onnxruntime.runner import OnnxRuntimeRunner
from dq_deploy.exporters import exact_sums, export
from dq_deploy.exporters.exact_sums import make_exact, saturates
from dq_deploy.quantization.checkpoint import Checkpoint
from tests.tiny import PlainUNet, make_checkpoint

MODULES = (engine, exact_sums)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return make_checkpoint(PlainUNet(), tmp_path_factory.mktemp("exact") / "checkpoint")


@pytest.fixture
def without_vnni(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in MODULES:
        monkeypatch.setattr(module, "saturates", lambda: True)


def bundle_of(checkpoint: Checkpoint, folder: Path, **options: str) -> Artifact:
    return export(checkpoint.artifact, folder, target="onnxruntime", convolutions="integer", **options)


def feeds(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    reference = checkpoint.reference()
    return {checkpoint.details.inputs[0]: reference.samples[1].numpy(), "timestep": np.float32(reference.timesteps[1])}


def test_the_probe_knows_this_cpu() -> None:
    assert saturates() == ("avx512_vnni" not in Path("/proc/cpuinfo").read_text() and "avx_vnni" not in Path("/proc/cpuinfo").read_text())


@pytest.mark.parametrize("optimized", [False, True])
def test_the_numbers_stay(checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, optimized: bool) -> None:
    bundle = bundle_of(checkpoint, tmp_path / "bundle")
    monkeypatch.setattr(engine, "saturates", lambda: False)
    fast = OnnxRuntimeRunner(bundle, optimized=optimized).run(feeds(checkpoint))
    monkeypatch.setattr(engine, "saturates", lambda: True)
    exact = OnnxRuntimeRunner(bundle, optimized=optimized)
    assert exact.details["session_config"]["session.x64quantprecision"] == "1"
    if not saturates():
        np.testing.assert_array_equal(exact.run(feeds(checkpoint)), fast)


def test_no_signed_right_side_is_left(checkpoint: Checkpoint, tmp_path: Path) -> None:
    model = ir.load(bundle_of(checkpoint, tmp_path / "bundle").path / "model.onnx")
    assert make_exact(model)
    assert not make_exact(model)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


@pytest.mark.usefixtures("without_vnni")
def test_weights_beside_the_graph_are_found(checkpoint: Checkpoint, tmp_path: Path) -> None:
    bundle = bundle_of(checkpoint, tmp_path / "bundle")
    expected = OnnxRuntimeRunner(bundle).run(feeds(checkpoint))
    apart = tmp_path / "apart" / "model.onnx"
    apart.parent.mkdir()
    model = onnx.load(bundle.path / "model.onnx")
    onnx.save(model, apart, save_as_external_data=True, location="weights.data", size_threshold=200)
    np.testing.assert_array_equal(OnnxRuntimeRunner(apart).run(feeds(checkpoint)), expected)


@pytest.mark.usefixtures("without_vnni")
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_parity_is_judged_on_exact_sums(checkpoint: Checkpoint, tmp_path: Path, dtype: str) -> None:
    bundle = bundle_of(checkpoint, tmp_path / "bundle", dtype=dtype)
    assert all(row.passed for row in local_parity(bundle, checkpoint, checkpoint.reference()))


def test_products_fuse_with_a_sessions_defaults(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """What another program gets: one fused kernel for each product, scale and bias in it."""
    bundle = bundle_of(checkpoint, tmp_path / "bundle")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(str(bundle.path / "model.onnx"), options, providers=["CPUExecutionProvider"])
    operators = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert operators.count("MatMulIntegerToFloat") == len(bundle.manifest.details["layers"])
    assert not {"MatMulInteger", "DequantizeLinear", "Gemm"}.intersection(operators)
    assert torch.isfinite(torch.from_numpy(OnnxRuntimeRunner(bundle).run(feeds(checkpoint)))).all()
