"""Each shape is compiled once, the first few with every dimension fixed; all of them give the same numbers."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from dq_deploy.artifacts import Artifact
from dq_deploy.engines.onnxruntime.runner import OnnxRuntimeRunner
from dq_deploy.engines.openvino.runner import OpenVinoRunner
from dq_deploy.engines.openvino.shapes import MOST_SHAPES, ShapedModels, shapes_for

Asked = list[Mapping[str, tuple[int, ...]] | None]


class Request:
    def infer(self, feeds: Mapping[str, np.ndarray[Any, Any]], **_: Any) -> list[np.ndarray[Any, Any]]:
        return [feeds["x"] + 1]


class Port:
    """An input of any size: its inference requests are handed arrays."""

    is_dynamic = True

    def get_partial_shape(self) -> Port:
        return self


class Compiled:
    inputs = (Port(),)

    def create_infer_request(self) -> Request:
        return Request()


def models(asked: Asked, **options: Any) -> ShapedModels:
    def compile_for(shapes: Mapping[str, tuple[int, ...]] | None) -> Compiled:
        asked.append(shapes)
        return Compiled()

    return ShapedModels(compile_for, **options)


def ones(batch: int) -> dict[str, np.ndarray[Any, Any]]:
    return {"x": np.ones((batch, 3), np.float32)}


def test_a_shape_is_compiled_once_and_those_beyond_the_limit_share_the_open_graph() -> None:
    asked: Asked = []
    shaped = models(asked, dynamic=True, most=2)
    for batch in (1, 2, 1, 3, 4, 2, 3):
        assert shaped.infer(ones(batch))[0][0, 0] == 2
    assert asked == [{"x": (1, 3)}, {"x": (2, 3)}, None]


def test_a_graph_without_open_dimensions_is_compiled_once() -> None:
    asked: Asked = []
    shaped = models(asked, dynamic=False)
    shaped.any()
    shaped.infer(ones(1))
    assert asked == [None]


def test_threads_that_meet_at_a_new_shape_compile_it_once() -> None:
    asked: Asked = []
    shaped = models(asked, dynamic=True)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: shaped.infer(ones(5)), range(64)))
    assert asked == [{"x": (5, 3)}]


def test_threads_that_meet_at_many_new_shapes_compile_no_more_than_the_limit() -> None:
    asked: Asked = []
    shaped = models(asked, dynamic=True, most=2)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: shaped.infer(ones(1 + number % 16)), range(256)))
    assert len(asked) == 3
    assert asked.count(None) == 1


@pytest.mark.parametrize(("size", "shapes"), [(0, MOST_SHAPES), (5_000_000, MOST_SHAPES), (400_000_000, 2), (3_000_000_000, 1)])
def test_a_large_graph_has_few_shapes(size: int, shapes: int) -> None:
    assert shapes_for(size) == shapes


def test_fixed_and_open_graphs_compute_the_same(tiny_bundle: Artifact) -> None:
    runner, reference = OpenVinoRunner(tiny_bundle), OnnxRuntimeRunner(tiny_bundle)
    for batch in range(1, MOST_SHAPES + 3):
        generator = np.random.default_rng(batch)
        inputs = {"sample": generator.standard_normal((batch, 1, 8, 8), np.float32), "timestep": np.float32(500)}
        np.testing.assert_allclose(runner.run(inputs), reference.run(inputs), atol=1e-4)


def test_a_result_outlives_the_next_run(tiny_bundle: Artifact) -> None:
    # The memory of a request's inputs and output is used again by the next run.
    runner = OpenVinoRunner(tiny_bundle)
    sample = np.random.default_rng(0).standard_normal((2, 1, 8, 8), np.float32)
    first = runner.run({"sample": sample, "timestep": np.float32(500)})
    kept, given = first.copy(), sample.copy()
    second = runner.run({"sample": sample * 2, "timestep": np.float32(0)})
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(sample, given)
    np.testing.assert_array_equal(runner.run({"sample": sample, "timestep": np.float32(500)}), kept)
