"""NVFP4 bundles: types in the graph, TensorRT's operator on a CPU, parity, plans of TensorRT-RTX, and what refuses them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from benchmarks.patterns.float4 import matmul_fp4_per_timestep
from dq_deploy.accuracy import check
from dq_deploy.accuracy.local import local_parity
from dq_deploy.artifacts import Artifact, open_artifact
from dq_deploy.artifacts.scale_tables import read_tables
from dq_deploy.engines.build.engine import build_engine, load_report
from dq_deploy.engines.dropin import load
from dq_deploy.engines.loading.choice import best_runtime, make_runner
from dq_deploy.errors import ArtifactError, UsageError
from dq_deploy.exporters import export
from dq_deploy.exporters.fp4_emulation import Fp4DynamicQuantize, emulate_fp4
from dq_deploy.exporters.lint import lint
from dq_deploy.exporters.session import session_as_written
from dq_deploy.formats import FP4
from dq_deploy.quantization.checkpoint import Checkpoint, load_checkpoint
from dq_deploy.quantization.quantizers import BlockQuantizer
from tests.flow import altered
from tests.shared import made_once
from tests.tiny import PlainUNet, make_checkpoint

needs_rtx = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed")
OPTIONS: dict[str, Any] = {"preset": "nvfp4", "dilation": "none", "reference_samples": 8, "max_float_share": 0.6}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return load_checkpoint(made_once(tmp_path_factory, "nvfp4-plain", lambda path: make_checkpoint(PlainUNet(16), path, **OPTIONS)))


def exported(checkpoint: Checkpoint, factory: pytest.TempPathFactory, dtype: str) -> Artifact:
    name = f"{checkpoint.artifact.path.name}-{dtype}"
    return open_artifact(made_once(factory, name, lambda path: export(checkpoint.artifact, path, target="qdq", dtype=dtype)), "bundle")


@pytest.fixture(scope="module")
def bundle(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return exported(checkpoint, tmp_path_factory, "fp32")


@pytest.fixture(scope="module")
def half(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return exported(checkpoint, tmp_path_factory, "fp16")


def test_codes_and_scales_are_the_checkpoints_in_the_types_of_fp4(checkpoint: Checkpoint, half: Artifact) -> None:
    model = onnx.load(half.path / "model.onnx")
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 23, "trt": 1}
    stored = {entry.weight_storage for entry in half.details.layers}
    assert stored == {"fp4", "fp8"}
    for entry in half.details.layers:
        if entry.weight_storage == "fp4":
            layer: Any = checkpoint.layers[entry.name]
            codes, scales, g = (tensors[f"{entry.name}.weight.{part}"] for part in ("codes", "block_scale", "global_scale"))
            assert (codes.data_type, scales.data_type, g.data_type) == (TensorProto.FLOAT4E2M1, TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT)
            assert np.array_equal(numpy_helper.to_array(codes).astype(np.float32), layer.frozen[0].float().numpy())
            assert np.array_equal(numpy_helper.to_array(scales).astype(np.float32) * numpy_helper.to_array(g), layer.frozen[1].numpy())
    made = [node for node in model.graph.node if node.op_type == "TRT_FP4DynamicQuantize"]
    assert len(made) == sum(isinstance(q, BlockQuantizer) for q in checkpoint.quantizers.values()) > 1
    assert {site.code_type for site in half.details.quantizers} == {"FLOAT4E2M1", "FLOAT8E4M3FN"}
    assert set(read_tables(half)) == {site.name for site in half.details.quantizers if not site.block}
    assert lint(half).findings == ()


def in_three_ways(x: np.ndarray, timestep: list[float]) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...], tuple[torch.Tensor, ...]]:
    """Product, codes and block scales by onnx's evaluator; product and codes by ONNX Runtime; codes and scales by the quantizer."""
    model = matmul_fp4_per_timestep()
    node = next(node for node in model.graph.node if node.op_type == "TRT_FP4DynamicQuantize")
    for name in node.output:
        model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    feeds = {"sample": x, "timestep": np.array(timestep, np.float32)}
    plain = ReferenceEvaluator(model, new_ops=[Fp4DynamicQuantize]).run(None, feeds)
    del model.graph.output[2:]  # the scales have no name once they are floats
    emulated = ir.from_proto(model)
    assert emulate_fp4(emulated)
    assert not emulate_fp4(emulated)
    ours = session_as_written(ir.to_proto(emulated).SerializeToString()).run(None, feeds)
    quantizer = BlockQuantizer(torch.zeros(1), FP4, symmetric=True, axis=-1, channels=64)
    quantizer.global_scale.fill_(2.0**-9)
    u = x / np.array([[0.01, 0.02, 0.05, 0.1][int(t)] for t in timestep], np.float32)[:, None, None]
    codes, scale = quantizer(torch.from_numpy(u), torch.zeros(len(x)))
    return tuple(plain), tuple(ours), (codes, scale)


def test_three_ways_to_compute_the_operator_agree() -> None:
    """Onnx's evaluator with its own FP4 types, standard operators in ONNX Runtime, and the quantizer in PyTorch."""
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(3, 16, 64)) * np.logspace(-4, 1, 64)).astype(np.float32)
    x[0, 0] = 0
    (plain, codes, scales), (ours, floats), (expected, scale) = in_three_ways(x, [0, 1, 3])
    assert np.array_equal(codes.astype(np.float32), floats)
    np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-5 * np.abs(plain).max())
    assert float((torch.from_numpy(floats) != expected).float().mean()) < 1e-3  # 1/s_t was rounded once more there
    block = scale.unflatten(-1, (-1, 16))[..., 0] * 2.0**9
    assert float((torch.from_numpy(scales.astype(np.float32)) != block).float().mean()) < 1e-2


