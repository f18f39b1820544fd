"""The parity gate on real bundles: it passes on what was exported, and fails on every kind of wrong number, naming the layer."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from dq_deploy.accuracy import CheckResult, check
from dq_deploy.accuracy.local import LayerParity, _taken_off
from dq_deploy.accuracy.verdict import failures_of
from dq_deploy.artifacts import Artifact
from dq_deploy.engines.build.engine import build_engine
from dq_deploy.engines.openvino.runner import OpenVinoRunner
from dq_deploy.errors import AccuracyGateError, ArtifactError, EnvironmentProblem, UsageError
from dq_deploy.quantization import load_checkpoint
from dq_deploy.quantization.quantizers import Quantized
from dq_deploy.quantization.table_rows import parts
from tests.flow import STEPS, Flow, altered, altered_manifest

TARGETS = ["qdq", "onnxruntime"]
CONV = "down_blocks.0.resnets.0.conv2"
LINEAR = "time_embedding.linear_2"
PRODUCT = "down_blocks.0.attentions.0.matmul"
Edit = Callable[[np.ndarray], np.ndarray]


@pytest.fixture(scope="module")
def openvino_engine(flow: Flow, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Of the fp32 bundle, for batches of 1 to 3: fewer than there are reference samples."""
    return build_engine(flow.bundle("qdq"), tmp_path_factory.mktemp("engine") / "engine", backend="openvino", batch=(1, 2, 3))


def edited(bundle: Artifact, path: Path, name: str, edit: Edit) -> Artifact:
    """A copy of the bundle with initializer ``name`` changed, and nothing else."""

    def change(model: onnx.ModelProto) -> None:
        (tensor,) = (t for t in model.graph.initializer if t.name == name)
        before = numpy_helper.to_array(tensor)
        after = edit(before.copy())
        assert after.shape == before.shape
        assert not np.array_equal(after, before)
        tensor.CopyFrom(numpy_helper.from_array(after.astype(before.dtype), name))

    return altered(bundle, path, change)


def shifted(table: np.ndarray) -> np.ndarray:
    return np.roll(table, 1)


def one_off(row: int) -> Edit:
    def edit(table: np.ndarray) -> np.ndarray:
        table[row] += 1
        return table

    return edit


def local_failures(result: CheckResult) -> set[str]:
    return {row.layer for row in result.layers if not row.passed}


def judged(flow: Flow, bundle: Artifact) -> CheckResult:
    return check(bundle, flow.checkpoint, optimized=False)


@pytest.mark.parametrize("name", ["qdq", "onnxruntime", "qdq-fp16"])
def test_passes_on_what_was_exported(flow: Flow, name: str) -> None:
    result = check(flow.bundles[name], flow.checkpoint)
    assert result.failures == []
    assert result
    result.enforce()
    assert {row.layer for row in result.layers} == {layer["name"] for layer in flow.bundle(name).manifest.details["layers"]}
    assert [row.timestep for row in result.timesteps] == flow.bundle(name).manifest.timesteps
    assert len(result.timesteps) == STEPS
    for row in result.layers:
        assert row.code_elements > 0
        assert row.output_elements > 0
    for step in result.timesteps:
        assert step.snr_optimized_db is not None
        assert step.difference_db <= 0.5
    assert result.worst_layer is not None
    assert result.worst_timestep is not None
    assert result.worst_timestep.snr_bundle_db == min(row.snr_bundle_db for row in result.timesteps)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("layer", [CONV, LINEAR])
def test_fails_on_a_scale_table_shifted_by_one_row(flow: Flow, tmp_path: Path, target: str, layer: str) -> None:
    result = judged(flow, edited(flow.bundle(target), tmp_path / "b", f"{layer}.input.scale", shifted))
    assert not result
    assert local_failures(result) == {layer}
    assert result.worst_layer is not None
    assert result.worst_layer.layer == layer
    assert layer in result.failures[0]
    assert re.search(r"[1-9]\d* of \d+ codes differ by up to \d+ \(allowed \d+, 1\), output by ", result.failures[0])
    with pytest.raises(AccuracyGateError, match=layer):
        result.enforce()


@pytest.mark.parametrize("target", TARGETS)
def test_fails_on_a_shifted_table_of_an_attention_product(flow: Flow, tmp_path: Path, target: str) -> None:
    result = judged(flow, edited(flow.bundle(target), tmp_path / "b", f"{PRODUCT}.lhs.scale", shifted))
    assert local_failures(result) == {PRODUCT}
    assert PRODUCT in result.failures[0]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("row", [0, STEPS - 1])
