"""Rewritten for OpenVINO's kernels, a graph computes what it did; what a rewrite does not understand it leaves alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest

from dq_deploy.engines.bench.statistics import snr_db
from dq_deploy.engines.openvino.rewrites import rewrite
from dq_deploy.engines.openvino.rewrites.chains import activations_apart
from dq_deploy.engines.openvino.rewrites.group_norm import group_norms_as_moments
from dq_deploy.engines.openvino.rewrites.halves import halves_without_concat
from dq_deploy.engines.openvino.rewrites.padding import padding_inside_convolutions
from dq_deploy.engines.openvino.rewrites.products import products_at_once
from dq_deploy.engines.openvino.rewrites.rounding import rounding_once
from dq_deploy.engines.openvino.rewrites.splits import convolutions_in_parts
from dq_deploy.engines.openvino.rewrites.tables import rows_at_once
from dq_deploy.engines.openvino.rewrites.tokens import pixels_by_convolutions
from tests.engines.graphs import ROWS, Graph
from tests.flow import Flow

Array = np.ndarray[Any, Any]
Step = Callable[[Any], None]
TIMESTEPS = np.array([0.0, 2.0, 3.0], np.float32)
PADS = [0, 0, 1, 1, 0, 0, 1, 1]
ZERO_POINTS = np.array([3, -5, 0, 100], np.float32)


def read(model: onnx.ModelProto, sample: Array) -> Any:
    graph = openvino.Core().read_model(model.SerializeToString())
    return fixed(graph, len(sample), sample.shape)


def fixed(graph: Any, batch: int, sample: tuple[int, ...]) -> Any:
    """With these sizes. A graph without tables has no ``timestep``."""
    sizes = {"sample": list(sample), "timestep": [batch]}
    graph.reshape({port.any_name: sizes[port.any_name] for port in graph.inputs})
    return graph


def computed(graph: Any, sample: Array) -> Array:
    compiled = openvino.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1})
    feeds = {"sample": sample, "timestep": TIMESTEPS[: len(sample)]}
    return np.array(compiled({port.any_name: feeds[port.any_name] for port in graph.inputs})[0])


def close(expected: Array, found: Array) -> bool:
    """Another order of float sums moves a code at a tie now and then, no more."""
    snr = snr_db(expected, found)
    return snr is None or snr > 35


def before_and_after(model: onnx.ModelProto, sample: Array, *steps: Step) -> tuple[Array, Array, list[str]]:
    """Outputs of the graph as it was and after the steps, and the types of the nodes that are then left."""
    graph = read(model, sample)
    rewrite(graph, steps)
    return computed(read(model, sample), sample), computed(graph, sample), [node.get_type_name() for node in graph.get_ordered_ops()]


def noise(*shape: int) -> Array:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def group_norm(graph: Graph, x: str, channels: int) -> str:
    parameters = [graph.constant(f"norm.{n}", graph.random.normal(size=channels).astype(np.float32)) for n in ("weight", "bias")]
    return graph.node("GroupNormalization", [x, *parameters], "norm", num_groups=4, epsilon=1e-5)


def asymmetric(graph: Graph, x: str, name: str, pads: Sequence[int] = (), *, table: Array = ZERO_POINTS,
               rank: int = 4) -> tuple[str, str, str]:  # fmt: skip
    """An asymmetric quantizer as the exporter writes it: the codes, s_t and z_t."""
    others = axes(graph, rank)
    scale = graph.node("Unsqueeze", [row(graph, f"{name}.scale", ROWS), others], f"{name}/scale")
    inverse = graph.node("Reciprocal", [row(graph, f"{name}.scale", ROWS)], f"{name}/Reciprocal")
    inverse = graph.node("Unsqueeze", [inverse, others], f"{name}/inverse_scale")
    zero = [graph.node("Unsqueeze", [row(graph, f"{name}.zero", table), others], f"{name}/zero{i}") for i in range(2)]
    if any(pads):
        x = graph.node("Pad", [x, graph.constant(f"{name}.pads", np.array(list(pads)))], f"{name}/Pad")
    x = graph.node("Mul", [x, inverse], f"{name}/Mul")
    x = graph.node("Add", [graph.node("Round", [x], f"{name}/Round"), zero[0]], f"{name}/Add")
    return graph.unit_qdq(x, name), scale, zero[1]


def linear(graph: Graph, quantized: tuple[str, str, str], name: str, outputs: int, *, inputs: int = 4, bias: bool = True) -> str:
    """A linear layer on tokens as the exporter writes it: (codes · W − z · Σ W) · s + bias."""
    codes, scale, zero = quantized
    weight = graph.weight(name, (inputs, outputs), 1)
    integers, scales = (onnx.numpy_helper.to_array(graph.constants[f"{name}.weight.{part}"]) for part in ("codes", "scale"))
    sums = graph.constant(f"{name}.sums", integers.sum(axis=0, dtype=np.float32) * scales)
    y = graph.node("MatMul", [codes, weight], f"{name}/MatMul")
    y = graph.node("Sub", [y, graph.node("Mul", [zero, sums], f"{name}/zero_point_sum")], f"{name}/Sub")
    y = graph.node("Mul", [y, scale], f"{name}/Mul")
    shift = graph.constant(f"{name}.bias", graph.random.normal(size=outputs).astype(np.float32))
    return graph.node("Add", [y, shift], f"{name}/Add") if bias else y


def as_tokens(graph: Graph, x: str) -> str:
    return graph.node(
        "Transpose", [graph.node("Reshape", [x, graph.constant("flat", np.array([0, 0, -1]))], "flat")], "tokens", perm=[0, 2, 1]
    )


def as_picture(graph: Graph, x: str, sizes: list[int]) -> str:
    back = graph.node("Transpose", [x], "channels_first", perm=[0, 2, 1])
    return graph.node("Reshape", [back, graph.constant("picture", np.array(sizes))], "picture")


def axes(graph: Graph, rank: int = 4) -> str:
    return graph.constant(f"axes{rank}", np.arange(1, rank))


def row(graph: Graph, name: str, table: Array) -> str:
    if f"{name}/Gather" in {node.name for node in graph.nodes}:
        return f"{name}/Gather:0"
    return graph.node("Gather", [graph.constant(name, table), graph.row()], f"{name}/Gather")


def convolution(graph: Graph, x: str, pads: list[int], *, sums: float = 1.0, name: str = "c", channels: int = 8,
                zero_point: float | None = None, **options: Any) -> str:  # fmt: skip
    codes, scale, zero = asymmetric(graph, x, name, pads)
    weight = graph.weight(name, (channels, 4, 3, 3), 0)
    integers, scales = (onnx.numpy_helper.to_array(graph.constants[f"{name}.weight.{part}"]) for part in ("codes", "scale"))
    total = (integers.sum(axis=(1, 2, 3), dtype=np.float32) * scales * np.float32(sums)).reshape(1, -1, 1, 1)
    y = graph.node("Conv", [codes, weight], f"{name}/Conv", **options)
    if zero_point is None:
        shift = graph.node("Mul", [zero, graph.constant(f"{name}.sums", total)], f"{name}/Correction")
    else:  # one for every timestep: a constant, and the product with it too
        (added,) = (node for node in graph.nodes if node.name == f"{name}/Add")
        added.input[1] = graph.constant(f"{name}.zero_point", np.float32(zero_point))
        shift = graph.constant(f"{name}.product", total * np.float32(zero_point))
    return graph.node("Mul", [graph.node("Sub", [y, shift], f"{name}/Correct"), scale], f"{name}/Rescale")


@pytest.mark.parametrize("shape", [(3, 8, 6, 5), (2, 8, 11)], ids=["image", "tokens"])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_group_norm_is_the_same_from_its_moments(shape: tuple[int, ...], offset: float) -> None:
    graph = Graph()
    output = group_norm(graph, "sample", 8)
    sample = noise(*shape) + np.float32(offset)
    expected, found, kinds = before_and_after(graph.model(output, len(shape), list(shape)), sample, group_norms_as_moments)
    assert "GroupNormalization" not in kinds
    # A mean of 1000 deviations leaves fp32 four digits of them; E[x²] − E[x]² would leave hardly one.
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 if not offset else 5e-3)


def test_group_norm_of_half_precision_is_computed_in_single(flow: Flow) -> None:
    sample = noise(2, 1, 8, 8)
    graph = fixed(openvino.Core().read_model(flow.bundle("qdq-fp16").file("model.onnx")), 2, sample.shape)
    plain = graph.clone()
    group_norms_as_moments(graph)
    graph.validate_nodes_and_infer_types()
    assert close(computed(plain, sample), computed(graph, sample))
    assert all(node.get_element_type().get_type_name() == "f32" for node in graph.get_ordered_ops() if node.get_type_name() == "ReduceL2")


def test_halves_are_computed_from_their_parts() -> None:
    graph = Graph()
    parts = [graph.node("Mul", ["sample", graph.constant(f"k{i}", noise(1, 4, 1, 1) + i)], f"part{i}") for i in range(2)]
    x = group_norm(graph, graph.node("Concat", parts, "join", axis=1), 8)
    x = graph.node("Mul", [x, graph.node("Sigmoid", [x], "silu/Sigmoid")], "silu")
    ends = [graph.constant(f"end{i}", np.array([4 * i])) for i in range(3)]
    one = graph.constant("one_", np.array([1]))
    halves = [graph.node("Slice", [x, ends[i], ends[i + 1], one, one], f"half{i}") for i in range(2)]
    model = graph.model(graph.node("Sub", halves, "difference"), 4, [3, 4, 6, 5])
    expected, found, kinds = before_and_after(model, noise(3, 4, 6, 5), group_norms_as_moments, halves_without_concat)
    assert "Slice" not in kinds
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("shape", "sliced"), [((8, 1, 1), True), ((5,), False), ((6, 1), False), ((1, 8, 1, 1), True)])
def test_halves_of_what_is_added_to_both(shape: tuple[int, ...], sliced: bool) -> None:
    graph = Graph()
    parts = [graph.node("Mul", ["sample", graph.constant(f"k{i}", np.float32(i + 1))], f"part{i}") for i in range(2)]
    x = graph.node("Add", [graph.node("Concat", parts, "join", axis=1), graph.constant("added", noise(*shape))], "sum")
    bounds = [graph.constant(n, np.array([v])) for n, v in (("start", 4), ("stop", 8), ("axis", 1), ("step", 1))]
    model = graph.model(graph.node("Slice", [x, *bounds], "half"), 4, [3, 4, 6, 5])
    expected, found, kinds = before_and_after(model, noise(3, 4, 6, 5), halves_without_concat)
    assert ("Slice" in kinds) is sliced  # an operand of the channels would have to be sliced itself
    np.testing.assert_array_equal(found, expected)


def test_a_slice_across_the_parts_stays() -> None:
    graph = Graph()
    joined = graph.node("Concat", ["sample", "sample"], "join", axis=1)
    bounds = [graph.constant(n, np.array([v])) for n, v in (("start", 2), ("stop", 6), ("axis", 1), ("step", 1))]
    model = graph.model(graph.node("Slice", [joined, *bounds], "across"), 4, [3, 4, 6, 5])
    expected, found, kinds = before_and_after(model, noise(3, 4, 6, 5), halves_without_concat)
    assert "Slice" in kinds
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("pads", "options"),
    [
        (PADS, {}),
        ([0, 0, 0, 0, 0, 0, 1, 1], {"strides": [2, 2]}),
        ([0, 0, 2, 2, 0, 0, 2, 2], {"dilations": [2, 2]}),
    ],
    ids=["same", "downsampling", "dilated"],
)
def test_padding_is_taken_into_the_convolution(pads: list[int], options: dict[str, Any]) -> None:
    graph = Graph()
    model = graph.model(convolution(graph, "sample", pads, **options), 4, [3, 4, 7, 6])
    expected, found, kinds = before_and_after(model, noise(3, 4, 7, 6), padding_inside_convolutions)
    assert "Pad" not in kinds
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)
    assert found.shape == expected.shape


@pytest.mark.parametrize(
    ("channels", "zero_point"), [(1, None), (8, 7.0), (1, -128.0)], ids=["one channel", "static", "static, one channel"]
)
def test_padding_of_one_channel_and_of_a_constant_zero_point(channels: int, zero_point: float | None) -> None:
    graph = Graph()
    model = graph.model(convolution(graph, "sample", PADS, channels=channels, zero_point=zero_point), 4, [3, 4, 7, 6])
    expected, found, kinds = before_and_after(model, noise(3, 4, 7, 6), padding_inside_convolutions)
    assert "Pad" not in kinds
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("case", ["other sums", "another reader", "constant padding of 1", "a factor for each pixel"])
def test_padding_that_is_not_ours_stays(case: str) -> None:
    graph = Graph()
    y = convolution(graph, "sample", PADS, sums=1.5 if case == "other sums" else 1.0)
    if case == "another reader":
        y = graph.node("Add", [y, graph.node("ReduceMean", ["c/Pad:0"], "mean")], "both")
    if case == "a factor for each pixel":
        (scaled,) = (node for node in graph.nodes if node.name == "c/Mul")
        scaled.input[1] = graph.constant("factors", np.random.default_rng(1).uniform(1, 50, (9, 8)).astype(np.float32))
    if case == "constant padding of 1":
        (pad,) = (node for node in graph.nodes if node.op_type == "Pad")
        pad.input.append(graph.constant("filling", np.float32(1)))
    expected, found, kinds = before_and_after(graph.model(y, 4, [3, 4, 7, 6]), noise(3, 4, 7, 6), padding_inside_convolutions)
    assert "Pad" in kinds
    np.testing.assert_array_equal(found, expected)


def test_codes_are_the_same_when_they_are_rounded_once() -> None:
    graph = Graph()
    first = convolution(graph, "sample", [0] * 8)
    second, scale, _ = asymmetric(graph, "sample", "other", [0] * 8, table=ZERO_POINTS + 1)
    both = graph.node("Add", [first, graph.node("ReduceSum", [graph.node("Mul", [second, scale], "codes"), axes(graph)], "sum")], "both")
    # Ties at every scale: odd multiples of half a step.
    ties = (np.arange(3 * 4 * 9, dtype=np.float32).reshape(3, 4, 3, 3) - 50) * 0.5 * ROWS[[0, 2, 3]].reshape(3, 1, 1, 1)
    expected, found, kinds = before_and_after(graph.model(both, 4, [3, 4, 3, 3]), ties, rounding_once)
    np.testing.assert_array_equal(found, expected)
    assert kinds.count("FakeQuantize") == 1  # the one that no convolution reads
    assert "Clamp" in kinds


def test_a_graph_of_convolutions_alone_keeps_one_fake_quantize() -> None:
    graph = Graph()
    x = convolution(graph, "sample", [0] * 8, name="first")
    expected, found, kinds = before_and_after(graph.model(x, 4, [3, 4, 7, 6]), noise(3, 4, 7, 6), rounding_once)
    assert kinds.count("FakeQuantize") == 1
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("zero_point", "folded"), [(-128.0, True), (-127.0, False)])
def test_probabilities_are_quantized_by_one_node(zero_point: float, folded: bool) -> None:
    graph = Graph()
    scaled = graph.node("Mul", ["sample", graph.constant("inverse", np.float32(255))], "scaled")
    x = graph.node("Add", [graph.node("Round", [scaled], "round"), graph.constant("z", np.float32(zero_point))], "shift")
    probabilities = np.random.default_rng(0).uniform(0, 1, (3, 4, 50)).astype(np.float32)
    expected, found, kinds = before_and_after(graph.model(graph.unit_qdq(x, "p"), 3, [3, 4, 50]), probabilities, rounding_once)
    assert ("Round" in kinds) is not folded
    np.testing.assert_array_equal(found, expected)


def test_rows_gathered_at_once_are_the_same_rows() -> None:
    graph = Graph()
    x = "sample"
    for number in range(3):
        codes, scale, zero = asymmetric(graph, x, f"q{number}", [0] * 8, table=ZERO_POINTS + number)
        x = graph.node("Mul", [graph.node("Sub", [codes, zero], f"s{number}"), scale], f"m{number}")
    expected, found, kinds = before_and_after(graph.model(x, 4, [3, 4, 7, 6]), noise(3, 4, 7, 6), rows_at_once)
    assert kinds.count("Gather") == 1
    np.testing.assert_array_equal(found, expected)


def test_rows_of_products_of_scales_are_gathered_with_them() -> None:
    graph = Graph()
    left, right = row(graph, "left", ROWS), row(graph, "right", 3 * ROWS)
    both = graph.node("Mul", [graph.node("Mul", [left, right], "product"), graph.constant("factor", np.float32(0.125))], "scales")
    y = graph.node("Mul", ["sample", graph.node("Unsqueeze", [both, axes(graph)], "scale")], "scaled")
    y = graph.node("Add", [y, graph.node("Unsqueeze", [left, axes(graph)], "alone")], "added")
    expected, found, kinds = before_and_after(graph.model(y, 4, [3, 4, 7, 6]), noise(3, 4, 7, 6), rows_at_once)
    assert (kinds.count("Gather"), kinds.count("Multiply")) == (1, 1)
    np.testing.assert_array_equal(found, expected)


def test_products_of_the_same_codes_are_one() -> None:
    graph = Graph()
    quantized = asymmetric(graph, "sample", "shared", rank=3)
    parts = [linear(graph, quantized, "q", 3), linear(graph, quantized, "k", 5), linear(graph, quantized, "v", 2, bias=False)]
    other = linear(graph, asymmetric(graph, "sample", "alone", table=ZERO_POINTS + 1, rank=3), "other", 4)
    both = graph.node("Concat", [*parts, other], "both", axis=2)
    expected, found, kinds = before_and_after(graph.model(both, 3, [3, 6, 4]), noise(3, 6, 4), products_at_once)
    assert kinds.count("MatMul") == 2
    assert kinds.count("VariadicSplit") == 1
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("case", ["another table", "a factor for each token", "another operation"])
def test_products_share_no_more_than_what_follows_all_of_them(case: str) -> None:
    graph = Graph()
    codes, scale, zero = asymmetric(graph, "sample", "shared", rank=3)
    first = linear(graph, (codes, scale, zero), "q", 3)
    _, other, _ = asymmetric(graph, "sample", "other", table=ZERO_POINTS + 1, rank=3)
    other = graph.node("Mul", [other, graph.constant("two", np.float32(2))], "twice") if case == "another table" else scale
    second = linear(graph, (codes, other, zero), "k", 3)
    (rescale,) = (node for node in graph.nodes if node.name == "k/Mul")
    if case == "a factor for each token":
        rescale.input[1] = graph.constant("factors", np.linspace(0.5, 1, 6, dtype=np.float32).reshape(6, 1))
    if case == "another operation":
        rescale.op_type = "Div"
    both = graph.node("Concat", [first, second], "both", axis=2)
    expected, found, kinds = before_and_after(graph.model(both, 3, [3, 6, 4]), noise(3, 6, 4), products_at_once)
    assert kinds.count("MatMul") == 1
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_layers_on_pixels_are_convolutions() -> None:
    graph = Graph()
    tokens = as_tokens(graph, "sample")
    quantized = asymmetric(graph, tokens, "shared", rank=3)
    parts = [linear(graph, quantized, "q", 4), linear(graph, quantized, "k", 4)]
    attended = graph.node("Softmax", [graph.node("Add", parts, "both")], "softmax", axis=1)
    last = linear(graph, asymmetric(graph, attended, "attended", rank=3), "out", 8)
    picture = graph.node("Relu", [as_picture(graph, last, [3, 8, 5, 6])], "relu")
    model = graph.model(picture, 4, [3, 4, 5, 6])
    expected, found, kinds = before_and_after(model, noise(3, 4, 5, 6), products_at_once, pixels_by_convolutions)
    assert kinds.count("Convolution") == 2
    assert "MatMul" not in kinds
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("case", ["tokens read twice", "a scale for each token", "a residual of tokens"])
def test_layers_on_pixels_that_are_not_ours_stay(case: str) -> None:
    graph = Graph()
    tokens = as_tokens(graph, "sample")
    codes, scale, zero = asymmetric(graph, tokens, "x", rank=3)
    y = linear(graph, (codes, scale, zero), "y", 4)
    if case == "tokens read twice":
        y = graph.node("Add", [graph.node("Softmax", [y], "softmax"), tokens], "both")
    if case == "a scale for each token":
        (scaled,) = (node for node in graph.nodes if node.name == "x/Mul")
        scaled.input[1] = graph.constant("factors", np.linspace(5, 10, 30, dtype=np.float32).reshape(30, 1))
    if case == "a residual of tokens":
        y = graph.node("Add", [y, tokens], "both")
    picture = as_picture(graph, graph.node("Relu", [y], "relu"), [3, 4, 5, 6])
    expected, found, kinds = before_and_after(graph.model(picture, 4, [3, 4, 5, 6]), noise(3, 4, 5, 6), pixels_by_convolutions)
    assert "Convolution" not in kinds
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", ["qdq", "qdq-fp16"])
def test_a_whole_network_keeps_its_output(flow: Flow, name: str) -> None:
    sample = noise(2, 1, 8, 8)
    graph = fixed(openvino.Core().read_model(flow.bundle(name).file("model.onnx")), 2, sample.shape)
    plain = graph.clone()
    rewrite(graph)
    assert not {"GroupNormalization", "Pad"} & {node.get_type_name() for node in graph.get_ordered_ops()}
    assert close(computed(plain, sample), computed(graph, sample))


def test_a_graph_with_a_size_that_values_decide_is_left_alone() -> None:
    graph = Graph()
    count = graph.node("ReduceSum", [graph.node("Cast", [graph.node("NonZero", ["sample"], "where")], "cast", to=1)], "count", keepdims=0)
    model = graph.model(graph.node("Add", [group_norm(graph, "sample", 8), count], "both"), 4, [3, 8, 6, 5])
    expected, found, kinds = before_and_after(model, noise(3, 8, 6, 5), rewrite)
    assert "GroupNormalization" in kinds
    np.testing.assert_array_equal(found, expected)


def two_linears(middle: Callable[[Graph, str], str]) -> onnx.ModelProto:
    """Two quantized layers on vectors with ``middle`` between them, as a timestep's embedding has them."""
    graph = Graph()
    wide = linear(graph, asymmetric(graph, "sample", "a", rank=2), "first", 192, inputs=48)
    return graph.model(linear(graph, asymmetric(graph, middle(graph, wide), "b", rank=2), "second", 192, inputs=192), 2, ["batch", 48])


