"""Both engines take the same inputs and give the same results and complaints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dq_deploy.artifacts import Artifact
from dq_deploy.engines.onnxruntime import OnnxRuntimeRunner
from dq_deploy.engines.openvino import OpenVinoRunner
from dq_deploy.engines.runner import GraphRunner
from dq_deploy.errors import ArtifactError, UsageError
from tests.bundles import write_graph

# Scales the sample with a row of a table, as the `onnxruntime` target does: one row for the whole batch.
ONE_ROW = """<ir_version: 10, opset_import: ["": 21]>
one_row (float[batch, 2] sample, float[1] timestep) => (float[batch, 2] out_sample)
<float[3] table = {1.0, 10.0, 100.0}, int64[1] one = {1}>
{
    row = Cast<to=7>(timestep)
    scale = Gather(table, row)
    column = Unsqueeze(scale, one)
    out_sample = Mul(sample, column)
}"""
ROWS = ONE_ROW.replace("float[1] timestep", "float[batch] timestep")
TABLE = np.array([1.0, 10.0, 100.0], np.float32)
RUNNERS = [OnnxRuntimeRunner, OpenVinoRunner]


@pytest.fixture(params=RUNNERS, ids=["onnxruntime", "openvino"])
def engine(request: pytest.FixtureRequest) -> type[GraphRunner]:
    return request.param


@pytest.fixture(params=[ONE_ROW, ROWS], ids=["timestep [1]", "timestep [N]"])
def runner(request: pytest.FixtureRequest, engine: type[GraphRunner], tmp_path: Path) -> GraphRunner:
    return engine(write_graph(tmp_path / "graph.onnx", request.param))


@pytest.mark.parametrize("timestep", [1, 1.0, np.int64(1), np.array([1]), np.array([1.0] * 4), np.array(1.0, np.float16)])
def test_timestep_may_be_a_scalar_or_one_per_sample_int_or_float(runner: GraphRunner, timestep: object) -> None:
    sample = np.arange(8, dtype=np.float32).reshape(4, 2)
    np.testing.assert_array_equal(runner.run({"sample": sample, "timestep": timestep}), sample * 10)


def test_mixed_batch_comes_back_in_the_callers_order(runner: GraphRunner) -> None:
    steps = np.array([2, 0, 1, 2, 0, 0, 1], np.int64)
    sample = np.random.default_rng(0).normal(size=(7, 2)).astype(np.float32)
    np.testing.assert_array_equal(runner.run({"sample": sample, "timestep": steps}), sample * TABLE[steps][:, None])


def test_a_result_is_not_overwritten_by_the_next_run(runner: GraphRunner) -> None:
    sample = np.ones((2, 2), np.float32)
    first = runner.run({"sample": sample, "timestep": 0})
    runner.run({"sample": sample, "timestep": 2})
    np.testing.assert_array_equal(first, sample)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"sample": np.ones((2, 2)), "timestep": [0.0, np.nan]}, "'timestep' is nan at sample 1: it selects no row of the scale tables"),
        ({"sample": np.ones((2, 2)), "timestep": np.inf}, "input 'timestep' is inf at sample 0"),
        ({"sample": np.ones((2, 2)), "timestep": [0, 1, 2]}, r"has shape \[3\]: give a scalar, \[1\] or one for each of the 2 samples"),
        ({"sample": np.ones((2, 2)), "timestep": "soon"}, "input 'timestep' has dtype <U4, and a number is needed"),
        ({"sample": np.ones((2, 3)), "timestep": 0}, r"input 'sample' has shape \[2, 3\], and the graph takes \[any, 2\]"),
        ({"sample": np.ones((0, 2)), "timestep": 0}, r"input 'sample' is empty: its shape is \[0, 2\]"),
        ({"timestep": 0}, "input 'sample' is missing"),
        ({"sample": np.ones((2, 2)), "timestep": 0, "mask": 1}, r"the graph has no input 'mask' \(it has sample, timestep\)"),
    ],
)
def test_inputs_that_do_not_fit_are_named(runner: GraphRunner, inputs: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        runner.run(inputs)


def test_batches_that_differ_are_named(engine: type[GraphRunner], tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["": 21]>
    two (float[batch, 2] sample, float[batch, 2] other) => (float[batch, 2] out_sample) { out_sample = Add(sample, other) }"""
    runner = engine(write_graph(tmp_path / "two.onnx", text))
    with pytest.raises(UsageError, match="the inputs' batches differ: sample has 2, other has 3"):
        runner.run({"sample": np.ones((2, 2)), "other": np.ones((3, 2))})


def test_a_bundle_runs_from_its_folder(engine: type[GraphRunner], tiny_bundle: Artifact) -> None:
    sample = np.random.default_rng(0).normal(size=(3, 1, 8, 8)).astype(np.float32)
    inputs = {"sample": sample, "timestep": np.array([0, 250, 750])}
    by_path = engine(tiny_bundle.path).run(inputs)
    assert by_path.shape == sample.shape
    singles = [engine(tiny_bundle).run({"sample": sample[i : i + 1], "timestep": inputs["timestep"][i]}) for i in range(3)]
    np.testing.assert_allclose(by_path, np.concatenate(singles), atol=1e-5)


def test_what_is_no_graph_is_refused(engine: type[GraphRunner], tmp_path: Path) -> None:
    (tmp_path / "noise.onnx").write_bytes(b"\x00\x01 no graph")
    with pytest.raises(ArtifactError, match="noise.onnx is not an ONNX graph"):
        engine(tmp_path / "noise.onnx")
    with pytest.raises(UsageError, match="no such path"):
        engine(tmp_path / "absent")
    with pytest.raises(ArtifactError, match="is no dq-deploy artefact"):
        engine(tmp_path)


def test_a_graph_that_fails_while_running_is_named(engine: type[GraphRunner], tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["": 21]>
    bad (float[batch, 2] sample) => (float[rows, 5] out_sample) <int64[2] size = {-1, 5}> { out_sample = Reshape(sample, size) }"""
    runner = engine(write_graph(tmp_path / "bad.onnx", text))
    with pytest.raises(ArtifactError, match="cannot run .*bad.onnx: "):
        runner.run({"sample": np.ones((2, 2))})


@pytest.mark.parametrize("threads", [0, -1])
def test_threads_must_be_positive(engine: type[GraphRunner], tiny_bundle: Artifact, threads: int) -> None:
    with pytest.raises(UsageError, match=f"threads is {threads}, and at least 1 is needed"):
        engine(tiny_bundle, threads=threads)
