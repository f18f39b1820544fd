"""FP8 bundles: types in the graph, parity on a CPU, plans of TensorRT-RTX, and the engines that refuse them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

from dq_deploy.accuracy import check
from dq_deploy.accuracy.local import local_parity
from dq_deploy.artifacts import Artifact, open_artifact
from dq_deploy.artifacts.scale_tables import read_tables
from dq_deploy.engines.build.engine import build_engine, load_report
from dq_deploy.engines.dropin import load
from dq_deploy.engines.loading.choice import best_runtime
from dq_deploy.errors import ArtifactError, UsageError
from dq_deploy.exporters import export
from dq_deploy.exporters.lint import lint
from dq_deploy.quantization.checkpoint import Checkpoint, load_checkpoint
from tests.flow import altered
from tests.nightly import mostly_nightly
from tests.shared import made_once
from tests.tiny import make_checkpoint, tiny_unet
from tests.tiny_pipelines import tiny_dit

needs_rtx = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed")
CLASSES = {"conditions": {"class_labels": torch.arange(5)}, "max_float_share": 0.6}
CHECKPOINTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "fp8-unet": (tiny_unet, {"preset": "fp8"}),
    "w4a8-fp8-unet": (tiny_unet, {"preset": "w4a8-fp8"}),
    "fp8-dit": (lambda: tiny_dit(out_channels=1, num_layers=1), {"preset": "fp8", "activations": "per-token", **CLASSES}),
    "w4a8-fp8-dit": (lambda: tiny_dit(out_channels=1, num_layers=1), {"preset": "w4a8-fp8", "activations": "static", **CLASSES}),
}


@pytest.fixture(scope="module", params=mostly_nightly(CHECKPOINTS, "fp8-unet", "w4a8-fp8-dit"))
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    model, options = CHECKPOINTS[request.param]
    options = {"dilation": "none", "reference_samples": 12, **options}
    return load_checkpoint(made_once(tmp_path_factory, f"exported-{request.param}", lambda path: make_checkpoint(model(), path, **options)))


def exported(checkpoint: Checkpoint, factory: pytest.TempPathFactory, dtype: str) -> Artifact:
    name = f"{checkpoint.artifact.path.name}-{dtype}"
    return open_artifact(made_once(factory, name, lambda path: export(checkpoint.artifact, path, target="qdq", dtype=dtype)), "bundle")


@pytest.fixture(scope="module")
def bundle(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return exported(checkpoint, tmp_path_factory, "fp32")


@pytest.fixture(scope="module")
def half(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return exported(checkpoint, tmp_path_factory, "fp16")


def graph_of(made: Artifact) -> onnx.GraphProto:
    return onnx.load(made.path / "model.onnx").graph


def test_codes_are_the_checkpoints_and_scales_stay_fp32(checkpoint: Checkpoint, half: Artifact) -> None:
    graph = graph_of(half)
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for entry in half.details.layers:
        layer, held = checkpoint.layers[entry.name], tensors[f"{entry.name}.weight.codes"]
        assert layer.frozen is not None
        stored = {"fp8": TensorProto.FLOAT8E4M3FN, "int4": TensorProto.INT4}[entry.weight_storage or ""]
        assert (entry.format, held.data_type) == ("fp8", stored)
        codes = numpy_helper.to_array(held).astype(np.float32)
        expected = layer.frozen[0].float().numpy()
        assert np.array_equal(codes, expected if expected.ndim == 4 else expected.T)
        assert tensors[f"{entry.name}.weight.scale"].data_type == TensorProto.FLOAT
    quantizers = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    assert {tensors[node.input[2]].data_type for node in quantizers} == {TensorProto.FLOAT8E4M3FN}
    assert {tensors[node.input[1]].data_type for node in quantizers} == {TensorProto.FLOAT}
    assert not [name for name in tensors if name.endswith("zero_point")]
    assert {site.code_type for site in half.details.quantizers} == {"FLOAT8E4M3FN"}
    assert lint(half).findings == ()


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_it_passes_the_check(checkpoint: Checkpoint, dtype: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    verdict = check(exported(checkpoint, tmp_path_factory, dtype), checkpoint.artifact)
    assert verdict, verdict.failures
    assert {row.layer for row in verdict.layers} == set(checkpoint.layers)
    assert all(row.code_elements and row.output_elements for row in verdict.layers)
    # With ONNX Runtime's optimizer too; a last bit that flips a code changes a tiny network's SNR by a decibel.
    assert all(row.snr_optimized_db == pytest.approx(row.snr_bundle_db, abs=3) for row in verdict.timesteps)


def test_tables_and_the_drop_in_are_as_with_integers(checkpoint: Checkpoint, bundle: Artifact) -> None:
    ours, theirs = read_tables(checkpoint.artifact), read_tables(bundle)
    assert list(ours) == list(theirs)
    for name, table in ours.items():
        assert theirs[name].scales == pytest.approx(table.scales, rel=1e-6)
        assert set(table.zero_points) == set(theirs[name].zero_points) == {0}
    model = load(bundle, watch=True)
    inputs = [value[:2] for value in checkpoint.examples().values()]
    model(inputs[0] + 1, torch.tensor([0.0, 300.0]), *inputs[2:])
    rows = model.watched()
    assert [row.timestep for row in rows] == [0.0, 300.0]
    assert all(0 <= row.at_end_share < 0.2 and row.not_finite_inputs == 0 for row in rows)


def _next_numbers(model: onnx.ModelProto) -> None:
    """The last bit of every weight's code is another: it is a neighbour on the grid."""
    for tensor in model.graph.initializer:
        if tensor.name.endswith("weight.codes"):
            bits = 0x11 if tensor.data_type == TensorProto.INT4 else 0x01
            tensor.raw_data = bytes(code if code & 0x7F == 0x7E else code ^ bits for code in tensor.raw_data)


