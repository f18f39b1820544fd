"""Bundles to engines with the real TensorRT-RTX compiler, which needs no GPU."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from dq_deploy.artifacts import Artifact, open_artifact
from dq_deploy.engines.build import engine as build
from dq_deploy.engines.build.engine import build_engine, load_report
from dq_deploy.engines.layer_report import LayerReport
from dq_deploy.engines.loading.engine_files import rebuild_hint
from dq_deploy.errors import ArtifactError, DqDeployError, EnvironmentProblem, UsageError
from dq_deploy.exporters.lint import LintResult
from tests.engines import graphs

rtx = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return graphs.network(tmp_path_factory.mktemp("bundle") / "bundle", external=True)


@pytest.fixture(scope="module")
def engine(bundle: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return build_engine(bundle, tmp_path_factory.mktemp("engine") / "engine", batch=(1, 2, 4))


def one_report(bundle: Artifact, output: Path, capability: str = "8.9") -> LayerReport:
    (report,) = load_report(build_engine(bundle, output, compute_capabilities=[capability]))
    return report


@rtx
def test_engine_folder(engine: Artifact, bundle: Artifact) -> None:
    assert set(engine.manifest.files) == {"model.sm89.engine", "layers.sm89.json", "model.sm120.engine", "layers.sm120.json"}
    manifest, details = engine.manifest, engine.manifest.details
    assert manifest.parent == bundle.as_parent
    assert (manifest.kind, manifest.timesteps, manifest.scheduler) == ("engine", bundle.manifest.timesteps, bundle.manifest.scheduler)
    assert details["backend"] == "tensorrt-rtx"
    assert details["version"] == manifest.tools["tensorrt-rtx"]
    assert details["profile"] == {"sample": [[1, 8, 8, 8], [2, 8, 8, 8], [4, 8, 8, 8]], "timestep": [[1], [2], [4]]}
    for key in ("component", "pipeline_class", "model_config", "sample_shape", "inputs", "output", "source", "target"):
        assert details[key] == bundle.manifest.details[key]
    assert [entry["compute_capability"] for entry in details["engines"]] == ["8.9", "12.0"]
    for entry in details["engines"]:
        assert (engine.path / entry["file"]).stat().st_size > entry["weights_bytes"] > 0
        assert entry["planned_layers"] == entry["planned_int8"] == 8


@rtx
def test_every_planned_layer_is_int8_for_both_capabilities(engine: Artifact) -> None:
    reports = load_report(engine)
    assert [report.compute_capability for report in reports] == ["8.9", "12.0"]
    for report in reports:
        assert [layer.name for layer in report.layers] == [
            "down.conv1", "down.conv2", "attn.to_q", "attn.to_k", "attn.to_v", "attn.qk", "attn.pv", "attn.to_out"
        ]  # fmt: skip
        assert not report.not_as_planned()
        assert not report.not_found()
        assert report.int8_share("conv") == report.int8_share("gemm") == 1.0
        assert report.statement == "chosen ahead of time by the compiler; not executed on this machine"


@rtx
def test_gemms_on_one_quantizer_are_merged_into_one_kernel(engine: Artifact) -> None:
    layers = {layer.name: layer for layer in load_report(engine)[0].layers}
    (merged,) = {layers[f"attn.to_{n}"].kernels for n in "qkv"}
    assert len(merged) == 1
    assert load_report(engine)[0].summary()["gemm_kernels"] == 4


@rtx
def test_asymmetric_form_is_three_kernels_around_an_int8_conv(tmp_path: Path) -> None:
    report = one_report(graphs.asymmetric_conv(tmp_path / "bundle"), tmp_path / "engine")
    assert report.layers[0].precision == "int8"
    assert [kernel.type for kernel in report.kernels if kernel.inputs] == ["kgen", "correlation", "kgen"]


@rtx
def test_float_network_is_reported_as_float(tiny_bundle: Artifact, tmp_path: Path) -> None:
    report = one_report(tiny_bundle, tmp_path / "engine")
    assert set(report.by_precision("conv")) == set(report.by_precision("gemm")) == {"fp32"}
    assert report.layers == ()


@rtx
def test_progress_and_force(bundle: Artifact, tmp_path: Path) -> None:
    notes: list[Any] = []

    class Recorder:
        def __init__(self, description: str, total: int) -> None:
            notes.append((description, total))

        def __enter__(self) -> Any:
            return lambda steps=1, note="": notes.append((steps, note)) if steps else None  # 0: a sign of life, every few seconds

        def __exit__(self, *_: object) -> None:
            notes.append("end")

    for force in (False, True):
        build_engine(bundle.path, tmp_path / "engine", compute_capabilities=["12.1"], force=force, progress=Recorder)
    assert notes[:3] == [("building with tensorrt-rtx", 1), (1, "compute capability 12.1"), "end"]
    assert open_artifact(tmp_path / "engine", "engine").file("model.sm121.engine").exists()


def refused(kind: type[DqDeployError], bundle: Artifact | Path, output: Path, **options: Any) -> str:
    """The message of a build that must fail and leave nothing behind."""
    before = sorted(output.parent.iterdir())
    with pytest.raises(kind) as caught:
        build_engine(bundle, output, **({"compute_capabilities": ["8.9"]} | options))
    assert sorted(output.parent.iterdir()) == before
    return str(caught.value)


@rtx
def test_what_the_lint_knows_is_refused_before_any_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a build was started")

    monkeypatch.setattr(build, "run_child", never)
    text = refused(ArtifactError, graphs.computed_scale(tmp_path / "conv", "Conv"), tmp_path / "engine")
    assert "conv is not fit for target qdq, 1 error:\n  computed-scale-conv: layer/Conv (module layer): " in text
    assert "keep the Q/DQ scale constant (1)" in text
    text = refused(ArtifactError, graphs.computed_scale(tmp_path / "matmul", "MatMul"), tmp_path / "engine")
    assert "computed-scale-matmul: layer/MatMul (module layer): it multiplies what was dequantized with a scale that is computed" in text
    text = refused(ArtifactError, graphs.zero_point(tmp_path / "zero"), tmp_path / "engine")
    assert "2 errors:" in text
    assert "zero-point: layer/Q: its zero-point is 3" in text
    assert "zero-point: layer/DQ: its zero-point is 3" in text


@rtx
def test_a_rule_that_is_allowed_ends_no_build_and_is_recorded(tmp_path: Path) -> None:
    bundle, said = graphs.computed_scale(tmp_path / "matmul", "MatMul"), []
    allow = ["computed-scale-matmul", "zero-point", "computed-scale-matmul"]
    engine = build_engine(bundle, tmp_path / "engine", compute_capabilities=["8.9"], allow=allow, warn=said.append)
    assert engine.manifest.details["lint_allowed"] == {"computed-scale-matmul": 1}
    assert said == [
        "computed-scale-matmul is allowed: TensorRT-RTX builds it without a word, and multiplies in FP32.",
        "zero-point is allowed, and the graph does not break it",
    ]
    assert "--allow computed-scale-matmul --force" in rebuild_hint(engine.path, engine.details)
    # Another rule's errors still end the build.
    assert "2 errors:" in refused(ArtifactError, graphs.zero_point(tmp_path / "zero"), tmp_path / "no", allow=allow[:1])


@rtx
def test_an_allowed_rule_that_crashes_the_builder_says_so_before_and_after(tmp_path: Path) -> None:
    said: list[str] = []
    bundle, options = graphs.computed_scale(tmp_path / "conv", "Conv"), {"allow": ["computed-scale-conv"], "warn": said.append}
    text = refused(ArtifactError, bundle, tmp_path / "engine", **options)
    assert "the builder crashed (SIGSEGV) on this graph" in text
    assert "the lint names what may crash it, and --allow lets it pass: leave out --allow computed-scale-conv" in text
    (line,) = said
    assert "That crashes the builder, in a process of its own" in line


def test_only_rules_that_end_a_build_can_be_allowed(bundle: Artifact, tmp_path: Path) -> None:
    text = refused(
        UsageError, bundle, tmp_path / "engine", allow=["zero-points", "float-activation", "bfloat16", "invalid-onnx", "zero-point"]
    )
    assert "in a build for qdq: zero-points, float-activation, bfloat16, invalid-onnx\ndid you mean zero-point" in text
    assert "there are: computed-scale-conv, " in refused(UsageError, bundle, tmp_path / "engine", allow=["?"])


@rtx
@pytest.mark.parametrize(
    ("op", "expected"),
    [
        ("Conv", "the builder crashed (SIGSEGV) on this graph; the last lines of its log:\n"),
        ("zero", "refuses the graph: node 'layer/Q' (Q"),
    ],
)
def test_what_the_lint_would_miss_still_ends_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, op: str, expected: str) -> None:
    monkeypatch.setattr(build, "lint", lambda *_, **__: LintResult(source="", target="", findings=()))
    bundle = graphs.zero_point(tmp_path / "bundle") if op == "zero" else graphs.computed_scale(tmp_path / "bundle", op)
    assert expected in refused(ArtifactError, bundle, tmp_path / "engine")


@rtx
def test_negative_control_matmul_with_a_computed_scale_is_called_fp32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "lint", lambda *_, **__: LintResult(source="", target="", findings=()))
    report = one_report(graphs.computed_scale(tmp_path / "bundle", "MatMul"), tmp_path / "engine")
    assert [(layer.name, layer.precision) for layer in report.not_as_planned()] == [("layer", "fp32")]
    assert report.int8_share("gemm") == 0.0


@rtx
def test_compiler_refusal_names_the_operation(bundle: Artifact, tmp_path: Path) -> None:
    text = refused(ArtifactError, bundle, tmp_path / "engine", compute_capabilities=["7.5"])
    assert "MatMul' for Turing (SM75)" in text


@rtx
def test_options_are_checked_before_the_build(bundle: Artifact, tmp_path: Path) -> None:
    output = tmp_path / "engine"
    assert "cannot build for compute capability 9.0" in refused(UsageError, bundle, output, compute_capabilities=["9.0"])
    assert "not a range: batch (4, 2, 8)" in refused(UsageError, bundle, output, batch=(4, 2, 8))
    assert "no such path" in refused(UsageError, tmp_path / "none", output)
    output.mkdir()
    assert "already exists" in refused(UsageError, bundle, output)
    assert "is not an artefact of dq-deploy" in refused(UsageError, bundle, output, force=True)


def test_onnxruntime_bundle_is_refused_with_the_right_command(tmp_path: Path) -> None:
    text = refused(ArtifactError, graphs.network(tmp_path / "bundle", target="onnxruntime"), tmp_path / "engine")
    assert "exported for target 'onnxruntime'" in text
    assert "dq-deploy export CHECKPOINT -o BUNDLE --target qdq" in text


def test_tampered_bundle_is_refused(tmp_path: Path) -> None:
    changed = graphs.network(tmp_path / "bundle", external=True)
    with (changed.path / "model.onnx.data").open("r+b") as stream:
        stream.write(b"\x7f")
    assert "'model.onnx.data' has another sha256" in refused(ArtifactError, changed, tmp_path / "engine")


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="TensorRT is installed")
def test_missing_backend_ends_with_exit_code_4(bundle: Artifact, tmp_path: Path) -> None:
    text = refused(EnvironmentProblem, bundle, tmp_path / "engine", backend="tensorrt", compute_capabilities=None)
    assert "engine tensorrt needs the Python module(s) tensorrt, which are not installed" in text
    assert EnvironmentProblem.exit_code == 4


@rtx
def test_damaged_report_is_refused(bundle: Artifact, tmp_path: Path) -> None:
    engine = build_engine(bundle, tmp_path / "engine", compute_capabilities=["8.9"])
    path = engine.path / "layers.sm89.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "surprise": 1}))
    with pytest.raises(ArtifactError, match="is not a layer report"):
        load_report(engine)
    with pytest.raises(ArtifactError, match="does not match its manifest"):
        load_report(engine.path)


@pytest.mark.gpu
@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is None, reason="TensorRT is not installed")
def test_enterprise_tensorrt_takes_the_same_path(bundle: Artifact, tmp_path: Path) -> None:
    (report,) = load_report(build_engine(bundle, tmp_path / "engine", backend="tensorrt", batch=(1, 2, 4)))
    assert report.backend == "tensorrt"
    assert not report.not_found()
    assert "GPU" in report.statement