def gelu(graph: Graph, x: str) -> str:
    half = graph.node("Cast", [x], "half", to=onnx.TensorProto.FLOAT16)
    return graph.node("Cast", [graph.node("Gelu", [half], "gelu")], "whole", to=onnx.TensorProto.FLOAT)


def mish(graph: Graph, x: str) -> str:
    return graph.node("Mish", [x], "mish")


@pytest.mark.parametrize("activation", [gelu, mish])
@pytest.mark.parametrize("batch", [1, 3])
def test_an_activation_between_two_layers_compiles_and_computes_the_same(batch: int, activation: Callable[[Graph, str], str]) -> None:
    sample = noise(batch, 48)
    model = two_linears(activation)
    apart = read(model, sample)
    rewrite(apart, (activations_apart,))
    alone = [node.get_type_name() for node in apart.get_ordered_ops()].count("Reshape")
    assert alone - [node.get_type_name() for node in read(model, sample).get_ordered_ops()].count("Reshape") == (2 if batch == 1 else 0)
    session = onnxruntime.InferenceSession(model.SerializeToString(), disabled_optimizers=["GeluFusion"])
    (expected,) = session.run(None, {"sample": sample, "timestep": TIMESTEPS[:batch]})
    np.testing.assert_allclose(computed(apart, sample), expected, rtol=2e-3, atol=2e-3)


