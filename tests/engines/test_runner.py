"""Both engines take the same inputs and give the same results and complaints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dq_deploy.artifacts import Artifact
from dq_deploy.engines.onnxruntime.runner import OnnxRuntimeRunner
from dq_deploy.engines.openvino.runner import OpenVinoRunner
from dq_deploy.engines.running.runner import GraphRunner
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
        (
            {"sample": np.ones((2, 3)), "timestep": 0},
            r"input 'sample' has shape \[2, 3\], and the graph takes \[any, 2\]\n.*--height and --width",
        ),
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
    with pytest.raises(ArtifactError, match="is not a dq-deploy artefact"):
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


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_with_its_place(runner: GraphRunner, bad: float) -> None:
    sample = np.ones((3, 2), np.float32)
    sample[1, 1] = bad
    with pytest.raises(UsageError, match=rf"input 'sample' has 1 value that is not finite in float32, the first {bad} at \[1, 1\]\nfind"):
        runner.run({"sample": sample, "timestep": 0})
    sample[2] = np.nan
    with pytest.raises(UsageError, match=r"input 'sample' has 3 values that are not finite in float32"):
        runner.run({"sample": sample, "timestep": 0})


@pytest.mark.parametrize("text", [ONE_ROW, ROWS], ids=["timestep [1]", "timestep [N]"])
def test_what_is_not_finite_propagates_by_option_to_its_samples_alone(engine: type[GraphRunner], tmp_path: Path, text: str) -> None:
    runner = engine(write_graph(tmp_path / "graph.onnx", text), nonfinite="propagate")
    sample, steps = np.ones((3, 2), np.float32), np.array([1, 2, 0])
    sample[0, 0], sample[2, 1] = np.nan, np.inf
    output = runner.run({"sample": sample, "timestep": steps})
    np.testing.assert_array_equal(output, [[np.nan] * 2, [100, 100], [np.nan] * 2])
    with pytest.raises(UsageError, match="unknown way 'ignore' to treat what is not finite\nchoose refuse or propagate"):
        engine(tmp_path / "graph.onnx", nonfinite="ignore")


def test_nan_does_not_vanish_in_a_quantizer(engine: type[GraphRunner], tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["": 21]>
    quantized (float[batch, 2] sample) => (float[batch, 2] out_sample) <float scale = {0.5}, int8 zero = {0}>
    { codes = QuantizeLinear(sample, scale, zero) out_sample = DequantizeLinear(codes, scale, zero) }"""
    file = write_graph(tmp_path / "graph.onnx", text)
    sample = np.array([[np.nan, 1], [2, 3]], np.float32)
    with pytest.raises(UsageError, match=r"the first nan at \[0, 0\]"):
        engine(file).run({"sample": sample})
    np.testing.assert_array_equal(engine(file, nonfinite="propagate").run({"sample": sample}), [[np.nan] * 2, [2, 3]])


def test_a_mask_may_hold_minus_infinity(engine: type[GraphRunner], tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["": 21]>
    masked (float[batch, 2] sample, float[batch, 2] attention_mask) => (float[batch, 2] out_sample)
    { sum = Add(sample, attention_mask) out_sample = Softmax(sum) }"""
    runner = engine(write_graph(tmp_path / "graph.onnx", text))
    sample, mask = np.zeros((1, 2), np.float32), np.array([[0, -np.inf]], np.float32)
    np.testing.assert_array_equal(runner.run({"sample": sample, "attention_mask": mask}), [[1, 0]])
    with pytest.raises(UsageError, match="'attention_mask' has 1 value that is not finite"):
        runner.run({"sample": sample, "attention_mask": -mask})


def test_what_half_precision_cannot_hold_is_not_finite(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["": 21]>
    half (float16[batch, 2] sample) => (float16[batch, 2] out_sample) { out_sample = Relu(sample) }"""
    runner = OnnxRuntimeRunner(write_graph(tmp_path / "graph.onnx", text))
    with pytest.raises(UsageError, match=r"1 value that is not finite in float16, the first inf at \[0, 1\]"):
        runner.run({"sample": np.array([[1, 1e5]], np.float32)})


CLASSES = """<ir_version: 10, opset_import: ["": 21]>
classes (float[batch, 2] sample, int64[batch] class_labels) => (float[batch, 2] out_sample)
<float[3, 2] table = {1.0, 10.0, 100.0, 2.0, 20.0, 200.0}, int64[1] one = {-1}>
{
    flat = Reshape(class_labels, one)
    row = Gather(table, flat)
    out_sample = Add(sample, row)
}"""


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"sample": np.ones((1, 2), np.int64)}, "input 'sample' has dtype int64, and the graph takes float32: convert it"),
        ({"sample": np.ones((1, 2), bool)}, "input 'sample' has dtype bool, and the graph takes float32"),
        ({"sample": np.ones((1, 2), np.complex64)}, "input 'sample' has dtype complex64, and the graph takes float32"),
        ({"sample": np.array([["a", "b"]])}, "input 'sample' has dtype <U1, and the graph takes float32"),
        ({"sample": [[1.0, 2.0], [3.0]]}, "input 'sample' is not an array: "),
        ({"sample": torch.ones(1, 2, requires_grad=True)}, "input 'sample' is not an array: (?s:.*)requires grad"),
        ({"sample": torch.ones(1, 2, dtype=torch.bfloat16)}, "input 'sample' is not an array: (?s:.*)BFloat16"),
        ({"sample": torch.ones(1, 2, device="meta")}, "input 'sample' is not an array: (?s:.*)meta"),
        ({"sample": np.ones((2,), np.float32)}, r"input 'sample' has shape \[2\], and the graph takes \[any, 2\]"),
        ({"sample": np.ones((2, 2), np.float32)}, "the inputs' batches differ: sample has 2, class_labels has 1"),
        ({"class_labels": np.array([1.5])}, "input 'class_labels' has 1.5 in it, which is not of type int64"),
        ({"class_labels": np.array([np.nan])}, "input 'class_labels' has nan in it, which is not of type int64"),
        ({"class_labels": np.array([2**63], np.uint64)}, "input 'class_labels' has 9223372036854775808 in it, which is not of type int64"),
        ({"class_labels": np.array([3])}, "input 'class_labels' is 3, and the graph has entries 0 to 2 for it"),
        ({"class_labels": np.array([-1])}, "input 'class_labels' is -1, and the graph has entries 0 to 2 for it"),
    ],
)
def test_what_a_float_model_refuses_is_refused(engine: type[GraphRunner], tmp_path: Path, inputs: dict[str, object], message: str) -> None:
    runner = engine(write_graph(tmp_path / "graph.onnx", CLASSES))
    right = {"sample": np.zeros((1, 2), np.float32), "class_labels": np.array([1])}
    np.testing.assert_array_equal(runner.run(right), [[100, 2]])
    np.testing.assert_array_equal(runner.run({**right, "class_labels": np.array([1.0])}), [[100, 2]])
    with pytest.raises(UsageError, match=message):
        runner.run({**right, **inputs})
