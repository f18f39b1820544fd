"""Where scales and zero-points come from: rows of tables, and constants of probabilities."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from dq_deploy.exporters.emitter import FP32_MARK
from dq_deploy.formats import INT8
from dq_deploy.quantization.weights import QuantizedLinear, QuantizedMatmul
from tests.exporters.lower.written import TARGETS, Written, probabilities, quantizer, random


def linear(target: str, read: object, **options: bool) -> Written:
    made = QuantizedLinear(random(6, 16, seed=1), None, INT8)
    made.freeze()
    return Written(target, "Linear", [(5, 16)], (5, 6), layer=made, quantizers={"layer.input": read}, **options)


@pytest.mark.parametrize("target", TARGETS)
def test_each_table_is_one_initializer_that_is_gathered_once(target: str) -> None:
    made = linear(target, quantizer(channels=16))
    for name, offset in (("scale", 0), ("zero_point", 0 if target == "qdq" else 128)):
        gather = made.node(f"layer.input.{name}/Gather")
        assert [value.name for value in gather.inputs if value is not None] == [f"layer.input.{name}", "dq_deploy.row"]
        expected = {"scale": [0.02, 0.05, 0.11], "zero_point": [-7, 3, 6]}[name]
        np.testing.assert_allclose(made.constant(f"layer.input.{name}").astype(float) - offset, expected, rtol=1e-6)
    assert made.ops("").count("Gather") == 2


@pytest.mark.parametrize("target", TARGETS)
def test_all_of_a_quantizers_nodes_are_marked_as_scale_arithmetic(target: str) -> None:
    made = linear(target, quantizer(channels=16, dilated=True))
    assert all(FP32_MARK in node.metadata_props for node in made.model.graph)


def test_zero_points_have_the_type_of_the_codes() -> None:
    types = {target: linear(target, quantizer(channels=16)).model.graph.initializers["layer.input.zero_point"].dtype for target in TARGETS}
    assert types == {"qdq": ir.DataType.FLOAT, "onnxruntime": ir.DataType.UINT8}


def test_a_symmetric_quantizer_has_no_table_of_zeros_for_tensorrt() -> None:
    assert "layer.input.zero_point" not in linear("qdq", quantizer(symmetric=True, channels=16)).model.graph.initializers


@pytest.mark.parametrize("target", TARGETS)
def test_probabilities_have_constants(target: str) -> None:
    read = {"layer.lhs": probabilities(), "layer.rhs": quantizer(symmetric=True, axis=0)}
    made = Written(target, "MatMul", [(5, 7), (7, 3)], (5, 3), layer=QuantizedMatmul(), quantizers=read)
    assert made.constant("layer.lhs.scale") == np.float32(1 / 255)
    assert made.ops("layer.lhs.scale/") == []
    assert made.ops("layer.rhs.scale/") == ["Gather"]


def test_a_dilation_goes_into_what_the_activation_is_multiplied_with() -> None:
    """One multiplication in front of a scalar quantizer, never a quantizer with a scale for each channel."""
    made = linear("qdq", quantizer(channels=16, dilated=True, symmetric=True))
    assert made.ops("layer.input/") == ["Reciprocal", "Unsqueeze", "Mul", "Mul", "QuantizeLinear", "DequantizeLinear"]
    np.testing.assert_allclose(made.constant("layer.input.inverse_dilation").reshape(-1), 1 / np.linspace(1, 2, 16), rtol=1e-6)
    made = linear("qdq", quantizer(channels=16, dilated=True, symmetric=True), static=True)
    assert made.ops("layer.input/") == ["Mul", "QuantizeLinear", "DequantizeLinear"]
    made = linear("onnxruntime", quantizer(channels=16, dilated=True))
    assert made.ops("layer.input/") == ["Mul", "QuantizeLinear"]


@pytest.mark.parametrize("target", TARGETS)
def test_narrow_codes_are_clipped(target: str) -> None:
    assert "Clip" not in linear(target, quantizer(8, channels=16)).ops("")
    made = linear(target, quantizer(4, channels=16))
    assert made.ops("layer.input/").count("Clip") == 1
    (clip,) = (node for node in made.model.graph if node.op_type == "Clip")
    limits = [value.const_value.numpy() for value in clip.inputs[1:] if value is not None and value.const_value is not None]
    assert [int(v) - (0 if target == "qdq" else 128) for v in limits] == [-8, 7]
