"""The table of engines: what each descriptor says is true of the real thing, and another package's runtime is one like ours."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name

import numpy as np
import pytest

from dq_deploy.artifacts import Artifact
from dq_deploy.artifacts.writing import write_text
from dq_deploy.engines.bench import bench, contenders_from
from dq_deploy.engines.build.engine import build_engine, load_report
from dq_deploy.engines.build.options import BuildOptions
from dq_deploy.engines.descriptors import registry
from dq_deploy.engines.descriptors.descriptor import EngineDescriptor, Products
from dq_deploy.engines.descriptors.registry import builders, engines, register, runtimes
from dq_deploy.engines.loading.choice import engines_for, make_runner
from dq_deploy.errors import ArtifactError, EnvironmentProblem, UsageError
from tests.command_line import Cli, assert_refused
from tests.engines import graphs
from tests.engines.toy_runtime import TOY, ToyRunner
from tests.flow import altered_manifest

ROOT = Path(__file__).parents[2]
OURS = list(engines().values())
names = [engine.name for engine in OURS]
rtx = pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed")


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table, as it was before the test when the test is over."""
    monkeypatch.setattr(registry, "_TABLE", dict(registry._TABLE))


@pytest.fixture
def toy(table: None) -> EngineDescriptor:
    return register(TOY)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return graphs.asymmetric_conv(tmp_path_factory.mktemp("bundle") / "bundle")


def planned_in(bundle: Artifact, path: Path, number_format: str) -> Artifact:
    layers = [{**layer, "format": number_format} for layer in bundle.manifest.details["layers"]]
    return altered_manifest(bundle, path, details={**bundle.manifest.details, "layers": layers})


def test_the_table_loads_neither_torch_nor_an_engine() -> None:
    heavy = ("torch", "numpy", "onnx", "pydantic", *(module for engine in OURS for module in engine.modules))
    table = "dq_deploy.engines.descriptors.registry"
    program = f"import sys; from {table} import engines; engines(); sys.exit(str(set({heavy!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "set()"


@pytest.mark.parametrize("engine", OURS, ids=names)
def test_what_a_descriptor_names_is_there(engine: EngineDescriptor) -> None:
    parameters = inspect.signature(resolve_name(engine.runner)).parameters
    assert {*engine.options, *engine.settings, *engine.kept, "nonfinite"} <= set(parameters)
    assert ("otherwise" in parameters) == engine.falls_back
    assert engine.base in names
    assert engine.title
    if engine.builder:
        assert find_spec(engine.builder.child)
        assert set(engine.builder.options) <= set(BuildOptions.model_fields)
        assert not set(engine.builder.options) & set(engine.builder.refused)
        assert set(engine.builder.default_capabilities) <= set(engine.builder.compute_capabilities)
        assert engine.builder.otherwise in (None, *builders())
        for reference in filter(None, (engine.builder.kernels, engine.builder.details)):
            assert callable(resolve_name(reference))


def test_every_build_option_is_some_engine_s() -> None:
    assert set(BuildOptions.model_fields) == {option for engine in builders().values() for option in engine.building.options}


@pytest.mark.parametrize("engine", OURS, ids=names)
def test_the_extra_installs_what_is_needed(engine: EngineDescriptor) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert engine.extra is not None
    packages = [line.partition(">")[0] for line in extras[engine.extra]]
    assert engine.distributions[0] in packages
    assert all(module.replace("_", "-") in packages for module in engine.modules[1:])


@pytest.mark.parametrize("engine", list(runtimes().values()), ids=list(runtimes()))
def test_a_runtime_keeps_what_it_says(engine: EngineDescriptor, bundle: Artifact) -> None:
    if engine.missing():
        pytest.skip(f"{engine.name} is not installed")
    runner = engine.make_runner(bundle, **engine.settings)
    assert (runner.name, set(engine.kept) - set(runner.details)) == (engine.name, set())


@rtx
def test_rtx_compiles_for_the_devices_that_it_lists_and_for_no_other() -> None:
    trt = registry.DEFAULT_BUILDER.load()
    there = {name for name in dir(trt.ComputeCapability) if name.startswith("SM")}
    builder = registry.DEFAULT_BUILDER.building
    assert {f"SM{c.replace('.', '')}" for c in builder.compute_capabilities} <= there
    assert not {f"SM{c.replace('.', '')}" for c in builder.elsewhere} & there