def _beyond_448(model: onnx.ModelProto) -> None:
    """Activations four times as large for their codes, which become NaN instead of 448."""
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and not node.name.endswith("/Repack"):
            node.attribute.append(onnx.helper.make_attribute("saturate", 0))
    for tensor in model.graph.initializer:
        if tensor.name.endswith("input.inverse_scale"):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 4, tensor.name))
        if tensor.name.endswith("input.scale"):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) / 4, tensor.name))


@pytest.mark.parametrize("change", [_next_numbers, _beyond_448])
def test_what_is_not_the_checkpoints_fails_the_check(bundle: Artifact, checkpoint: Checkpoint, tmp_path: Path, change: Any) -> None:
    wrong = altered(bundle, tmp_path / "wrong", change)
    assert not all(row.passed for row in local_parity(wrong, checkpoint, checkpoint.reference()))


def test_target_onnxruntime_is_refused_with_the_way_out(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"multiplies integers, and the codes of .* are FP8\n.*--target qdq.*--preset w8a8"):
        export(checkpoint.artifact, tmp_path / "bundle", target="onnxruntime")
    with pytest.raises(UsageError, match="attention int8 is asked for, and beside FP8 codes attention stays in float"):
        export(checkpoint.artifact, tmp_path / "bundle", target="qdq", attention="int8")
    assert not (tmp_path / "bundle").exists()


@needs_rtx
def test_every_planned_product_of_the_plan_is_fp8(half: Artifact, tmp_path: Path) -> None:
    engine = build_engine(half, tmp_path / "engine", compute_capabilities=["8.9", "12.0"], batch=(1, 2, 4))
    for report in load_report(engine):
        summary = report.summary()
        assert (summary["planned_formats"], summary["not_as_planned"]) == ({"fp8": len(half.details.layers)}, {})
        assert {layer.precision for layer in report.layers} == {"fp8"}
    assert {row.format for row in open_artifact(tmp_path / "engine", "engine").details.layer_bits} == {"fp8"}


@pytest.mark.parametrize(("options", "words"), [
    ({"compute_capabilities": ["8.6", "8.9"]}, r"TensorRT-RTX does not .* FP8 on 8\.6: \S+, .*\nFP8 needs compute capability 8\.9"),
    ({"backend": "openvino"}, r"OpenVINO does not multiply .* FP8 on CPU: \S+, .*\nquantize for this device in INT8: --preset w8a8"),
])  # fmt: skip
def test_devices_without_fp8_are_refused(bundle: Artifact, tmp_path: Path, options: dict[str, Any], words: str) -> None:
    if options.get("backend") is None and importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("TensorRT-RTX is not installed")
    with pytest.raises(ArtifactError, match=words) as caught:
        build_engine(bundle, tmp_path / "engine", **options)
    assert caught.value.exit_code == 3
    assert not (tmp_path / "engine").exists()


def test_openvino_runs_it_near_enough_and_says_that_it_emulates(bundle: Artifact, checkpoint: Checkpoint) -> None:
    with pytest.warns(RuntimeWarning, match="only emulates FP8"):
        verdict = check(bundle, checkpoint.artifact, engines=["openvino"])
    assert max(row.error_reference for row in verdict.engines[0].timesteps) < 0.5
    assert best_runtime(bundle) == "onnxruntime"
