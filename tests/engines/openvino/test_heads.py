"""An attention's heads out of a picture's channels: other convolutions and another order in memory, the same numbers."""

from __future__ import annotations

import numpy as np
import openvino
import pytest

from dq_deploy.engines.openvino.rewrites import REWRITES, rewrite
from dq_deploy.engines.openvino.rewrites.heads import heads_out_of_pictures
from dq_deploy.engines.openvino.rewrites.moves import codes_before_moves
from dq_deploy.engines.openvino.rewrites.splits import convolutions_in_parts
from tests.engines.graphs import Graph
from tests.engines.openvino.test_rewrites import asymmetric, before_and_after, noise, read

SAMPLES, HEADS, WIDTH, SIZE = 2, 2, 3, (4, 5)
PIXELS, CHANNELS = SIZE[0] * SIZE[1], HEADS * WIDTH


def layer(graph: Graph, x: str, name: str, inputs: int, outputs: int) -> str:
    codes, scale, zero = asymmetric(graph, x, name)
    y = graph.node("Conv", [codes, graph.weight(name, (outputs, inputs, 1, 1), 0)], f"{name}/Conv")
    sums = graph.constant(f"{name}.sums", graph.random.normal(size=(1, outputs, 1, 1)).astype(np.float32))
    return graph.node(
        "Mul", [graph.node("Sub", [y, graph.node("Mul", [zero, sums], f"{name}/shift")], f"{name}/Taken"), scale], f"{name}/Y"
    )


def reshaped(graph: Graph, x: str, name: str, *sizes: int) -> str:
    return graph.node("Reshape", [x, graph.constant(f"{name}.sizes", np.array(sizes))], name)


def heads_first(graph: Graph, qkv: str) -> list[str]:
    """OpenAI's: a head's q, k and v one after another, each [N · heads, width, H · W]."""
    flat = reshaped(graph, qkv, "flat", SAMPLES, 3 * CHANNELS, PIXELS)
    split = reshaped(graph, flat, "heads", SAMPLES * HEADS, 3 * WIDTH, PIXELS)
    graph.node("Split", [split], "split", axis=1, num_outputs=3)
    del graph.nodes[-1].output[:]
    graph.nodes[-1].output.extend(names := [f"part{i}" for i in range(3)])
    return names


def side_by_side(graph: Graph, qkv: str) -> list[str]:
    """EDM's: q, k and v of a channel side by side, taken by slices."""
    heads = reshaped(graph, qkv, "heads", SAMPLES * HEADS, WIDTH, 3, PIXELS)
    parts = []
    for i in range(3):
        ends = [graph.constant(f"at{i}.{end}", np.array([end])) for end in (i, i + 1)]
        part = graph.node("Slice", [heads, *ends, graph.constant("axis2", np.array([2]))], f"slice{i}")
        parts.append(graph.node("Squeeze", [part, "axis2"], f"part{i}"))
    return parts


def attention(graph: Graph, kind: str) -> str:
    q, k, v = (heads_first if kind == "heads first" else side_by_side)(graph, layer(graph, "sample", "qkv", 4, 3 * CHANNELS))
    q = graph.node("Transpose", [graph.node("Mul", [q, graph.constant("root", np.float32(0.5))], "scaled")], "qt", perm=[0, 2, 1])
    weights = graph.node("Softmax", [graph.node("MatMul", [q, k], "scores")], "weights", axis=-1)
    mixed = graph.node("MatMul", [weights, graph.node("Transpose", [v], "vt", perm=[0, 2, 1])], "mixed")
    back = graph.node("Transpose", [mixed], "back", perm=[0, 2, 1])
    return layer(graph, reshaped(graph, back, "picture", SAMPLES, CHANNELS, *SIZE), "out", CHANNELS, 4)


