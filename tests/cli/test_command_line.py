"""What all commands share: help, wrong arguments, missing packages, bugs, and the whole way through."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import HEAVY, Cli, assert_refused, process
from tests.flow import Flow, snapshot

COMMANDS = (
    "quantize",
    "export",
    "build-engine",
    "check",
    "combine",
    "bench",
    "sample",
    "report",
    "model-card",
    "push",
    "inspect",
    "doctor",
    "layers",
    "demo",
)
FAST = ("--steps", "2", "--calibration-samples", "2", "--iterations", "0")


def test_a_path_that_does_not_exist(cli: Cli, tmp_path: Path, flow: Flow) -> None:
    missing = tmp_path / "missing"
    assert_refused(cli("quantize", missing, "-o", tmp_path / "o"), 2, f"no such path: {missing}")
    assert_refused(cli("export", missing, "-o", tmp_path / "o", "--target", "qdq"), 2, f"no such path: {missing}")
    assert_refused(cli("build-engine", missing, "-o", tmp_path / "o", "--backend", "tensorrt-rtx"), 2, f"no such path: {missing}")
    assert_refused(cli("check", missing, "--checkpoint", flow.checkpoint), 2, f"no such path: {missing}")
    assert_refused(cli("check", flow.bundles["qdq"], "--checkpoint", missing), 2, f"no such path: {missing}")
    assert_refused(cli("bench", missing), 2, f"no such path: {missing}")
    assert_refused(cli("bench", flow.bundles["qdq"], "--baseline", missing), 2, f"no such path: {missing}")
    assert_refused(cli("sample", missing, "-o", tmp_path / "o.png"), 2, f"no such path: {missing}")
    assert_refused(cli("inspect", missing), 2, f"no such path: {missing}")
    assert_refused(cli("quantize", flow.pipeline, "-o", tmp_path / "o", "--config", missing), 2, f"no such path: {missing}")
    assert snapshot(tmp_path) == {}


@pytest.mark.parametrize(
    "arguments",
    [
        ("frobnicate",),
        ("--frobnicate",),
        ("quantize",),
        ("quantize", "x"),
        ("quantize", "x", "-o", "y", "--steps", "many"),
        ("quantize", "x", "-o", "y", "--dilation", "some"),
        ("export", "x", "-o", "y", "--target", "coreml"),
        ("export", "x", "-o", "y"),
        ("build-engine", "x", "-o", "y", "--backend", "tvm"),
        ("check", "x"),
        ("bench",),
        ("sample", "x", "-o", "y.png", "-n", "few"),
        ("inspect", "x", "y"),
        ("inspect", "x", "--format", "yaml"),
    ],
)
def test_bad_command_lines(cli: Cli, arguments: tuple[str, ...]) -> None:
    ended = cli(*arguments)
    assert_refused(ended, 2, "--help")
    assert ended.err.startswith("error: ")


@pytest.mark.parametrize(("option", "value"), [("--steps", "0"), ("--steps", "2000"), ("-n", "0"), ("--seed", "-1")])
def test_bad_settings_of_sampling(cli: Cli, tmp_path: Path, flow: Flow, option: str, value: str) -> None:
    assert_refused(cli("sample", flow.bundles["qdq"], "-o", tmp_path / "o.png", option, value), 2)
    assert_refused(cli("sample", flow.bundles["qdq"], "-o", tmp_path / "o.jpeg"), 2, ".png")
    assert snapshot(tmp_path) == {}


@pytest.mark.parametrize(("option", "value"), [("--iterations", "-1"), ("--seed", "-1")])
def test_the_demo_refuses_before_it_makes_its_folder(cli: Cli, tmp_path: Path, option: str, value: str) -> None:
    assert_refused(cli("demo", "-o", tmp_path / "o", option, value), 2, value)
    assert snapshot(tmp_path) == {}


@pytest.mark.parametrize("command", [(), *((c,) for c in COMMANDS)])
def test_help_needs_nothing(command: tuple[str, ...]) -> None:
    ended = process(*command, "--help", without=HEAVY)
    assert ended.code == 0, ended.err
    assert ended.out.startswith("Usage: dq-deploy")
    assert ended.err == ""


def test_importing_the_package_imports_nothing_heavy() -> None:
    slow = (*HEAVY, "pydantic")
    program = f"import sys, dq_deploy, dq_deploy.cli; sys.exit(bool(set({slow!r}) & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_inspect_needs_no_runtime(flow: Flow) -> None:
    for path in (flow.checkpoint, flow.bundles["qdq"]):
        # A bundle's tables lie in its graph, which onnx reads.
        ended = process("inspect", path, "--format", "json", without=tuple(name for name in HEAVY if name != "onnx"))
        assert ended.code == 0, ended.err
        found = json.loads(ended.out)
        assert found.pop("scale_tables")
        assert found == json.loads((path / "manifest.json").read_text())
        assert ended.err == ""


@pytest.mark.parametrize(
    ("missing", "command"),
    [
        ("torch", "quantize"),
        ("diffusers", "quantize"),
        ("onnx_ir", "export"),
        ("onnxruntime", "check"),
        ("onnxruntime", "bench"),
        ("openvino", "bench"),
        ("onnxruntime", "demo"),
        ("tensorrt_rtx", "build-engine"),
    ],
)
def test_a_missing_dependency(tmp_path: Path, flow: Flow, missing: str, command: str) -> None:
    bundle, output = flow.bundles["qdq"], tmp_path / "o"
    arguments: dict[str, tuple[Any, ...]] = {
        "quantize": (flow.pipeline, "-o", output, *FAST),
        "export": (flow.checkpoint, "-o", output, "--target", "qdq"),
        "check": (bundle, "--checkpoint", flow.checkpoint, "-q"),
        "bench": (bundle, *(("--engine", "openvino") if missing == "openvino" else ())),
        "demo": ("-o", output),
        "build-engine": (bundle, "-o", output, "--backend", "tensorrt-rtx"),
    }
    ended = process(command, *arguments[command], without=(missing,))
    assert_refused(ended, 4, "pip install")
    assert missing in ended.err.replace("-", "_")
    assert snapshot(tmp_path) == {}


def test_a_reader_that_leaves_early(flow: Flow) -> None:
    command = f"{sys.executable} -c 'from dq_deploy.cli import main; main()' inspect {flow.checkpoint} --format json | head -c 10"
    ended = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert ended.stderr == ""


def test_a_bug_shows_its_traceback(cli: Cli, monkeypatch: pytest.MonkeyPatch, flow: Flow) -> None:
    def broken(*_: object) -> None:
        raise KeyError("a bug of ours")

    monkeypatch.setattr("dq_deploy.artifacts.open_artifact", broken)
    ended = cli("inspect", flow.checkpoint)
    assert ended.code == 1
    assert "Traceback" in ended.err
    assert "please report" in ended.err


def test_the_whole_way(cli: Cli, tmp_path: Path, flow_pipeline: Path) -> None:
    def data(*arguments: object) -> dict[str, Any]:
        ended = cli(*arguments, "--format", "json")
        assert ended.code == 0, ended.err
        assert "error" not in ended.err
        value = json.loads(ended.out)
        assert isinstance(value, dict)
        return value

    checkpoint, tensorrt, onnxruntime = (tmp_path / name for name in ("checkpoint", "qdq", "onnxruntime"))
    options = ("--steps", "3", "--calibration-samples", "8", "--iterations", "2", "--config", tmp_path / "options.json")
    (tmp_path / "options.json").write_text('{"max_float_share": 0.2, "reference_samples": 24}')
    made = data("quantize", flow_pipeline, "-o", checkpoint, *options)
    assert made["manifest"] == json.loads((checkpoint / "manifest.json").read_text())
    assert len(made["manifest"]["details"]["snr_db"]["after_distillation"]) == 3
    assert data("export", checkpoint, "-o", tensorrt, "--target", "qdq")["manifest"]["details"]["dtype"] == "fp16"
    # Force replaces an artefact of ours, the whole of it.
    shutil.copytree(checkpoint, onnxruntime)
    assert data("export", checkpoint, "-o", onnxruntime, "--target", "onnxruntime", "--force")["manifest"]["details"]["dtype"] == "fp32"
    assert not (onnxruntime / "graph.json").exists()
    verdict = data("check", onnxruntime, "--checkpoint", checkpoint)
    assert verdict["passed"]
    assert len(verdict["timesteps"]) == 3
    timing = data("bench", tensorrt, onnxruntime, "--runs", "3", "--engine", "onnxruntime", "--batch", "1,2", "--baseline", tensorrt)
    assert [row["batch"] for row in timing["rows"]] == [1, 1, 2, 2]
    assert timing["baseline"] == "qdq · onnxruntime"
    drawn = data("sample", onnxruntime, "-o", tmp_path / "grid.png", "-n", "2")
    assert len(drawn["psnr_db"]) == 2
    assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")
    assert data("inspect", tensorrt)["parent"]["kind"] == "checkpoint"
    # Tables, for people.
    for arguments in (
        ("inspect", checkpoint),
        ("check", onnxruntime, "--checkpoint", checkpoint),
        ("bench", onnxruntime, "--runs", "3"),
        ("sample", checkpoint, "-o", tmp_path / "grid.png", "-n", "1", "--force", "--no-compare-float"),
    ):
        ended = cli(*arguments)
        assert ended.code == 0, ended.err
        assert "│" in ended.out
