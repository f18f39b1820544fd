from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
import pytest
import torch
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from dq_deploy.engines.build.engine import build_engine, load_report
from dq_deploy.exporters import export
from dq_deploy.exporters.lint import lint
from dq_deploy.exporters.precision import lower_precision
from dq_deploy.quantization.checkpoint import Checkpoint
from tests.tiny import SHAPE, run, snr_db

LOW = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


@pytest.fixture(scope="module", params=LOW)
def exported(request: pytest.FixtureRequest, plain_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Written by ``export``, so onnx's full check has passed."""
    made = export(plain_checkpoint.artifact, tmp_path_factory.mktemp("precision") / "b", target="qdq", dtype=request.param)
    return request.param, made.path / "model.onnx"


def test_scale_arithmetic_stays_fp32(exported: tuple[str, Path], plain_checkpoint: Checkpoint) -> None:
    """Every node of a quantizer or an integer layer, from 1/s_t to the bias, reads and writes fp32 (or int8 codes)."""
    dtype, path = exported
    graph = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True, data_prop=True).graph
    kinds = {v.name: v.type.tensor_type.elem_type for v in [*graph.value_info, *graph.input, *graph.output]}
    kinds |= {i.name: i.data_type for i in graph.initializer}
    names = {*plain_checkpoint.layers, *plain_checkpoint.quantizers}
    inside = [
        n for n in graph.node if any(n.name.startswith((f"{name}/", f"{name}#", f"{name}.")) for name in names) and n.op_type != "Cast"
    ]
    arithmetic = {"Reciprocal", "Gather", "Mul", "Add", "Sub", "Round", "QuantizeLinear", "DequantizeLinear", "Conv", "MatMul", "Pad"}
    assert arithmetic <= {n.op_type for n in inside}
    for node in inside:
        assert LOW[dtype] not in {kinds[v] for v in [*node.input, *node.output] if v}, node.name
    assert LOW[dtype] in kinds.values()  # what is not quantized is low
    assert {v.type.tensor_type.elem_type for v in [*graph.input, *graph.output]} == {TensorProto.FLOAT}


def test_bfloat16_needs_opset_22(exported: tuple[str, Path]) -> None:
    dtype, path = exported
    assert onnx.load(path).opset_import[0].version == (22 if dtype == "bf16" else 21)


def test_fp16_is_near(exported: tuple[str, Path], plain_checkpoint: Checkpoint) -> None:
    dtype, path = exported
    if dtype == "bf16":
        pytest.skip("onnxruntime has no bfloat16 kernels on a CPU")
    x, t = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0)), plain_checkpoint.timesteps
    with torch.no_grad():
        assert snr_db(plain_checkpoint.model(x, t), run(path, x, t)) > 35


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed")
def test_bf16_is_linted_for_both_engines_and_built_in_int8(exported: tuple[str, Path], tmp_path: Path) -> None:
    dtype, path = exported
    if dtype != "bf16":
        pytest.skip("fp16 is built by other tests")
    assert lint(path.parent)
    for_onnxruntime = lint(path.parent, target="onnxruntime")
    assert "bfloat16" in {finding.rule for finding in for_onnxruntime.errors}
    (report,) = load_report(build_engine(path.parent, tmp_path / "engine", backend="tensorrt-rtx", compute_capabilities=["8.9"]))
    assert {layer.precision for layer in report.layers} == {"int8"}


def test_a_table_of_embeddings_is_stored_in_low_precision_and_read_as_fp32() -> None:
    """What a class label selects is added to what the timestep gives, which stays fp32."""
    rng = np.random.default_rng(0)
    tables = {"classes": rng.normal(size=(40, 32)).astype(np.float32), "small": rng.normal(size=(4, 32)).astype(np.float32)}
    nodes = [
        onnx.helper.make_node("Gather", ["classes", "labels"], ["c"]),
        onnx.helper.make_node("Gather", ["small", "labels"], ["s"]),
        onnx.helper.make_node("Sin", ["timestep"], ["t"]),
        onnx.helper.make_node("Add", ["c", "t"], ["ct"]),
        onnx.helper.make_node("Add", ["ct", "s"], ["y"]),
    ]
    value = onnx.helper.make_tensor_value_info
    inputs = [value("timestep", TensorProto.FLOAT, ["n", 1]), value("labels", TensorProto.INT64, ["n"])]
    initializers = [numpy_helper.from_array(array, name) for name, array in tables.items()]
    graph = onnx.helper.make_graph(nodes, "g", inputs, [value("y", TensorProto.FLOAT, ["n", 32])], initializers)
    model = ir.from_proto(
        onnx.shape_inference.infer_shapes(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)]))
    )
    lower_precision(model, ir.DataType.FLOAT16)
    passes.RemoveUnusedNodesPass()(model)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    assert {i.name: i.data_type for i in proto.graph.initializer} == {"classes.float16": TensorProto.FLOAT16, "small": TensorProto.FLOAT}
    t, labels = np.array([[1.0], [900.0]], np.float32), np.array([3, 0])
    (found,) = ReferenceEvaluator(proto).run(None, {"timestep": t, "labels": labels})
    expected = tables["classes"][labels].astype(np.float16).astype(np.float32) + np.sin(t) + tables["small"][labels]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