def pictures_in_parts(sizes: Sequence[int], *, steps: bool = True, pixels: int = 6) -> tuple[onnx.ModelProto, Array]:
    """A quantized convolution whose output is split along its channels; the parts have different uses."""
    graph = Graph()
    y = convolution(graph, "sample", PADS, channels=sum(sizes)) if steps else "sample"
    if steps:
        y = graph.node("Cast", [graph.node("Cast", [y], "to_half", to=onnx.TensorProto.FLOAT16)], "to_single", to=onnx.TensorProto.FLOAT)
    node = onnx.helper.make_node("Split", [y, graph.constant("sizes", np.array(sizes))], [f"part{i}" for i in range(len(sizes))], axis=1)
    graph.nodes.append(node)
    means = [
        graph.node("ReduceMean", [f"part{i}", graph.constant("channels", np.array([1]))], f"mean{i}", keepdims=1) for i in range(len(sizes))
    ]
    total = means[0]
    for i, mean in enumerate(means[1:]):
        total = graph.node("Sub", [graph.node("Mul", [total, graph.constant("two", np.float32(2))], f"double{i}"), mean], f"sum{i}")
    sample = noise(3, sum(sizes) if not steps else 4, pixels, pixels)
    return graph.model(total, 4, ["batch", *sample.shape[1:]]), sample


@pytest.mark.parametrize("sizes", [(4, 4, 4), (2, 6), (1, 3)], ids=str)
def test_a_convolution_that_is_split_becomes_one_for_each_part(sizes: tuple[int, ...]) -> None:
    model, sample = pictures_in_parts(sizes)
    expected, found, kinds = before_and_after(model, sample, convolutions_in_parts)
    assert kinds.count("Convolution") == len(sizes)
    assert not {"Split", "VariadicSplit"} & set(kinds)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_what_no_convolution_makes_stays_split() -> None:
    model, sample = pictures_in_parts((2, 2), steps=False)
    expected, found, kinds = before_and_after(model, sample, convolutions_in_parts)
    assert {"Split", "VariadicSplit"} & set(kinds)
    np.testing.assert_array_equal(found, expected)