def test_fails_on_one_zero_point_off_by_one(flow: Flow, tmp_path: Path, target: str, row: int) -> None:
    bundle = flow.bundle(target)
    result = judged(flow, edited(bundle, tmp_path / "b", f"{CONV}.input.zero_point", one_off(row * parts(STEPS))))
    assert not result
    assert local_failures(result) == {CONV}
    assert result.worst_layer is not None
    assert result.worst_layer.worst_timestep == bundle.manifest.timesteps[row]
    assert result.failures[0].startswith(f"layer {CONV}, worst at timestep {bundle.manifest.timesteps[row]:g}")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("table", ["scale", "zero_point"])
def test_fails_on_a_row_between_the_calibrated_ones(flow: Flow, tmp_path: Path, target: str, table: str) -> None:
    def edit(values: np.ndarray) -> np.ndarray:
        values[1] = values[1] * 2 if table == "scale" else values[1] + 1
        return values

    result = judged(flow, edited(flow.bundle(target), tmp_path / "b", f"{CONV}.input.{table}", edit))
    assert not result
    (failure,) = result.failures
    assert failure.startswith(f"table {CONV}.input: 1 of")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("layer", [CONV, LINEAR])
def test_fails_on_a_dropped_bias(flow: Flow, tmp_path: Path, target: str, layer: str) -> None:
    result = judged(flow, edited(flow.bundle(target), tmp_path / "b", f"{layer}.bias", np.zeros_like))
    assert not result
    assert local_failures(result) == {layer}
    (row,) = (r for r in result.layers if r.layer == layer)
    assert row.code_mismatches == 0
    assert layer in result.failures[0]


@pytest.mark.parametrize("target", TARGETS)
def test_fails_on_a_weight_code_off_by_one(flow: Flow, tmp_path: Path, target: str) -> None:
    def edit(codes: np.ndarray) -> np.ndarray:
        first = (0,) * codes.ndim
        codes[first] += 1 if codes[first] < 127 else -1
        return codes

    result = judged(flow, edited(flow.bundle(target), tmp_path / "b", f"{CONV}.weight.codes", edit))
    assert local_failures(result) == {CONV}
    assert CONV in result.failures[0]


@pytest.mark.parametrize("target", TARGETS)
def test_fails_on_row_boundaries_moved_past_a_timestep(flow: Flow, tmp_path: Path, target: str) -> None:
    bundle = flow.bundle(target)
    result = judged(flow, edited(bundle, tmp_path / "b", "dq_deploy.boundaries", lambda b: b + np.diff(bundle.manifest.timesteps)[0]))
    assert not result
    assert len(local_failures(result)) > len(result.layers) / 2


@pytest.mark.parametrize("target", TARGETS)
def test_nan_in_the_graph_is_a_failure_that_ranks_first(flow: Flow, tmp_path: Path, target: str) -> None:
    result = judged(flow, edited(flow.bundle(target), tmp_path / "b", f"{CONV}.bias", lambda b: np.full_like(b, np.nan)))
    assert not result
    assert local_failures(result) == {CONV}
    assert result.worst_layer is not None
    assert result.worst_layer.layer == CONV
    assert CONV in result.failures[0]
    assert not any(row.passed for row in result.timesteps)