@pytest.mark.parametrize("kind", ["heads first", "side by side"])
def test_heads_come_from_convolutions_of_their_own(kind: str) -> None:
    graph = Graph()
    model = graph.model(attention(graph, kind), 4, [SAMPLES, 4, *SIZE])
    sample = noise(SAMPLES, 4, *SIZE)
    expected, found, kinds = before_and_after(model, sample, convolutions_in_parts, heads_out_of_pictures)
    assert kinds.count("Convolution") == 4
    assert not {"Split", "VariadicSplit", "Slice"} & set(kinds)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


def test_a_picture_of_which_more_is_read_stays_whole() -> None:
    graph = Graph()
    qkv = layer(graph, "sample", "qkv", 4, 3 * CHANNELS)
    q, k, _ = heads_first(graph, qkv)
    y = graph.node("Add", [graph.node("Add", [q, k], "both"), graph.node("ReduceMean", [qkv], "mean", keepdims=0)], "y")
    model = graph.model(y, 3, [SAMPLES, 4, *SIZE])
    expected, found, kinds = before_and_after(model, noise(SAMPLES, 4, *SIZE), convolutions_in_parts, heads_out_of_pictures)
    assert kinds.count("Convolution") == 1
    np.testing.assert_array_equal(found, expected)


def test_channels_of_different_samples_are_not_parts() -> None:
    graph = Graph()
    qkv = layer(graph, "sample", "qkv", 4, 3 * CHANNELS)
    mixed = reshaped(graph, qkv, "mixed", 1, SAMPLES * 3 * CHANNELS, PIXELS)
    ends = [graph.constant(name, np.array([value])) for name, value in (("first", 4), ("last", 20), ("axis", 1))]
    model = graph.model(graph.node("Slice", [mixed, *ends], "slice"), 3, [SAMPLES, 4, *SIZE])
    expected, found, kinds = before_and_after(model, noise(SAMPLES, 4, *SIZE), convolutions_in_parts)
    assert "Slice" in kinds or "StridedSlice" in kinds
    np.testing.assert_array_equal(found, expected)


def test_codes_are_moved_instead_of_what_they_are_made_of() -> None:
    graph = Graph()
    heads = reshaped(graph, "sample", "heads", SAMPLES, PIXELS, HEADS, WIDTH)
    turned = graph.node("Transpose", [heads], "turned", perm=[0, 2, 1, 3])
    other = graph.node("Transpose", [heads], "other", perm=[0, 2, 3, 1])
    left, right = (graph.quantize(value, name, 4) for value, name in ((turned, "left"), (other, "right")))
    y = graph.node("MatMul", [left[0], right[0]], "scores")
    y = graph.node("Mul", [graph.node("Mul", [y, left[1]], "by_left"), right[1]], "by_both")
    model = graph.model(y, 4, [SAMPLES, PIXELS, CHANNELS])
    sample = noise(SAMPLES, PIXELS, CHANNELS)
    quantized = read(model, sample)
    rewrite(quantized, [codes_before_moves])
    made = [node.input_value(0).get_node().input_value(0) for node in quantized.get_ordered_ops() if node.get_type_name() == "FakeQuantize"]
    assert [value.get_node().get_type_name() for value in made] == ["Reshape", "Reshape"]  # and not the transpositions
    expected, found, _ = before_and_after(model, sample, codes_before_moves)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", ["heads first", "side by side"])
def test_no_reference_kernel_reads_a_picture(kind: str) -> None:
    """OpenVINO's kernels named ref_* are its slowest; here they may see what a timestep decides, and no pixels."""
    graph = Graph()
    sample = noise(SAMPLES, 4, *SIZE)
    model = read(graph.model(attention(graph, kind), 4, [SAMPLES, 4, *SIZE]), sample)
    rewrite(model, REWRITES)
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    nodes = compiled.get_runtime_model().get_ordered_ops()
    slow = [node for node in nodes if node.get_rt_info()["primitiveType"].value.startswith("ref")]
    read_there = [value.get_shape() for node in slow for value in node.inputs()]
    assert all(PIXELS not in shape and list(shape[2:]) != list(SIZE) for shape in read_there)