@rtx
@pytest.mark.parametrize(("capability", "taken"), [("8.6", False), ("8.9", True)])
def test_rtx_takes_fp8_products_where_it_says(tmp_path: Path, capability: str, taken: bool) -> None:
    """As the compiler plans them; the report judges them by what was planned."""
    assert registry.DEFAULT_BUILDER.takes("fp8", "gemm", capability) is taken
    bundle = planned_in(graphs.fp8_linear(tmp_path / "bundle"), tmp_path / "planned", "fp8")
    if not taken:
        with pytest.raises(ArtifactError, match=r"FP8 on 8\.6: layer\nFP8 needs compute capability 8\.9 or newer; .* w8a8"):
            build_engine(bundle, tmp_path / "engine", compute_capabilities=[capability])
        return
    (report,) = load_report(build_engine(bundle, tmp_path / "engine", compute_capabilities=[capability]))
    assert [(layer.planned_format, layer.precision, layer.reason) for layer in report.layers] == [("fp8", "fp8", None)]
    assert report.summary()["not_as_planned"] == {}


def test_no_cpu_engine_multiplies_in_fp8(tmp_path: Path) -> None:
    ours, bundle = engines(), planned_in(graphs.fp8_linear(tmp_path / "bundle"), tmp_path / "planned", "fp8")
    assert not any(ours[name].takes("fp8", "gemm", None) for name in ("openvino", "onnxruntime"))
    with pytest.raises(ArtifactError, match=r"OpenVINO does not multiply .* FP8 on CPU: layer\nquantize .* --preset w8a8"):
        build_engine(bundle, tmp_path / "engine", backend="openvino")


def test_cpu_engines_run_fp8_around_float_products_and_openvino_says_so(tmp_path: Path) -> None:
    bundle = planned_in(graphs.fp8_linear(tmp_path / "bundle"), tmp_path / "planned", "fp8")
    values = np.random.default_rng(0).normal(size=(2, 16, 64)).astype(np.float32)
    inputs = {"sample": values, "timestep": np.zeros(2, np.float32)}
    with pytest.warns(RuntimeWarning, match=r"OpenVINO only emulates FP8 on a CPU: .* NaN becomes -448"):
        emulated = make_runner(bundle, runtime="openvino").run(inputs)
    exact = make_runner(bundle, runtime="onnxruntime").run(inputs)
    assert np.linalg.norm(emulated - exact) < 1e-2 * np.linalg.norm(exact)


def test_unknown_engines_are_told_what_there_is(bundle: Artifact) -> None:
    with pytest.raises(UsageError, match=r"unknown engine 'abacus'\nchoose one of: onnxruntime, onnxruntime-cuda"):
        contenders_from([bundle], engines=["abacus"])
    with pytest.raises(UsageError, match="unknown engine backend 'onnxruntime'"):
        build_engine(bundle, "unused", backend="onnxruntime")


def test_a_name_is_given_once(toy: EngineDescriptor) -> None:
    assert register(TOY) is TOY
    with pytest.raises(UsageError, match="there is an engine 'onnxruntime' already"):
        register(EngineDescriptor("onnxruntime", "X", ("x",), ("x",), "x:x", ("bundle",)))


def test_another_s_runtime_runs_a_bundle(toy: EngineDescriptor, bundle: Artifact) -> None:
    assert engines_for(bundle)[-1] == "toy"
    result = bench(contenders_from([bundle], engines=["onnxruntime", "toy"]), runs=2, warmup=0)
    theirs = result.rows[1]
    assert theirs.engine == "toy"
    assert theirs.snr_db is None or theirs.snr_db > 40
    runner = make_runner(bundle, echo="heard")  # an option of one engine chooses it
    assert isinstance(runner, ToyRunner)
    assert runner.details["echo"] == "heard"


