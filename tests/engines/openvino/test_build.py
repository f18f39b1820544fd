"""Engines of OpenVINO: what is in them, that they compute what their bundle does, and how they are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
import torch

from dq_deploy.artifacts import Artifact
from dq_deploy.engines.bench import bench, contenders_from
from dq_deploy.engines.build.engine import build_engine, load_report
from dq_deploy.engines.build.process import run_child
from dq_deploy.engines.build.request import BuildRequest
from dq_deploy.engines.dropin import load
from dq_deploy.engines.openvino.int8_kernels import int8_saturates
from dq_deploy.engines.openvino.runner import OpenVinoRunner
from dq_deploy.errors import ArtifactError, EnvironmentProblem, ResourceError, UsageError
from dq_deploy.sampling import sample
from tests.engines import graphs
from tests.flow import altered_manifest


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return graphs.network(tmp_path_factory.mktemp("bundle") / "bundle", external=True)


@pytest.fixture(scope="module")
def engine(bundle: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("engine") / "engine"
    return build_engine(bundle, folder, backend="openvino", batch=(1, 2, 4), int8_kernels="always")


@pytest.fixture(scope="module")
def float_engine(tiny_bundle: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return build_engine(tiny_bundle, tmp_path_factory.mktemp("engine") / "float", backend="openvino", batch=(1, 2, 16))


def noise(batch: int) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    return {"sample": generator.standard_normal((batch, 8, 8, 8)).astype(np.float32), "timestep": np.arange(batch, dtype=np.float32)}


def test_a_full_disk_says_so(bundle: Artifact, small_disk: Path) -> None:
    """OpenVINO says no more than "iostream error"."""
    (small_disk / "other").write_bytes(bytes((1 << 20) - 4096))
    with pytest.raises(ResourceError, match="the engine could not be written: No space left on device"):
        build_engine(bundle, small_disk / "engine", backend="openvino")
    assert [path.name for path in small_disk.iterdir()] == ["other"]


def test_engine_folder(engine: Artifact, bundle: Artifact) -> None:
    assert set(engine.manifest.files) == {"model.xml", "model.bin", "layers.cpu.json"}
    details = engine.manifest.details
    assert engine.manifest.parent == bundle.as_parent
    assert (details["backend"], details["version"]) == ("openvino", engine.manifest.tools["openvino"])
    assert details["profile"]["sample"] == [[1, 8, 8, 8], [2, 8, 8, 8], [4, 8, 8, 8]]
    assert (details["batch"], details["options"]) == ([1, 2, 4], {"int8_kernels": "always"})
    assert details["built_on"]["int8_saturates"] == int8_saturates()
    (entry,) = details["engines"]
    assert (entry["compute_capability"], entry["planned_layers"], entry["planned_int8"]) == (None, 8, 8)
    assert entry["weights_bytes"] > 0


def test_report_finds_every_planned_layer_in_int8(engine: Artifact) -> None:
    (report,) = load_report(engine)
    assert not report.not_as_planned()
    assert not report.not_found()
    assert report.int8_share("conv") == report.int8_share("gemm") == 1.0
    assert {kernel.type for kernel in report.kernels if kernel.precision} == {"Convolution", "FullyConnected", "MatMul"}
    assert "this machine's CPU" in report.statement
    assert "another CPU chooses again" in report.statement


def test_report_without_integer_kernels_is_float(bundle: Artifact, tmp_path: Path) -> None:
    (report,) = load_report(build_engine(bundle, tmp_path / "engine", backend="openvino", int8_kernels="never"))
    assert [layer.precision for layer in report.layers] == ["fp32"] * 8


def test_weights_keep_their_codes(engine: Artifact, tmp_path: Path) -> None:
    core = openvino.Core()
    kinds = {"i8": 6, "i4": 1}
    int4 = build_engine(graphs.int4_linear(tmp_path / "bundle"), tmp_path / "engine", backend="openvino")
    for artifact, kind in ((engine, "i8"), (int4, "i4")):
        constants = [op for op in core.read_model(artifact.file("model.xml")).get_ops() if op.get_type_name() == "Constant"]
        codes = [op for op in constants if op.get_friendly_name().endswith("weight.codes")]
        scales = [op for op in constants if op.get_friendly_name().endswith("weight.scale")]
        assert [op.get_element_type().get_type_name() for op in codes] == [kind] * kinds[kind]
        assert {op.get_element_type().get_type_name() for op in scales} == {"f32"}
    # Two codes to a byte, and nothing beside them but scales, bias and tables.
    assert int4.file("model.bin").stat().st_size < 64 * 64 / 2 + 64 * 8 + 512


def test_engine_computes_what_its_bundle_does_with_mixed_timesteps(engine: Artifact, bundle: Artifact) -> None:
    inputs = noise(4)
    runner = OpenVinoRunner(engine)
    assert runner.details["integer"] is True
    np.testing.assert_array_equal(runner.run(inputs), OpenVinoRunner(bundle, integer=True).run(inputs))
    np.testing.assert_array_equal(OpenVinoRunner(engine.path, integer=False).run(inputs), OpenVinoRunner(bundle, integer=False).run(inputs))


def test_sizes_outside_of_the_profile_are_refused_with_the_range(engine: Artifact) -> None:
    with pytest.raises(
        UsageError, match=r"'sample' has shape \[5, 8, 8, 8\], and the engine was built for \[1, 8, 8, 8\] to \[4, 8, 8, 8\]"
    ):
        OpenVinoRunner(engine).run(noise(5))


def test_float_engine_report_and_dropin(float_engine: Artifact, tiny_bundle: Artifact) -> None:
    (report,) = load_report(float_engine)
    assert set(report.by_precision("conv")) == set(report.by_precision("gemm")) == {"fp32"}
    assert report.layers == ()
    inputs = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.0, 250.0, 750.0])
    torch.testing.assert_close(load(float_engine)(*inputs).sample, load(tiny_bundle)(*inputs).sample, rtol=1e-4, atol=1e-5)
    with pytest.raises(UsageError, match="is an engine of openvino, and onnxruntime runs bundles\nleave the runtime at auto"):
        load(float_engine, runtime="onnxruntime")


def test_sample_and_bench_take_an_engine(float_engine: Artifact, tiny_bundle: Artifact, tmp_path: Path) -> None:
    drawn = [
        sample(path, tmp_path / f"{name}.png", n=17, steps=2, compare_float=False, runtime=runtime, batch_size=32)
        for name, path, runtime in (("engine", float_engine.path, "auto"), ("bundle", tiny_bundle.path, "openvino"))
    ]
    assert [result.engine for result in drawn] == ["openvino", "openvino"]
    assert (tmp_path / "engine.png").stat().st_size > 100
    contenders = contenders_from([tiny_bundle, float_engine], engines=["openvino"])
    assert [contender.name for contender in contenders] == ["bundle · openvino", "float · openvino"]
    result = bench(contenders, runs=2, warmup=0, batches=(2,))
    assert all(row.snr_db is None or row.snr_db > 100 for row in result.rows)
    with pytest.raises(UsageError, match=r"is an engine of openvino, and does not run on onnxruntime\nadd --engine openvino"):
        contenders_from([float_engine], engines=["onnxruntime"])


def test_engine_of_a_later_openvino_is_refused_with_the_command(engine: Artifact, tmp_path: Path) -> None:
    later = altered_manifest(engine, tmp_path / "later", details=engine.manifest.details | {"version": "2999.1.0"})
    with pytest.raises(EnvironmentProblem) as caught:
        load(later.path)
    assert f"was built with OpenVINO 2999.1.0, and {openvino.__version__.partition('-')[0]} is installed" in caught.value.message
    command = "--backend openvino --batch 1,2,4 --int8-kernels always --force"
    assert f"build-engine {engine.manifest.details['bundle']} -o {later.path} {command}" in str(caught.value.hint)
    earlier = altered_manifest(engine, tmp_path / "earlier", details=engine.manifest.details | {"version": "2024.4.0"})
    assert load(earlier.path) is not None


def test_options_that_there_are_not_are_refused(engine: Artifact, tmp_path: Path) -> None:
    odd = altered_manifest(engine, tmp_path / "odd", details=engine.manifest.details | {"options": {"turbo": True}})
    with pytest.raises(ArtifactError, match="odd is not a valid engine of this dq-deploy: options: turbo: Extra inputs are not permitted"):
        load(odd.path)


def test_tampered_engine_is_refused_with_the_command(engine: Artifact, tmp_path: Path) -> None:
    damaged = altered_manifest(engine, tmp_path / "damaged").path
    with (damaged / "model.bin").open("r+b") as stream:
        stream.write(b"\x7f")
    with pytest.raises(ArtifactError, match=r"'model.bin' has another sha256(?s:.*)build it again with: dq-deploy build-engine") as caught:
        load(damaged)
    assert caught.value.exit_code == 3


def test_options_of_other_backends_are_refused(bundle: Artifact, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="backend openvino builds for the CPU, so --compute-capability does not apply"):
        build_engine(bundle, tmp_path / "engine", backend="openvino", compute_capabilities=["8.9"])
    with pytest.raises(UsageError, match="backend tensorrt-rtx has no --int8-kernels\n--int8-kernels is for openvino"):
        build_engine(bundle, tmp_path / "engine", backend="tensorrt-rtx", int8_kernels="never")
    with pytest.raises(UsageError, match="int8_kernels is 'sometimes': Input should be 'auto', 'always' or 'never'"):
        build_engine(bundle, tmp_path / "engine", backend="openvino", int8_kernels="sometimes")
    with pytest.raises(TypeError):
        build_engine(bundle, tmp_path / "engine", "openvino")  # type: ignore[misc]
    assert not (tmp_path / "engine").exists()


def test_graph_that_openvino_does_not_take(tmp_path: Path) -> None:
    broken = tmp_path / "model.onnx"
    broken.write_bytes(b"no graph")
    request = BuildRequest(
        backend="openvino", onnx=str(broken), plan=str(tmp_path / "model.xml"), result=str(tmp_path / "result"),
        compute_capability=None, profiles=[{}],
    )  # fmt: skip
    with pytest.raises(ArtifactError, match="is not an ONNX graph"):
        run_child(request, tmp_path, timeout_s=60)
    assert not (tmp_path / "model.xml").exists()
