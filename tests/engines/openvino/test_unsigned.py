"""Codes that count from zero: the same integers, and what is not understood stays signed."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import openvino
import pytest

from dq_deploy.engines.openvino.rewrites import REWRITES, rewrite
from dq_deploy.engines.openvino.rewrites.clamps import clips_as_clamps
from dq_deploy.engines.openvino.rewrites.unsigned import unsigned_codes
from tests.engines.graphs import Graph
from tests.engines.openvino.test_rewrites import PADS, asymmetric, before_and_after, computed, convolution, linear, noise, read

STEPS = (clips_as_clamps, unsigned_codes)


def code_types(model: onnx.ModelProto, sample: Any) -> list[str]:
    """Types of the codes that activations are quantized to, in the order of computation."""
    graph = read(model, sample)
    rewrite(graph, STEPS)
    after = [reader.get_node() for node in graph.get_ordered_ops() if node.get_type_name() == "FakeQuantize"
             for reader in node.output(0).get_target_inputs()]  # fmt: skip
    return [node.get_element_type().get_type_name() for node in after if node.get_type_name() == "Convert"]


@pytest.mark.parametrize(("channels", "zero_point"), [(8, None), (1, None), (8, 7.0), (8, -128.0)],
                         ids=["rows", "one channel", "static", "static, lowest"])  # fmt: skip
def test_a_convolutions_codes_count_from_zero(channels: int, zero_point: float | None) -> None:
    graph = Graph()
    model = graph.model(convolution(graph, "sample", PADS, channels=channels, zero_point=zero_point), 4, [3, 4, 7, 6])
    sample = noise(3, 4, 7, 6)
    assert code_types(model, sample) == ["u8"]
    expected, found, _ = before_and_after(model, sample, *STEPS)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


def test_two_layers_of_a_table_move_together() -> None:
    graph = Graph()
    quantized = asymmetric(graph, "sample", "shared", rank=3)
    parts = [linear(graph, quantized, "q", 3), linear(graph, quantized, "k", 5)]
    model = graph.model(graph.node("Concat", parts, "both", axis=2), 3, [3, 6, 4])
    assert code_types(model, noise(3, 6, 4)) == ["u8"]
    expected, found, _ = before_and_after(model, noise(3, 6, 4), *STEPS)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", ["other sums", "another reader of the codes", "another reader of the zero-point"])
def test_what_is_not_understood_stays_signed(case: str) -> None:
    graph = Graph()
    y = convolution(graph, "sample", [0] * 8, sums=1.5 if case == "other sums" else 1.0)
    if case == "another reader of the codes":
        codes = next(node.output[0] for node in graph.nodes if node.op_type == "DequantizeLinear" and node.name.startswith("c/"))
        y = graph.node("Add", [y, graph.node("ReduceMean", [codes], "mean")], "both")
    if case == "another reader of the zero-point":
        y = graph.node("Add", [y, graph.node("Exp", ["c/zero1:0"], "exp")], "both")
    model = graph.model(y, 4, [3, 4, 7, 6])
    assert code_types(model, noise(3, 4, 7, 6)) == ["i8"]
    expected, found, _ = before_and_after(model, noise(3, 4, 7, 6), *STEPS)
    np.testing.assert_array_equal(found, expected)


def narrow(graph: Graph) -> str:
    """Codes of 4 bits from −8 to 7: the exporter clips before it quantizes."""
    y = convolution(graph, "sample", [0] * 8)
    (quantize,) = (node for node in graph.nodes if node.op_type == "QuantizeLinear" and node.name.startswith("c/"))
    ends = [graph.constant(f"code_{end}", np.float32(end)) for end in (-8, 7)]
    at = list(graph.nodes).index(quantize)
    clipped = graph.node("Clip", [quantize.input[0], *ends], "c/Clip")
    graph.nodes.insert(at, graph.nodes.pop())
    quantize.input[0] = clipped
    return y


def test_narrow_codes_are_clipped_where_they_were() -> None:
    graph = Graph()
    model = graph.model(narrow(graph), 4, [3, 4, 7, 6])
    sample = 30 * noise(3, 4, 7, 6)  # most of it is clipped
    assert code_types(model, sample) == ["u8"]
    expected, found, _ = before_and_after(model, sample, *STEPS)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


def attention(graph: Graph) -> str:
    """Probabilities times values: z = −128 of the left operand is corrected by the right one's column sums."""
    p = graph.node("Mul", [graph.node("Softmax", ["sample"], "softmax", axis=-1), graph.constant("p.inverse", np.float32(255))], "p/Mul")
    p = graph.node("Add", [graph.node("Round", [p], "p/Round"), graph.constant("p.z", np.float32(-128))], "p/Add")
    v = graph.unit_qdq(graph.node("Mul", ["sample", graph.constant("v.inverse", np.float32(40))], "v/Mul"), "v")
    y = graph.node("MatMul", [graph.unit_qdq(p, "p"), v], "MatMul")
    sums = graph.node("ReduceSum", [v, graph.constant("rows", np.array([-2]))], "sums", keepdims=1)
    return graph.node("Sub", [y, graph.node("Mul", [sums, graph.constant("p.z2", np.float32(-128))], "shift")], "Sub")


def test_probabilities_need_no_correction() -> None:
    graph = Graph()
    model = graph.model(attention(graph), 4, [2, 3, 5, 5])
    assert code_types(model, noise(2, 3, 5, 5)) == ["u8", "i8"]
    expected, found, kinds = before_and_after(model, noise(2, 3, 5, 5), *STEPS)
    assert "ReduceSum" not in kinds
    np.testing.assert_array_equal(found, expected)


def test_a_rewritten_convolution_multiplies_unsigned_codes() -> None:
    graph = Graph()
    first = graph.node("Relu", [convolution(graph, "sample", PADS, name="first", channels=4)], "relu")
    model = graph.model(convolution(graph, first, PADS), 4, [3, 4, 16, 16])
    sample = noise(3, 4, 16, 16)
    rewritten = read(model, sample)
    rewrite(rewritten, REWRITES)
    compiled = openvino.Core().compile_model(rewritten, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    products = [node for node in compiled.get_runtime_model().get_ordered_ops() if node.get_rt_info()["layerType"].value == "Convolution"]
    assert [node.input(0).get_element_type().get_type_name() for node in products] == ["u8", "u8"]
    np.testing.assert_allclose(computed(rewritten, sample), computed(read(model, sample), sample), rtol=1e-5, atol=1e-3)