def test_another_s_engine_is_built_judged_and_run(toy: EngineDescriptor, bundle: Artifact, tmp_path: Path) -> None:
    planned = planned_in(bundle, tmp_path / "planned", "toy8")
    engine = build_engine(planned, tmp_path / "engine", backend="toy")
    (report,) = load_report(engine)
    assert report.summary()["planned_formats"] == {"toy8": 1}
    assert (report.summary()["as_planned"], report.summary()["planned_int8"], report.statement) == (1, 0, "nothing was chosen")
    inputs = {"sample": np.ones((2, 16, 8, 8), np.float32), "timestep": np.array([0.0, 3.0], np.float32)}
    np.testing.assert_array_equal(make_runner(engine).run(inputs), make_runner(planned, runtime="toy").run(inputs))
    with pytest.raises(ArtifactError, match=r"OpenVINO does not multiply .* TOY8 on CPU: c\n"):
        build_engine(planned, tmp_path / "other", backend="openvino")
    # INT8 was planned and TOY8 came of it: none is as planned.
    with pytest.raises(ArtifactError, match="Toy does not multiply in the formats"):
        build_engine(bundle, tmp_path / "int8", backend="toy")


def test_doctor_finds_it_and_the_command_line_offers_it(toy: EngineDescriptor, bundle: Artifact, cli: Cli, tmp_path: Path) -> None:
    from dq_deploy.doctor.packages import engine_findings

    (finding,) = engine_findings()
    assert (finding.name, finding.state, finding.meaning) == ("engine toy", "ok", "a runtime of the tests")
    ended = cli("bench", bundle.path, "--engine", "toy", "--runs", 1, "--format", "json")
    assert ended.code == 0, ended.err
    assert [row["engine"] for row in json.loads(ended.out)["rows"]] == ["toy"]
    assert "toy" in cli("build-engine", "--help").out


def test_without_its_module_it_says_how_to_get_it(table: None, bundle: Artifact, cli: Cli) -> None:
    from dataclasses import replace

    from dq_deploy.doctor.packages import engine_findings

    gone = register(replace(TOY, modules=("no_such_module",), distributions=("toy-runtime",)))
    with pytest.raises(EnvironmentProblem, match="engine toy needs the Python module"):
        gone.load()
    ended = cli("build-engine", bundle.path, "-o", bundle.path.parent / "engine", "--backend", "toy")
    assert_refused(ended, 4, "engine toy needs the Python module(s) no_such_module, which are not installed", "pip install toy-runtime")
    assert "toy" not in engines_for(bundle)
    (finding,) = engine_findings()
    assert (finding.state, finding.mend) == ("absent", "pip install toy-runtime")


def test_an_entry_point_registers_and_a_broken_one_ends_nothing(tmp_path: Path) -> None:
    package = tmp_path / "site" / "toy-1.dist-info"
    package.mkdir(parents=True)
    write_text(package / "METADATA", "Metadata-Version: 2.1\nName: toy\nVersion: 1\n")
    points = "[dq_deploy.engines]\ntoy = tests.engines.toy_runtime:TOY\nruin = tests.engines.no_such_module:ENGINE\n"
    write_text(package / "entry_points.txt", points)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(package.parent), str(ROOT), os.environ.get("PYTHONPATH", "")])}

    def run(*arguments: str) -> str:
        command = [sys.executable, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=tmp_path).stdout

    assert ",toy." in "".join(run("-m", "dq_deploy", "bench", "--help").split())
    found = run(
        "-c", "from dq_deploy.doctor.packages import engine_findings as f; print('[%s]' % ','.join(x.model_dump_json() for x in f()))"
    )
    states = {finding["name"]: (finding["state"], finding["found"]) for finding in json.loads(found)}
    assert states["engine toy"][0] == "ok"
    assert states["engine ruin"][0] == "wrong"
    assert "no_such_module" in states["engine ruin"][1]


def test_products_are_of_devices() -> None:
    fp8 = Products("fp8", capability=(8, 9))
    assert [fp8.on(device, None) for device in ("8.6", "8.9", "12.0")] == [False, True, True]
    vnni = Products("int8", instructions=("avx512_vnni",))
    assert [vnni.on(None, known) for known in (None, ["avx2"], ["avx2", "avx512_vnni"])] == [True, False, True]
    ours = engines()
    assert ours["tensorrt-rtx"].documents("fp8", "gemm", "8.9")
    assert not ours["tensorrt-rtx"].documents("fp8", "conv", "8.9")
    assert not ours["tensorrt-rtx"].documents("int8", "gemm", "12.0")
    assert ours["tensorrt"].documents("int8", "conv", "8.6")
    assert not ours["openvino"].documents("int8", "conv", None, ["avx2"])
    assert ours["openvino"].documents("fp16", "conv", None)
