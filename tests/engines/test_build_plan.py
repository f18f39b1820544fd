"""Every check before a build, by its message."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import onnx
import pytest

from dq_deploy.artifacts import Artifact, Manifest, create_artifact, open_artifact
from dq_deploy.artifacts.details import GraphInput
from dq_deploy.engines.build.plan import check_capabilities, check_graph, default_batch, input_profile
from dq_deploy.engines.descriptors.registry import builder_named
from dq_deploy.engines.tensorrt.descriptor import TENSORRT, TENSORRT_RTX
from dq_deploy.errors import ArtifactError, EnvironmentProblem, UsageError
from tests.engines import graphs

INPUTS = [
    GraphInput(name="sample", dtype="float32", shape=["batch", 4, "height", "width"]),
    GraphInput(name="timestep", dtype="float32", shape=["batch"]),
]
SIZES = {"height": (8, 16, 32), "width": (8, 8, 8)}


def test_unknown_backend_lists_those_that_exist() -> None:
    with pytest.raises(UsageError, match=r"unknown engine backend 'trt'\n(did you mean .*\? )?choose one of: tensorrt-rtx, tensorrt"):
        builder_named("trt")


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is installed")
def test_missing_tensorrt_names_the_command_and_the_ways_out() -> None:
    with pytest.raises(EnvironmentProblem) as caught:
        TENSORRT.check()
    assert caught.value.exit_code == 4
    text = str(caught.value)
    for part in ("python -m pip install ", '"tensorrt>=10"', "NVIDIA's own package index", "GPU", "--backend tensorrt-rtx"):
        assert part in text


def test_capabilities() -> None:
    assert check_capabilities(TENSORRT_RTX, None) == [(8, 9), (12, 0)]
    assert check_capabilities(TENSORRT_RTX, ["12.1", "7.5", "12.1"]) == [(12, 1), (7, 5)]
    assert check_capabilities(TENSORRT, None) == [None]


def test_bad_capabilities_are_all_named() -> None:
    with pytest.raises(UsageError) as caught:
        check_capabilities(TENSORRT_RTX, ["8.9", "9.0", "sm_89", "6.1"])
    text = str(caught.value)
    assert "compute capability 9.0, sm_89, 6.1" in text
    assert "9.0 is Hopper, which only --backend tensorrt builds for" in text
    assert "7.5, 8.0, 8.6, 8.9, 12.0, 12.1" in text
    with pytest.raises(UsageError, match="no compute capability was given"):
        check_capabilities(TENSORRT_RTX, [])


def test_capabilities_do_not_apply_to_tensorrt() -> None:
    with pytest.raises(UsageError, match="does not apply"):
        check_capabilities(TENSORRT, ["8.9"])


def test_profile_fills_in_the_dynamic_dimensions() -> None:
    profile = input_profile(INPUTS, (1, 2, 8), SIZES)
    assert profile == {"sample": ((1, 4, 8, 8), (2, 4, 16, 8), (8, 4, 32, 8)), "timestep": ((1,), (2,), (8,))}


@pytest.mark.parametrize(("samples", "batch"), [(1, (1, 1, 8)), (2, (1, 2, 8)), (9, (1, 9, 9))])
def test_the_usual_batch_is_that_of_one_image(tmp_path: Path, samples: int, batch: tuple[int, int, int]) -> None:
    details = graphs.network(tmp_path / "bundle").details
    assert default_batch(details.model_copy(update={"samples_per_image": samples})) == batch


@pytest.mark.parametrize("batch", [(0, 1, 8), (2, 1, 8), (1, 9, 8), (1, 8)])
def test_bad_batch(batch: Any) -> None:
    with pytest.raises(UsageError, match="not a range: batch"):
        input_profile(INPUTS, batch, SIZES)


def test_sizes_must_fit_the_graph() -> None:
    with pytest.raises(UsageError, match=r"dynamic dimension\(s\) height, width, which need a range"):
        input_profile(INPUTS, (1, 1, 8), {})
    with pytest.raises(UsageError, match="no dynamic dimension tokens"):
        input_profile(INPUTS, (1, 1, 8), SIZES | {"tokens": (77, 77, 77)})


def altered(bundle: Artifact, path: Path, *, external: str = "", keys: tuple[str, ...] = (), inputs: list[Any] | None = None) -> Artifact:
    """A bundle that is valid by its manifest, with another data file named in its graph, or other inputs declared."""
    model = onnx.load(bundle.path / "model.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = external if external and entry.key == "location" else entry.value
        for key in keys:
            tensor.external_data.add(key=key, value="1")
    details = bundle.manifest.details | ({"inputs": inputs} if inputs else {})
    with create_artifact(path, Manifest(kind="bundle", model="tests:graph", details=details)) as work:
        (work / "model.onnx").write_bytes(model.SerializeToString())
        (work / "model.onnx.data").write_bytes((bundle.path / "model.onnx.data").read_bytes())
    return open_artifact(path, "bundle")


@pytest.mark.parametrize("location", ["../secret", "a/../../b", "/etc/hostname", "manifest.json", "./model.onnx.data"])
def test_weights_from_elsewhere_are_refused(tmp_path: Path, location: str) -> None:
    good = graphs.network(tmp_path / "good", external=True)
    check_graph(good)
    bad = altered(good, tmp_path / "bad", external=location)
    with pytest.raises(ArtifactError, match="names data that must not be read") as caught:
        check_graph(bad)
    assert f"'{location}' " in str(caught.value)


def test_unknown_external_data_keys_are_refused(tmp_path: Path) -> None:
    bad = altered(graphs.network(tmp_path / "good", external=True), tmp_path / "bad", keys=("surprise",))
    with pytest.raises(ArtifactError, match=r"unknown key\(s\) surprise"):
        check_graph(bad)


def test_other_inputs_than_declared_are_refused(tmp_path: Path) -> None:
    inputs = [{"name": "sample", "dtype": "float32", "shape": ["batch", 8]}]
    bad = altered(graphs.network(tmp_path / "good", external=True), tmp_path / "bad", inputs=inputs)
    with pytest.raises(ArtifactError, match="the graph's inputs .* are not the manifest's"):
        check_graph(bad)


@pytest.mark.parametrize("content", [b"", b"\xff\x00 no protobuf", b"ftrt an engine by mistake"])
def test_no_graph_at_all(tmp_path: Path, content: bytes) -> None:
    details = graphs.network(tmp_path / "good").manifest.details
    with create_artifact(tmp_path / "bad", Manifest(kind="bundle", model="tests:graph", details=details)) as work:
        (work / "model.onnx").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"is not an ONNX graph|the graph's inputs"):
        check_graph(open_artifact(tmp_path / "bad", "bundle"))
