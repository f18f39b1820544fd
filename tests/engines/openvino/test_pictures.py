"""What lists a picture's pixels and puts them back works on the picture, and computes what it did."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dq_deploy.engines.openvino.rewrites.patches import patches_by_strides
from dq_deploy.engines.openvino.rewrites.pictures import pictures_stay_pictures
from tests.engines.graphs import Graph
from tests.engines.openvino.test_rewrites import asymmetric, before_and_after, group_norm, noise, read, rewrite

SHAPE = (2, 4, 5, 6)


def flat_convolution(graph: Graph, x: str, name: str, outputs: int = 4) -> str:
    """A quantized convolution of the pixels' list [N, C, H · W, 1], as the exporter writes a Conv1d of one tap."""
    x = graph.node("Unsqueeze", [x, graph.constant(f"{name}.axis", np.array([3]))], f"{name}/apart")
    codes, scale, zero = asymmetric(graph, x, name)
    weight = graph.weight(name, (outputs, 4, 1, 1), 0)
    y = graph.node("Conv", [codes, weight], f"{name}/Conv")
    sums = graph.constant(f"{name}.sums", graph.random.normal(size=(1, outputs, 1, 1)).astype(np.float32))
    y = graph.node("Sub", [y, graph.node("Mul", [zero, sums], f"{name}/zero_point_sum")], f"{name}/Taken")
    return graph.node("Squeeze", [graph.node("Mul", [y, scale], f"{name}/Scaled"), f"{name}.axis"], f"{name}/together")


def attention_block(graph: Graph, middle: str = "Relu") -> str:
    """List → norm → convolution → something across pixels → convolution → + list → picture → norm."""
    start = graph.node("Mul", ["sample", graph.constant("two", np.float32(2))], "start")
    flat = graph.node("Reshape", [start, graph.constant("flat", np.array([2, 4, -1]))], "flat")
    y = flat_convolution(graph, group_norm(graph, flat, 4), "first")
    y = graph.node("MatMul", [y, graph.constant("mixing", noise(30, 30))], "across")
    y = flat_convolution(graph, graph.node(middle, [y], "middle"), "last")
    both = graph.node("Add", [flat, y], "both")
    back = graph.node("Reshape", [both, graph.constant("picture", np.array(SHAPE))], "back")
    return graph.node("GroupNormalization", [back, "norm.weight", "norm.bias"], "after", num_groups=2)


def shapes(model: Any, kind: str) -> list[int]:
    """Widths of what nodes of this type make, after the rewrite."""
    graph = read(model, noise(*SHAPE))
    rewrite(graph, [pictures_stay_pictures])
    found = [node.output(0).get_partial_shape() for node in graph.get_ordered_ops() if node.get_type_name() == kind]
    return [shape[3].get_length() if len(shape) == 4 else 0 for shape in found]


def test_an_attention_on_lists_works_on_pictures() -> None:
    graph = Graph()
    model = graph.model(attention_block(graph), 4, list(SHAPE))
    for kind in ("Convolution", "Add", "FakeQuantize", "GroupNormalization"):
        assert set(shapes(model, kind)) == {SHAPE[3]}, kind
    expected, found, _ = before_and_after(model, noise(*SHAPE), pictures_stay_pictures)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", ["a factor for each pixel", "another reader", "a row of pixels"])
def test_lists_with_more_to_them(case: str) -> None:
    graph = Graph()
    flat = graph.node("Reshape", ["sample", graph.constant("flat", np.array([2, 4, -1]))], "flat")
    factor = noise(30) if case == "a factor for each pixel" else noise(4, 1)
    y = graph.node("Mul", [flat, graph.constant("factor", factor)], "scaled")
    if case == "another reader":
        y = graph.node("Add", [y, graph.node("CumSum", [y, graph.constant("axis", np.int64(2))], "across")], "sum")
    if case == "a row of pixels":  # no picture
        y = graph.node("Reshape", [y, graph.constant("row", np.array([2, 4, 1, 30]))], "row")
    model = graph.model(y, 4 if case == "a row of pixels" else 3, list(SHAPE))
    expected, found, _ = before_and_after(model, noise(*SHAPE), pictures_stay_pictures)
    np.testing.assert_array_equal(found, expected)


def patches(graph: Graph, order: list[int]) -> str:
    """Space to depth, 2 × 3 pixels a patch, and a quantized 1 × 1 convolution."""
    cut = graph.node("Reshape", ["sample", graph.constant("cut", np.array([2, 4, 2, 2, 2, 3]))], "cut")
    moved = graph.node("Transpose", [cut], "moved", perm=order)
    deep = graph.node("Reshape", [moved, graph.constant("deep", np.array([2, 24, 2, 2]))], "deep")
    codes, scale, zero = asymmetric(graph, deep, "c")
    y = graph.node("Conv", [codes, graph.weight("c", (5, 24, 1, 1), 0)], "c/Conv")
    sums = graph.constant("c.sums", graph.random.normal(size=(1, 5, 1, 1)).astype(np.float32))
    return graph.node("Mul", [graph.node("Sub", [y, graph.node("Mul", [zero, sums], "c/shift")], "c/Taken"), scale], "c/Scaled")


@pytest.mark.parametrize(("order", "known"), [([0, 1, 3, 5, 2, 4], True), ([0, 3, 5, 1, 2, 4], False)])
def test_patches_are_read_with_strides(order: list[int], known: bool) -> None:
    graph = Graph()
    model = graph.model(patches(graph, order), 4, [2, 4, 4, 6])
    expected, found, kinds = before_and_after(model, noise(2, 4, 4, 6), patches_by_strides)
    assert ("Transpose" in kinds) is not known
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-5)
