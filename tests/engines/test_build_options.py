"""Options of a build: each reaches the builder, or is refused with the reason."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from dq_deploy.artifacts import Artifact
from dq_deploy.engines.build.engine import build_engine, load_report
from dq_deploy.engines.build.options import BuildOptions
from dq_deploy.engines.build.process import Failure, diagnose
from dq_deploy.engines.tensorrt.child import builder_settings
from dq_deploy.errors import UsageError
from tests.engines import graphs
from tests.engines.tensorrt.stand_in import recorded, stand_in

rtx = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed")
no_tensorrt = pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="TensorRT itself is installed")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return graphs.any_size(tmp_path_factory.mktemp("bundle") / "bundle")


SIZES = {"height": (4, 8, 16), "width": (8, 8, 8)}


@pytest.mark.parametrize(
    ("backend", "option", "expected"),
    [
        ("openvino", {"workspace_mb": 64}, "backend openvino has no --workspace-mb\n--workspace-mb is for tensorrt-rtx and tensorrt"),
        ("openvino", {"timing_cache": "c"}, "backend openvino has no --timing-cache\n--timing-cache is for tensorrt"),
        ("tensorrt", {"int8_kernels": "auto"}, "backend tensorrt has no --int8-kernels\n--int8-kernels is for openvino"),
        ("tensorrt-rtx", {"timing_cache": "c"}, "TensorRT-RTX times no kernels when it builds: its timing cache stays empty"),
        ("tensorrt-rtx", {"hardware_compatibility": "ampere-plus"}, "give a --compute-capability for each GPU instead"),
        ("tensorrt-rtx", {"version_compatible": True}, "build again for each version"),
        ("tensorrt", {"optimization_level": 6}, "optimization_level is 6: Input should be less than or equal to 5"),
        ("tensorrt", {"workspace_mb": 0}, "workspace_mb is 0: Input should be greater than or equal to 1"),
        ("tensorrt", {"hardware_compatibility": "all"}, "hardware_compatibility is 'all'"),
        ("tensorrt", {"fp16": True}, "fp16 is True: Extra inputs are not permitted"),
    ],
)
def test_what_a_backend_has_not_is_refused(backend: Any, option: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        BuildOptions.build(backend, **option)
    assert expected in str(caught.value)
    assert caught.value.exit_code == 2


def test_every_refused_option_is_named_at_once() -> None:
    with pytest.raises(UsageError, match="backend openvino has no --optimization-level, --weight-streaming"):
        BuildOptions.build("openvino", weight_streaming=True, optimization_level=1)


def test_what_was_not_given_was_not_asked() -> None:
    assert BuildOptions.build("openvino").asked() == {}
    assert BuildOptions.build("tensorrt", optimization_level=0, version_compatible=False).asked() == {"optimization_level": 0}


def test_timing_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="is a folder, and a file is needed"):
        BuildOptions.build("tensorrt", timing_cache=tmp_path)
    with pytest.raises(UsageError, match="there is no folder"):
        BuildOptions.build("tensorrt", timing_cache=tmp_path / "absent" / "cache")
    (tmp_path / "cache").touch()
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write everywhere
    with pytest.raises(UsageError, match="cannot be written: no permission"):
        BuildOptions.build("tensorrt", timing_cache=tmp_path / "cache")


@rtx
def test_settings_in_the_builder_s_terms() -> None:
    import tensorrt_rtx as trt

    options = BuildOptions(
        optimization_level=4, workspace_mb=3, weight_streaming=True, hardware_compatibility="ampere-plus", version_compatible=True
    )
    assert builder_settings(options, trt) == {
        "builder_optimization_level": 4,
        "memory_pool_limits": {trt.MemoryPoolType.WORKSPACE: 3 << 20},
        "weight_streaming": True,
        "hardware_compatibility_level": trt.HardwareCompatibilityLevel.AMPERE_PLUS,
        "version_compatible": True,
        "exclude_lean_runtime": True,
    }
    assert builder_settings(BuildOptions(), trt) == {}


@rtx
def test_rtx_takes_its_options_and_every_dynamic_dimension(bundle: Artifact, tmp_path: Path) -> None:
    engine = build_engine(
        bundle, tmp_path / "engine", compute_capabilities=["8.9"], batch=(1, 2, 4), sizes=SIZES,
        optimization_level=1, workspace_mb=256, weight_streaming=True,
    )  # fmt: skip
    details = engine.manifest.details
    assert details["options"] == {"optimization_level": 1, "workspace_mb": 256, "weight_streaming": True}
    assert details["sizes"] == {"height": [4, 8, 16], "width": [8, 8, 8]}
    assert details["profile"]["sample"] == [[1, 8, 4, 8], [2, 8, 8, 8], [4, 8, 16, 8]]
    (report,) = load_report(engine)
    assert not report.not_as_planned()


def test_openvino_takes_every_dynamic_dimension(bundle: Artifact, tmp_path: Path) -> None:
    engine = build_engine(bundle, tmp_path / "engine", backend="openvino", batch=(1, 2, 4), sizes=SIZES)
    assert engine.manifest.details["profile"]["sample"] == [[1, 8, 4, 8], [2, 8, 8, 8], [4, 8, 16, 8]]


def test_too_little_workspace_is_the_user_s_to_mend() -> None:
    # Recorded from TensorRT-RTX 1.7.1 with 1 MiB.
    line = "[E] Myelin ([tactic.cpp:1676] Tactic Selection: no tactics to implement the operation within workspace limit."
    error = diagnose(Failure(1, f"[X] Parsing node: a [Conv]\n{line}\npolygraphy.exception.exception.PolygraphyException: Invalid Engine."))
    assert isinstance(error, UsageError)
    assert "give a larger --workspace-mb" in str(error)


@rtx
@no_tensorrt
def test_enterprise_options_reach_the_builder(bundle: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = stand_in(tmp_path, monkeypatch)
    engine = build_engine(
        bundle, tmp_path / "engine", backend="tensorrt", batch=(1, 2, 4), sizes=SIZES,
        optimization_level=2, workspace_mb=512, weight_streaming=True, timing_cache=tmp_path / "cache",
    )  # fmt: skip
    seen = recorded(settings)
    assert (seen["optimization_level"], seen["workspace"], seen["strongly_typed"]) == (2, 512 << 20, True)
    assert "WEIGHT_STREAMING" in seen["flags"]
    assert "TF32" not in seen["flags"]
    assert (tmp_path / "cache").stat().st_size > 0
    details = engine.manifest.details
    assert (details["backend"], details["version"]) == ("tensorrt", "10.9.0.34")
    assert [entry["compute_capability"] for entry in details["engines"]] == ["8.9"]
    assert load_report(engine)[0].statement == "chosen by the builder for this machine's GPU; not a timing"


@pytest.mark.gpu
@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is None, reason="TensorRT is not installed")
@pytest.mark.parametrize(
    "options",
    [
        {"optimization_level": 5, "workspace_mb": 1024},
        {"weight_streaming": True},
        {"hardware_compatibility": "ampere-plus"},
        {"version_compatible": True},
    ],
)
def test_gpu_enterprise_builds_with_each_option(bundle: Artifact, tmp_path: Path, options: dict[str, Any]) -> None:
    engine = build_engine(bundle, tmp_path / "engine", backend="tensorrt", sizes=SIZES, **options)
    assert not load_report(engine)[0].not_found()


@pytest.mark.gpu
@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is None, reason="TensorRT is not installed")
def test_gpu_second_build_reads_the_timings_of_the_first(bundle: Artifact, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    build_engine(bundle, tmp_path / "first", backend="tensorrt", sizes=SIZES, timing_cache=cache)
    size = cache.stat().st_size
    build_engine(bundle, tmp_path / "second", backend="tensorrt", sizes=SIZES, timing_cache=cache)
    assert cache.stat().st_size == size > 200
