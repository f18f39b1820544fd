"""Running an engine of TensorRT: everything is compared before anything is deserialized, and what runs is what was asked for."""

from __future__ import annotations

import importlib.util
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dq_deploy.artifacts import Artifact
from dq_deploy.engines.build.engine import build_engine
from dq_deploy.engines.dropin import load
from dq_deploy.engines.onnxruntime.runner import OnnxRuntimeRunner
from dq_deploy.engines.tensorrt import runner as tensorrt_runner
from dq_deploy.engines.tensorrt.descriptor import TENSORRT_RTX
from dq_deploy.engines.tensorrt.runner import TensorRtRunner
from dq_deploy.errors import ArtifactError, DqDeployError, EnvironmentProblem, UsageError
from tests.engines import graphs
from tests.engines.tensorrt.fake import FakeTensorRT, HostDevice, engine_of, install
from tests.flow import altered_manifest


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return graphs.any_size(tmp_path_factory.mktemp("bundle") / "bundle")


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A bundle of one size: [batch, 16, 8, 8]."""
    graph = graphs.Graph()
    return graphs.make_bundle(
        tmp_path_factory.mktemp("bundle") / "bundle", graph, graph.conv("sample", "layer", 16, 16), ["batch", 16, 8, 8]
    )


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    return install(monkeypatch)


def noise(batch: int) -> dict[str, Any]:
    sample = np.random.default_rng(batch).standard_normal((batch, 16, 8, 8)).astype(np.float32)
    return {"sample": sample, "timestep": np.arange(batch, dtype=np.float32)}


def refused(trt: FakeTensorRT, engine: Path, kind: type[DqDeployError]) -> str:
    """The message of an engine that must not be deserialized."""
    with pytest.raises(kind) as caught:
        TensorRtRunner(engine, device=HostDevice())  # type: ignore[arg-type]
    assert trt.calls == []
    return str(caught.value)


@pytest.mark.parametrize("graphs_on", [False, True])
def test_runs_mixed_timesteps_of_every_batch(trt: FakeTensorRT, fixed: Artifact, tmp_path: Path, graphs_on: bool) -> None:
    device = HostDevice()
    runner = TensorRtRunner(engine_of(fixed, tmp_path / "engine"), cuda_graphs=graphs_on, device=device)  # type: ignore[arg-type]
    reference = OnnxRuntimeRunner(fixed, optimized=False)
    for batch in (3, 1, 4, 3):
        np.testing.assert_allclose(runner.run(noise(batch)), reference.run(noise(batch)), rtol=1e-5, atol=1e-5)
    assert trt.calls[:2] == ["Runtime", "deserialize with host code False"]
    assert set(trt.calls[2:]) == {"create_execution_context", "execute on stream 7"}
    # With graphs each shape has a context of its own, and is captured once.
    assert trt.calls.count("create_execution_context") == (3 if graphs_on else 1)
    assert device.replays == (4 if graphs_on else 0)
    assert runner.details["cuda_graphs"] == ("on" if graphs_on else "off")
    assert (runner.name, runner.details["provider"], runner.details["compute_capability"]) == ("tensorrt", "a GPU that is none", "8.9")


def test_what_is_not_finite_never_reaches_the_gpu(trt: FakeTensorRT, fixed: Artifact, tmp_path: Path) -> None:
    inputs = noise(3)
    inputs["sample"][1, 2, 3, 4] = np.nan
    engine = engine_of(fixed, tmp_path / "engine", rows={"timestep": 7})
    runner = TensorRtRunner(engine, device=HostDevice())  # type: ignore[arg-type]
    assert {spec.name: spec.entries for spec in runner.specs} == {"sample": None, "timestep": 7}
    with pytest.raises(UsageError, match=r"input 'sample' has 1 value that is not finite in float32, the first nan at \[1, 2, 3, 4\]"):
        runner.run(inputs)
    assert "execute on stream 7" not in trt.calls
    runner = TensorRtRunner(engine, device=HostDevice(), nonfinite="propagate")  # type: ignore[arg-type]
    assert trt.engine is not None
    trt.engine.session.nonfinite = "propagate"
    assert [np.isnan(output).all() for output in runner.run(inputs)] == [False, True, False]


def test_what_cannot_be_captured_runs_without_a_graph_and_says_so(trt: FakeTensorRT, fixed: Artifact, tmp_path: Path) -> None:
    device = HostDevice(capturable=False)
    runner = TensorRtRunner(engine_of(fixed, tmp_path / "engine"), cuda_graphs=True, device=device)  # type: ignore[arg-type]
    assert runner.run(noise(2)).shape == (2, 16, 8, 8)
    assert runner.details["cuda_graphs"] == "not possible: operation not permitted when stream is capturing"


def test_sizes_outside_of_the_profile_are_refused(trt: FakeTensorRT, fixed: Artifact, tmp_path: Path) -> None:
    runner = TensorRtRunner(engine_of(fixed, tmp_path / "engine"), device=HostDevice())  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"the engine was built for \[1, 16, 8, 8\] to \[4, 16, 8, 8\]"):
        runner.run(noise(5))


def test_an_engine_that_fails_to_run_is_no_result(trt: FakeTensorRT, fixed: Artifact, tmp_path: Path) -> None:
    runner = TensorRtRunner(engine_of(fixed, tmp_path / "engine"), device=HostDevice())  # type: ignore[arg-type]
    assert trt.engine is not None
    trt.engine.fails = True
    with pytest.raises(ArtifactError, match="the engine failed to run"):
        runner.run(noise(2))


def test_tampered_engine(trt: FakeTensorRT, fixed: Artifact, tmp_path: Path) -> None:
    engine = engine_of(fixed, tmp_path / "engine")
    with engine.file("model.sm89.engine").open("r+b") as stream:
        stream.write(b"\x7f")
    text = refused(trt, engine.path, ArtifactError)
    assert "'model.sm89.engine' has another sha256" in text
    assert f"build it again with: dq-deploy build-engine {fixed.path} -o {engine.path} --backend tensorrt --batch 1,2,4 --force" in text


def test_engine_that_changes_after_it_was_verified(trt: FakeTensorRT, fixed: Artifact, tmp_path: Path) -> None:
    engine = engine_of(fixed, tmp_path / "engine")
    engine.file("model.sm89.engine").write_bytes(b"another program")
    with pytest.raises(ArtifactError, match="'model.sm89.engine' has another sha256"):
        TensorRtRunner(engine, device=HostDevice())  # type: ignore[arg-type]
    assert not [call for call in trt.calls if call.startswith("deserialize")]


def test_truncated_engine(trt: FakeTensorRT, fixed: Artifact, tmp_path: Path) -> None:
    engine = engine_of(fixed, tmp_path / "engine")
    file = engine.file("model.sm89.engine")
    file.write_bytes(file.read_bytes()[:20])
    assert "'model.sm89.engine' has 20 bytes, not" in refused(trt, engine.path, ArtifactError)


def test_other_version(trt: FakeTensorRT, fixed: Artifact, tmp_path: Path) -> None:
    engine = engine_of(fixed, tmp_path / "engine", version="10.8.0.43")
    text = refused(trt, engine.path, EnvironmentProblem)
    assert "was built with TensorRT 10.8.0.43, and 10.9.0.34 is installed" in text
    assert f"install tensorrt==10.8.0.43, or build it again with: dq-deploy build-engine {fixed.path}" in text


@pytest.mark.parametrize(("version", "fits"), [("10.8.0.43", True), ("10.9.1.0", False), ("9.3.0.1", False), ("11.0.0.1", False)])
def test_version_compatible_engine(trt: FakeTensorRT, fixed: Artifact, tmp_path: Path, version: str, fits: bool) -> None:
    engine = engine_of(fixed, tmp_path / "engine", version=version, options={"version_compatible": True})
    if fits:
        assert TensorRtRunner(engine, device=HostDevice()).run(noise(1)).shape == (1, 16, 8, 8)  # type: ignore[arg-type]
    else:
        assert "--version-compatible --force" in refused(trt, engine.path, EnvironmentProblem)


def test_other_compute_capability(fixed: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = install(monkeypatch, (8, 6))
    text = refused(trt, engine_of(fixed, tmp_path / "engine").path, EnvironmentProblem)
    assert "was built for compute capability 8.9, and this machine's GPU has 8.6" in text
    built_ahead = engine_of(fixed, tmp_path / "rtx", backend="tensorrt-rtx", options={"workspace_mb": 64})
    text = refused(trt, built_ahead.path, EnvironmentProblem)
    assert "--backend tensorrt-rtx --compute-capability 8.9 --compute-capability 8.6 --batch 1,2,4 --workspace-mb 64 --force" in text
    trt = install(monkeypatch, (9, 0))
    text = refused(trt, built_ahead.path, EnvironmentProblem)
    assert "TensorRT-RTX does not build for it; build it again with: dq-deploy build-engine" in text
    assert "--backend tensorrt --batch 1,2,4 --force" in text


def test_hardware_compatible_engine(fixed: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(fixed, tmp_path / "engine", options={"hardware_compatibility": "ampere-plus"})
    install(monkeypatch, (9, 0))
    assert TensorRtRunner(engine, device=HostDevice()).details["compute_capability"] == "9.0"  # type: ignore[arg-type]
    refused(install(monkeypatch, (7, 5)), engine.path, EnvironmentProblem)


def test_other_backend(trt: FakeTensorRT, fixed: Artifact, tmp_path: Path) -> None:
    engine = engine_of(fixed, tmp_path / "engine", backend="openvino")
    assert "is an engine of OpenVINO, and one of TensorRT or TensorRT-RTX is needed here" in refused(trt, engine.path, ArtifactError)


def test_manifest_that_is_no_engine_s(trt: FakeTensorRT, fixed: Artifact, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is not a valid engine of this dq-deploy: engines: List should have at least 1 item"):
        engine_of(fixed, tmp_path / "engine", engines=[])
    engine = engine_of(fixed, tmp_path / "other", backend="tvm")
    assert "is an engine of 'tvm', and no engine here is called so: tensorrt-rtx, tensorrt, openvino" in refused(
        trt, engine.path, ArtifactError
    )


def test_file_outside_of_the_folder_is_not_read(trt: FakeTensorRT, fixed: Artifact, tmp_path: Path) -> None:
    outside = [{"compute_capability": "8.9", "file": "../secret", "report": "layers.sm89.json"}]
    engine = engine_of(fixed, tmp_path / "engine", engines=outside)
    with pytest.raises(ArtifactError, match="the manifest lists no file '../secret'"):
        TensorRtRunner(engine, device=HostDevice())  # type: ignore[arg-type]


def test_engine_that_tensorrt_does_not_load(trt: FakeTensorRT, fixed: Artifact, tmp_path: Path) -> None:
    engine = engine_of(fixed, tmp_path / "engine", plan=b"refused")
    with pytest.raises(ArtifactError, match=r"TensorRT does not load (?s:.*)build it again with"):
        TensorRtRunner(engine, device=HostDevice())  # type: ignore[arg-type]


def test_no_gpu(fixed: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = install(monkeypatch)

    def missing() -> tuple[int, int]:
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(tensorrt_runner, "gpu_compute_capability", missing)
    text = refused(trt, engine_of(fixed, tmp_path / "engine").path, EnvironmentProblem)
    assert "is an engine for an NVIDIA GPU, and none can be used here: libcuda.so.1" in text
    for part in ("run it on a machine with a GPU of compute capability", "torch with CUDA", "--backend openvino"):
        assert part in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch has a GPU here")
def test_torch_without_cuda(trt: FakeTensorRT, fixed: Artifact, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="cannot use this machine's GPU(?s:.*)install a build of torch with CUDA"):
        TensorRtRunner(engine_of(fixed, tmp_path / "engine"))
    assert trt.calls == []


def test_the_printed_command_survives_a_shell(trt: FakeTensorRT, fixed: Artifact, tmp_path: Path) -> None:
    engine = engine_of(fixed, tmp_path / "an engine; rm -rf", bundle="a bundle $(touch x)", version="10.8.0.43")
    words = shlex.split(refused(trt, engine.path, EnvironmentProblem).partition("again with: ")[2])
    assert words[:5] == ["dq-deploy", "build-engine", "a bundle $(touch x)", "-o", str(engine.path)]


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed")
def test_real_engine_of_another_version_is_refused_with_the_real_library(bundle: Artifact, tmp_path: Path) -> None:
    sizes = {"height": (8, 8, 8), "width": (8, 8, 16)}
    engine = build_engine(bundle, tmp_path / "engine", compute_capabilities=["8.9"], sizes=sizes, batch=(1, 1, 2))
    other = altered_manifest(engine, tmp_path / "other", details=engine.manifest.details | {"version": "1.0.0.1"})
    with pytest.raises(EnvironmentProblem, match=r"was built with TensorRT-RTX 1\.0\.0\.1, and \d") as caught:
        load(other.path)
    words = shlex.split(str(caught.value).partition("again with: ")[2])
    # The command that the error prints is one that the command line takes.
    from dq_deploy.cli import run

    assert run([*words[1:], "-q"]) == 0
    if not torch.cuda.is_available():
        with pytest.raises(EnvironmentProblem):
            load(other.path)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_gpu_engine_computes_what_its_bundle_does(tiny_bundle: Artifact, tmp_path: Path, backend: str, cuda_graphs: bool) -> None:
    if importlib.util.find_spec(backend.replace("-", "_")) is None:
        pytest.skip(f"{backend} is not installed")
    major, minor = torch.cuda.get_device_capability()
    if backend == "tensorrt-rtx" and f"{major}.{minor}" not in TENSORRT_RTX.building.compute_capabilities:
        pytest.skip(f"TensorRT-RTX does not build for compute capability {major}.{minor}")
    capabilities = {"compute_capabilities": [f"{major}.{minor}"]} if backend == "tensorrt-rtx" else {}
    engine = build_engine(tiny_bundle, tmp_path / "engine", backend=backend, batch=(1, 2, 4), **capabilities)
    runner, reference = TensorRtRunner(engine, cuda_graphs=cuda_graphs), OnnxRuntimeRunner(tiny_bundle)
    generator = np.random.default_rng(0)
    for batch in (1, 4, 2, 4):
        inputs = {"sample": generator.standard_normal((batch, 1, 8, 8)), "timestep": np.linspace(0, 750, batch)}
        np.testing.assert_allclose(runner.run(inputs), reference.run(inputs), rtol=1e-2, atol=1e-2)
    assert runner.details["cuda_graphs"] == ("on" if cuda_graphs else "off")