def test_beyond_a_blocks_range_codes_are_6_and_a_nan_is_one_of_the_product() -> None:
    x = np.full((1, 16, 64), 0.001, np.float32)
    x[0, 0, :8] = [6, -6, 5, -5, 7, 1e30, -1e30, 0.25]  # more than 6 times the largest scale: 448 · 2⁻⁹
    x[0, 1, :2] = [np.inf, -np.inf]
    x[0, 2, 0] = np.nan
    (plain, codes, scales), (ours, floats), (expected, _) = in_three_ways(x, [0])
    assert codes[0, 0, :8].astype(np.float32).tolist() == [6, -6, 6, -6, 6, 6, -6, 6]
    assert codes[0, 1, :2].astype(np.float32).tolist() == [6, -6]
    assert scales[0, :2, 0].astype(np.float32).tolist() == [448, 448]
    finite = [0, 1, *range(3, 16)]
    assert np.array_equal(codes[0, finite].astype(np.float32), floats[0, finite])
    assert np.array_equal(floats[0, finite], expected[0, finite].numpy())
    for product in (plain, ours):
        assert np.isnan(product[0, 2]).all()
        assert np.isfinite(product[0, finite]).all()


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_it_passes_the_check_without_a_gpu(checkpoint: Checkpoint, dtype: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    verdict = check(exported(checkpoint, tmp_path_factory, dtype), checkpoint.artifact)
    assert verdict, verdict.failures
    assert {row.layer for row in verdict.layers} == set(checkpoint.layers)
    assert all(row.code_elements and row.output_elements for row in verdict.layers)


def _changed(suffix: str, change: Any) -> Any:
    def edit(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            if tensor.name.endswith(suffix):
                change(tensor)

    return edit


@pytest.mark.parametrize("change", [
    _changed("qkv.weight.codes", lambda t: setattr(t, "raw_data", bytes(b ^ 0x11 for b in t.raw_data))),
    _changed("qkv.weight.block_scale", lambda t: setattr(t, "raw_data", bytes(b ^ 0x01 for b in t.raw_data))),
    _changed("qkv.weight.global_scale", lambda t: t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(t) * 2, t.name))),
    _changed("qkv.input.global_scale", lambda t: t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(t) * np.float32(2**-6), t.name))),
])  # fmt: skip
def test_what_is_not_the_checkpoints_fails_the_check(bundle: Artifact, checkpoint: Checkpoint, tmp_path: Path, change: Any) -> None:
    wrong = altered(bundle, tmp_path / "wrong", change)
    assert not all(row.passed for row in local_parity(wrong, checkpoint, checkpoint.reference()) if row.layer == "qkv")


def test_the_drop_in_runs_it_and_the_file_stays_as_it_was(checkpoint: Checkpoint, bundle: Artifact) -> None:
    before = (bundle.path / "model.onnx").read_bytes()
    model = load(bundle, watch=True)
    inputs = [value[:2] for value in checkpoint.examples().values()]
    model(inputs[0] + 1, torch.tensor([0.0, 300.0]), *inputs[2:])
    assert [row.timestep for row in model.watched()] == [0.0, 300.0]
    assert (bundle.path / "model.onnx").read_bytes() == before
    assert best_runtime(bundle) == "onnxruntime"


def test_what_has_no_fp4_refuses_it_with_the_way_out(checkpoint: Checkpoint, bundle: Artifact, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"multiplies integers, and the codes of .* are FP4 and FP8\n.*--target qdq.*--preset w8a8"):
        export(checkpoint.artifact, tmp_path / "bundle", target="onnxruntime")
    if importlib.util.find_spec("openvino") is not None:
        with pytest.raises(ArtifactError, match=r"multiplies FP4 codes, which OpenVINO has no numbers for\n.*--preset w8a8"):
            make_runner(bundle, runtime="openvino")
        with pytest.raises(ArtifactError, match=r"OpenVINO does not multiply .* FP4 on CPU: .*\n"):
            build_engine(bundle, tmp_path / "engine", backend="openvino")
    assert not list(tmp_path.iterdir())


@needs_rtx
def test_every_planned_product_of_the_plan_is_fp4_or_fp8(half: Artifact, tmp_path: Path) -> None:
    engine = build_engine(half, tmp_path / "engine", compute_capabilities=["12.0"], batch=(1, 2, 4))
    (report,) = load_report(engine)
    summary = report.summary()
    counts = {name: sum(entry.weight_storage == name for entry in half.details.layers) for name in ("fp4", "fp8")}
    assert (summary["planned_formats"], summary["not_as_planned"]) == (counts, {})


@needs_rtx
@pytest.mark.parametrize(("capability", "words"), [
    ("8.9", r"FP4 on 8\.9: \S+, .*\nFP4 needs compute capability 12\.0 or newer; quantize for 8\.9 in FP8 .--preset fp8. or INT8"),
    ("8.6", r"FP4 on 8\.6: .*\n(.*\n)?FP4 needs compute capability 12\.0 or newer; quantize for this device in INT8: --preset w8a8"),
])  # fmt: skip
def test_devices_without_fp4_are_refused_with_what_to_take(bundle: Artifact, tmp_path: Path, capability: str, words: str) -> None:
    with pytest.raises(ArtifactError, match=words) as caught:
        build_engine(bundle, tmp_path / "engine", compute_capabilities=[capability, "12.0"])
    assert caught.value.exit_code == 3
    assert not (tmp_path / "engine").exists()