def test_a_calibrated_timestep_without_reference_is_a_failure(flow: Flow, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    from dq_deploy.artifacts import create_artifact, open_artifact

    source = open_artifact(flow.checkpoint, "checkpoint")
    with create_artifact(tmp_path / "c", source.manifest.model_copy(deep=True)) as work:
        for name in source.manifest.files:
            (work / name).write_bytes(source.file(name).read_bytes())
        tensors = load_file(work / "reference.safetensors")
        save_file({k: torch.clone(v[1:]) for k, v in tensors.items()}, work / "reference.safetensors")
    changed = open_artifact(tmp_path / "c", "checkpoint")
    bundle = altered_manifest(flow.bundle("qdq"), tmp_path / "b", parent=changed.as_parent)
    result = check(bundle, changed, optimized=False)
    assert not result
    assert result.failures == [f"timesteps not compared: {source.manifest.timesteps[0]:g}"]


def test_nothing_compared_is_a_failure() -> None:
    failures = failures_of([], [], {"": []}, [0.0, 500.0])
    assert failures == ["timesteps not compared: 0, 500", "no layer was compared"]
    empty = CheckResult(bundle="b", target="qdq", dtype="fp32", layers=[], timesteps=[], failures=failures)
    assert not empty
    assert str(empty) == "b fails the check: timesteps not compared: 0, 500; no layer was compared"
    assert empty.worst_layer is None
    assert empty.worst_timestep is None
    assert failures_of([], [], {}, [0.0]) == ["nothing was compared"]
    assert failures_of([], [], {"openvino": []}, [0.0]) == ["openvino, timesteps not compared: 0"]
    assert failures_of([], [], {"openvino": []}, []) == ["openvino, timesteps not compared: all"]


def test_no_samples_at_a_timestep_are_no_agreement(flow: Flow, tmp_path: Path) -> None:
    """Two empty tensors are equal: a reference without samples must not pass for a perfect one."""
    import torch
    from safetensors.torch import load_file, save_file

    from dq_deploy.artifacts import create_artifact, open_artifact

    source = open_artifact(flow.checkpoint, "checkpoint")
    with create_artifact(tmp_path / "c", source.manifest.model_copy(deep=True)) as work:
        for name in source.manifest.files:
            (work / name).write_bytes(source.file(name).read_bytes())
        tensors = load_file(work / "reference.safetensors")
        empty = {k: v if k == "timesteps" else torch.clone(v[:, :0]) for k, v in tensors.items()}
        save_file(empty, work / "reference.safetensors")
    changed = open_artifact(tmp_path / "c", "checkpoint")
    try:
        result = check(altered_manifest(flow.bundle("qdq"), tmp_path / "b", parent=changed.as_parent), changed, optimized=False)
    except (ArtifactError, RuntimeError, IndexError):  # or nothing can be run on an empty batch
        return
    assert not result
    assert not any(step.passed for step in result.timesteps)


def test_a_layer_without_elements_does_not_pass() -> None:
    assert LayerParity(layer="x", code_elements=1, output_elements=1).passed
    assert not LayerParity(layer="x", code_elements=0, output_elements=1).passed
    assert not LayerParity(layer="x", code_elements=1, output_elements=0).passed
    assert not LayerParity(layer="x", code_elements=1, output_elements=1, output_error=float("nan")).passed


@pytest.mark.parametrize(("codes", "flips"), [(16, 1), (1_999, 1), (2_000, 2), (3_072, 3), (30_000, 3), (50_000, 5), (10**6, 100)])
def test_a_tie_or_two_among_few_codes_are_no_fault(codes: int, flips: int) -> None:
    """Two of 3072 codes, 0.065%, differed in a right graph."""
    row = LayerParity(layer="x", code_elements=codes, output_elements=1, code_step=1)
    assert row.model_copy(update={"code_mismatches": flips}).passed
    assert row.model_copy(update={"code_mismatches": flips}).severity <= 1
    assert not row.model_copy(update={"code_mismatches": flips + 1}).passed
    assert row.model_copy(update={"code_mismatches": flips + 1}).severity > 1
    assert not row.model_copy(update={"code_mismatches": 1, "code_step": 2}).passed
    assert not row.model_copy(update={"code_mismatches": 1, "weight_codes": True}).passed


def test_layers_missing_from_the_bundle_are_refused(flow: Flow, tmp_path: Path) -> None:
    bundle = flow.bundle("qdq")
    details = {**bundle.manifest.details, "layers": [x for x in bundle.manifest.details["layers"] if x["name"] != CONV]}
    with pytest.raises(ArtifactError, match=CONV):
        check(altered_manifest(bundle, tmp_path / "b", details=details), flow.checkpoint)


def test_a_quantizer_missing_from_the_bundle_is_no_pass(flow: Flow, tmp_path: Path) -> None:
    bundle = flow.bundle("qdq")
    kept = [x for x in bundle.manifest.details["quantizers"] if x["name"] != f"{CONV}.input"]
    changed = altered_manifest(bundle, tmp_path / "b", details={**bundle.manifest.details, "quantizers": kept})
    with pytest.raises(ArtifactError, match=CONV):
        check(changed, flow.checkpoint)


def test_another_checkpoint_is_refused(flow: Flow, tmp_path: Path) -> None:
    from dq_deploy.artifacts import open_artifact

    source = open_artifact(flow.checkpoint, "checkpoint")
    other = altered_manifest(source, tmp_path / "other", model="another")
    with pytest.raises(ArtifactError, match="was not exported from"):
        check(flow.bundles["qdq"], other)


def test_the_float_baseline_is_refused(flow: Flow) -> None:
    with pytest.raises(UsageError, match="float baseline"):
        check(flow.bundles["float"], flow.checkpoint)


def test_a_built_engine_is_compared_where_it_runs(openvino_engine: Artifact, flow: Flow) -> None:
    result = check(openvino_engine, flow.checkpoint)
    assert result, result.failures
    assert (result.layers, result.timesteps) == ([], [])
    (engine,) = result.engines
    assert (engine.engine, engine.details["precision"]) == ("openvino", "f32")
    assert [row.timestep for row in engine.timesteps] == openvino_engine.manifest.timesteps
    assert result.worst_timestep in engine.timesteps


def test_an_engine_that_computes_something_else_is_found_out(
    openvino_engine: Artifact, flow: Flow, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = OpenVinoRunner._infer
    monkeypatch.setattr(OpenVinoRunner, "_infer", lambda self, feeds: right(self, feeds) * np.float32(0.9))
    result = check(openvino_engine, flow.checkpoint)
    assert not result
    assert all(failure.startswith("openvino, timestep") for failure in result.failures)
    assert len(result.failures) == len(openvino_engine.manifest.timesteps)
    monkeypatch.setattr(OpenVinoRunner, "_infer", lambda self, feeds: right(self, feeds) * np.float32("nan"))
    assert not check(openvino_engine, flow.checkpoint)


def test_an_engine_of_another_checkpoint_is_refused(openvino_engine: Artifact, flow: Flow, tmp_path: Path) -> None:
    for number, sha256 in enumerate(("0" * 64, None)):
        other = {**openvino_engine.manifest.details, "checkpoint_sha256": sha256}
        with pytest.raises(ArtifactError, match="was not exported from"):
            check(altered_manifest(openvino_engine, tmp_path / str(number), details=other), flow.checkpoint)


def test_an_engine_that_cannot_run_here_is_no_verdict(openvino_engine: Artifact, flow: Flow, tmp_path: Path) -> None:
    elsewhere = {**openvino_engine.manifest.details, "backend": "tensorrt-rtx"}
    with pytest.raises(EnvironmentProblem):
        check(altered_manifest(openvino_engine, tmp_path / "rtx", details=elsewhere), flow.checkpoint)
    with pytest.raises(UsageError, match="does not run on onnxruntime"):
        check(openvino_engine, flow.checkpoint, engines=["onnxruntime"])


def test_a_bundle_is_compared_on_other_engines_too(flow: Flow) -> None:
    result = check(flow.bundles["qdq"], flow.checkpoint, engines=["openvino", "onnxruntime"], optimized=False)
    assert result, result.failures
    assert [engine.engine for engine in result.engines] == ["openvino", "onnxruntime"]
    assert result.layers
    with pytest.raises(EnvironmentProblem, match="CUDAExecutionProvider"):
        check(flow.bundles["qdq"], flow.checkpoint, engines=["onnxruntime-cuda"])
    with pytest.raises(UsageError, match=r"is a bundle, and tensorrt-rtx runs engines(?s:.*)build-engine"):
        check(flow.bundles["qdq"], flow.checkpoint, engines=["tensorrt-rtx"])


def test_a_layer_is_judged_beside_what_its_zero_point_takes_off(flow: Flow) -> None:
    """A network of trained weights has sums that nearly cancel: fp32 rounds them at the size that they had."""
    layer = load_checkpoint(flow.checkpoint).layers["time_embedding.linear_2"]
    codes, scale = layer.frozen
    assert layer.bias is not None
    shift = Quantized(torch.full((1, codes.shape[1]), -100.0), torch.tensor([0.01]))
    by_hand = -100.0 * 0.01 * codes.double().sum(dim=1) * scale.double() + layer.bias.double()
    with torch.no_grad():
        assert _taken_off(layer, ["x"], {}, {("x", ()): shift}) == pytest.approx(float(by_hand.abs().max()), rel=1e-5)
        assert _taken_off(layer, ["x"], {("x", ()): shift}, {}) == 0.0
