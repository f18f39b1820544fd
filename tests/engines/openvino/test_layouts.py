"""Maps of features enter and leave a compiled model with channels last, and callers do not see it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
from onnx import TensorProto, helper, load, numpy_helper, save
from onnxruntime import InferenceSession

from dq_deploy.engines.openvino.graph import runtime_dump
from dq_deploy.engines.openvino.layouts import channels_last
from dq_deploy.engines.openvino.runner import OpenVinoRunner, compile_for_cpu

CHANNELS = 16


def part(tmp_path: Path, *, channels: int = CHANNELS) -> Path:
    """A graph y = W * x + skip and z = -x, as a part of a network is: two maps [N, C, H, W] come in, two go out."""
    weights = np.random.default_rng(0).standard_normal((channels, channels, 3, 3)).astype(np.float32)
    shape = ["N", channels, "H", "W"]
    nodes = [
        helper.make_node("Conv", ["x", "weights"], ["product"], name="product/Conv", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["skip", "product"], ["y"]),
        helper.make_node("Neg", ["x"], ["z"]),
    ]
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in names] for names in (("x", "skip"), ("y", "z"))]
    graph = helper.make_graph(nodes, "part", *ends, [numpy_helper.from_array(weights, "weights")])
    path = tmp_path / "part.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10), path)
    return path


def maps(samples: int, height: int, width: int) -> dict[str, Any]:
    generator = np.random.default_rng(samples)
    return {name: generator.standard_normal((samples, CHANNELS, height, width), np.float32) for name in ("x", "skip")}


@pytest.mark.parametrize("size", [(1, 4, 6), (3, 16, 16)])  # square and as many channels: no axis may be taken for another
def test_the_same_values_in_the_shape_of_the_graph(tmp_path: Path, size: tuple[int, int, int]) -> None:
    path, feeds = part(tmp_path), maps(*size)
    found = OpenVinoRunner(path).infer_all(feeds)
    expected: list[Any] = list(InferenceSession(path).run(None, feeds))
    assert [output.shape for output in found] == [output.shape for output in expected]
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_what_was_given_stays_and_a_result_is_the_callers(tmp_path: Path) -> None:
    runner, feeds = OpenVinoRunner(part(tmp_path)), maps(2, 8, 8)
    given = {name: value.copy() for name, value in feeds.items()}
    first = runner.infer_all(feeds)
    kept = [output.copy() for output in first]
    second = runner.infer_all({"x": first[0], "skip": first[1]})  # views of channels last may be given again
    assert not np.array_equal(first[0], second[0])
    for output, copy in zip(first, kept, strict=True):
        np.testing.assert_array_equal(output, copy)
    for name, value in given.items():
        np.testing.assert_array_equal(feeds[name], value)


def test_no_kernel_moves_a_map(tmp_path: Path) -> None:
    core = openvino.Core()
    model = core.read_model(part(tmp_path))
    model.reshape({name: [1, CHANNELS, 64, 64] for name in ("x", "skip")})

    def moves(graph: Any) -> list[str]:
        request = core.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "PERF_COUNT": True}).create_infer_request()
        request.infer()
        run = [kernel for kernel in request.get_profiling_info() if kernel.status == kernel.Status.EXECUTED]
        return [kernel.node_name for kernel in run if kernel.node_type in ("Reorder", "Transpose")]

    assert moves(model.clone())
    assert not moves(channels_last(model.clone()))


def test_what_keeps_channels_last_is_no_product_of_the_network(tmp_path: Path) -> None:
    path = part(tmp_path)
    runner = OpenVinoRunner(path)
    runner.infer_all(maps(1, 8, 8))
    assert [kind for kind, _ in runner.products()] == ["Convolution"]
    compiled = compile_for_cpu(openvino, path, integer=True, shapes={name: value.shape for name, value in maps(1, 8, 8).items()})
    dump = runtime_dump(compiled, load(path).graph)
    assert len([kernel for kernel in dump.kernels if kernel.precision]) == 1


def test_a_sample_of_few_channels_stays_as_it_is(tmp_path: Path) -> None:
    model = openvino.Core().read_model(part(tmp_path, channels=4))
    model.reshape({name: [1, 4, 8, 8] for name in ("x", "skip")})
    assert channels_last(model) is model
