"""What an exported graph of the built-in models must not have: work that could have been done once, at the export."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir
import pytest

from dq_deploy.exporters import export
from dq_deploy.quantization import quantize
from tests.nightly import mostly_nightly

OPTIONS = {"steps": 2, "calibration_samples": 2, "reference_samples": 1, "iterations": 0, "dilation": "none", "initial_range": "minmax"}
MERGEABLE = {"builtin:fashion-mnist-unet": 4, "builtin:fashion-mnist-dit": 5}  # attention blocks, whose q, k and v read one tensor


@pytest.fixture(scope="module", params=mostly_nightly(MERGEABLE, "builtin:fashion-mnist-dit"))
def graph(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ir.Graph]:
    folder = tmp_path_factory.mktemp("quality")
    checkpoint = quantize(request.param, folder / "checkpoint", preset="w4a8", **OPTIONS)
    return request.param, ir.load(export(checkpoint, folder / "bundle", target="qdq").path / "model.onnx").graph


def test_constants_are_folded_but_for_dequantized_weights(graph: tuple[str, ir.Graph]) -> None:
    constant: set[ir.Value] = set()
    for node in graph[1]:
        inputs = [value for value in node.inputs if value is not None]
        if inputs and all(value.const_value is not None or value in constant for value in inputs):
            constant.update(node.outputs)
            # These are what keeps a weight integer in the engine.
            assert node.name.startswith("dq_deploy.int4_weights.") or node.name.endswith("/DequantizeWeight"), node.name


def test_known_shapes_leave_no_shape_arithmetic(graph: tuple[str, ir.Graph]) -> None:
    """One Shape of the sample is left in the UNet, for the batch: nothing may be computed from it but the timesteps' expansion."""
    shapes = [node for node in graph[1] if node.op_type in ("Shape", "Size", "ConstantOfShape", "Range", "NonZero")]
    assert [(node.op_type, str(node.inputs[0].name)) for node in shapes if node.inputs[0]] in ([], [("Shape", "sample")])
    assert {user.op_type for node in shapes for user, _ in node.outputs[0].uses()} <= {"Expand"}
    for node in graph[1]:
        if node.op_type in ("Reshape", "Resize", "Slice", "Pad", "Expand", "Unsqueeze", "Transpose"):
            assert all(value is None or value.const_value is not None or value.producer() in shapes for value in node.inputs[1:]), node.name


def test_a_tensor_is_quantized_once_and_casts_do_not_follow_casts(graph: tuple[str, ir.Graph]) -> None:
    quantized = Counter(node.inputs[0] for node in graph[1] if node.op_type == "QuantizeLinear")
    assert max(quantized.values()) == 1
    for node in graph[1]:
        producer = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
        assert not (node.op_type == producer.op_type == "Cast" if producer is not None else False), node.name
        assert node.op_type not in ("Identity", "Dropout")


def test_q_k_and_v_multiply_one_quantized_tensor(graph: tuple[str, ir.Graph]) -> None:
    name, nodes = graph
    readers: dict[ir.Value | None, set[str]] = {}
    for node in nodes:
        layer = (node.name or "").partition("/")[0].rpartition(".")[2]
        if node.op_type == "MatMul" and layer in ("to_q", "to_k", "to_v"):
            readers.setdefault(node.inputs[0], set()).add(layer)
    assert Counter(map(len, readers.values())) == {3: MERGEABLE[name]}


def test_scale_arithmetic_is_fp32(graph: tuple[str, ir.Graph]) -> None:
    """From the tables to the products' outputs, in a graph whose float part is fp16."""
    ends = (".scale", ".zero_point", ".weight.sum", ".bias")
    tables = [v for v in graph[1].initializers.values() if str(v.name).endswith(ends) and not str(v.name).endswith(".weight.zero_point")]
    assert {str(v.dtype) for v in tables if str(v.name).endswith(".input.scale")} == {"FLOAT"}
    # A GroupNorm's or LayerNorm's own bias is part of the float network.
    assert {str(v.dtype) for v in tables if not str(v.name).endswith(".bias")} == {"FLOAT"}
