"""The command line itself: what it prints where, its exit codes, and what it leaves behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper
from safetensors.numpy import load_file, save_file

from dq_deploy.cli import run
from tests.flow import Flow, altered, snapshot, tampered

HEAVY = (
    "torch",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "diffusers",
    "transformers",
    "onnxruntime",
    "openvino",
    "tensorrt_rtx",
    "polygraphy",
    "matplotlib",
)
COMMANDS = ("quantize", "export", "build-engine", "check", "bench", "sample", "inspect", "demo")
FAST = ("--steps", "2", "--calibration-samples", "2", "--iterations", "0")


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code, stdout, stderr."""

    code: int
    out: str
    err: str


Cli = Callable[..., Ended]


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Cli:
    def call(*arguments: object) -> Ended:
        capfd.readouterr()
        code = run([str(a) for a in arguments])
        captured = capfd.readouterr()
        return Ended(code, captured.out, captured.err)

    return call


def process(*arguments: object, without: tuple[str, ...] = ()) -> Ended:
    """The command in a process of its own, in which some packages cannot be imported."""
    program = f"""
import sys
from importlib.abc import MetaPathFinder
hidden = {without!r}
class Hide(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hide())
from dq_deploy.cli import main
main()
"""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    return Ended(done.returncode, done.stdout, done.stderr)


def assert_refused(ended: Ended, code: int, *words: str) -> None:
    """One error line with these words, perhaps a hint after it, and nothing else."""
    assert ended.code == code, ended.err
    assert ended.out == ""
    lines = ended.err.splitlines()
    assert "Traceback" not in ended.err
    assert ended.err.count("error: ") == 1
    assert lines[0].startswith("error: "), ended.err
    assert not lines[1:] or lines[1].startswith("hint: "), ended.err
    for word in words:
        assert word in ended.err


# What is asked for is wrong.


def test_a_path_that_does_not_exist(cli: Cli, tmp_path: Path, flow: Flow) -> None:
    missing = tmp_path / "missing"
    assert_refused(cli("quantize", missing, "-o", tmp_path / "o"), 2, f"no such path: {missing}")
    assert_refused(cli("export", missing, "-o", tmp_path / "o", "--target", "tensorrt"), 2, f"no such path: {missing}")
    assert_refused(cli("build-engine", missing, "-o", tmp_path / "o", "--backend", "tensorrt-rtx"), 2, f"no such path: {missing}")
    assert_refused(cli("check", missing, "--checkpoint", flow.checkpoint), 2, f"no such path: {missing}")
    assert_refused(cli("check", flow.bundles["tensorrt"], "--checkpoint", missing), 2, f"no such path: {missing}")
    assert_refused(cli("bench", missing), 2, f"no such path: {missing}")
    assert_refused(cli("bench", flow.bundles["tensorrt"], "--baseline", missing), 2, f"no such path: {missing}")
    assert_refused(cli("sample", missing, "-o", tmp_path / "o.png"), 2, f"no such path: {missing}")
    assert_refused(cli("inspect", missing), 2, f"no such path: {missing}")
    assert_refused(cli("quantize", flow.pipeline, "-o", tmp_path / "o", "--config", missing), 2, f"no such path: {missing}")
    assert snapshot(tmp_path) == {}


def test_an_unknown_preset_lists_those_that_exist(cli: Cli, tmp_path: Path, flow: Flow) -> None:
    assert_refused(cli("quantize", flow.pipeline, "-o", tmp_path / "o", "--preset", "w3a3"), 2, "w3a3", "w8a8, w6a6, w4a8, w4a4")
    assert snapshot(tmp_path) == {}


def test_an_unknown_builtin_lists_those_that_exist(cli: Cli, tmp_path: Path) -> None:
    assert_refused(cli("quantize", "builtin:mnist", "-o", tmp_path / "o"), 2, "builtin:mnist", "those that exist")
    assert snapshot(tmp_path) == {}


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_an_existing_output_that_is_not_ours_is_never_touched(
    cli: Cli, tmp_path: Path, flow: Flow, monkeypatch: pytest.MonkeyPatch, force: tuple[str, ...]
) -> None:
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "thesis.txt").write_text("years of work")
    (tmp_path / "o.png").write_text("a picture") if not force else (tmp_path / "o.png").mkdir()
    before = snapshot(tmp_path)
    bundle = flow.bundles["tensorrt"]
    assert_refused(cli("quantize", flow.pipeline, "-o", tmp_path / "o", *force), 2, "exists")
    assert_refused(cli("export", flow.checkpoint, "-o", tmp_path / "o", "--target", "tensorrt", *force), 2, "exists")
    assert_refused(cli("build-engine", bundle, "-o", tmp_path / "o", "--backend", "tensorrt-rtx", *force), 2, "exists")
    assert_refused(cli("sample", bundle, "-o", tmp_path / "o.png", *force), 2, "o.png")
    if not force:
        assert_refused(cli("demo", "-o", tmp_path / "o"), 2, "exists")
    assert snapshot(tmp_path) == before


def test_an_output_below_a_file_or_in_a_folder_that_is_read_only(cli: Cli, tmp_path: Path, flow: Flow) -> None:
    (tmp_path / "file").write_text("")
    before = snapshot(tmp_path)
    for output in (tmp_path / "file" / "o", tmp_path / "file"):
        assert_refused(cli("quantize", flow.pipeline, "-o", output), 2, "file")
        assert_refused(cli("export", flow.checkpoint, "-o", output, "--target", "tensorrt"), 2, "file")
        assert_refused(cli("demo", "-o", output, "--force"), 2, "file")
        assert_refused(cli("sample", flow.bundles["tensorrt"], "-o", output), 2, "file")
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("value", ["conv_in", "=8", "conv_in=", "conv_in=9", "conv_in=1", "conv_in=int8", "conv_in=²", "conv_in=-4"])
def test_bad_keep(cli: Cli, tmp_path: Path, flow: Flow, value: str) -> None:
    assert_refused(cli("quantize", flow.pipeline, "-o", tmp_path / "o", "--keep", value), 2, "keep")
    assert snapshot(tmp_path) == {}


def test_a_keep_pattern_that_matches_no_layer(cli: Cli, tmp_path: Path, flow: Flow) -> None:
    assert_refused(cli("quantize", flow.pipeline, "-o", tmp_path / "o", "--keep", "no.such.layer=8", *FAST), 2, "no.such.layer")
    assert snapshot(tmp_path) == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"step": 20, "sed": 1}', ("step", "sed", "steps")),
        ('{"steps": "twenty"}', ("steps", "twenty")),
        ('{"weight_bits": 9, "batch_size": 0}', ("weight_bits", "batch_size")),
        ('{"weight_bits": true}', ("weight_bits",)),
        ('{"keep": ["conv_in"]}', ("keep",)),
        ('{"keep": {"conv_in": "int8"}}', ("keep",)),
        ('{"preset": ["w8a8"]}', ("preset",)),
        ('{"preset": "w5a5"}', ("w5a5", "w6a6")),
        ('{"lr_scale": NaN}', ("lr_scale",)),
        ('{"source": "x", "force": true, "cls": 1}', ("source", "force", "cls")),
        ("[1, 2]", ("one JSON object",)),
        ("steps = 20", ("not a JSON file",)),
        ("\udcff", ("not a JSON file",)),
    ],
)
def test_bad_config(cli: Cli, tmp_path: Path, flow: Flow, text: str, words: tuple[str, ...]) -> None:
    config = tmp_path / "options.json"
    config.write_bytes(text.encode(errors="surrogateescape"))
    before = snapshot(tmp_path)
    assert_refused(cli("quantize", flow.pipeline, "-o", tmp_path / "o", "--config", config), 2, *words)
    assert_refused(cli("quantize", flow.pipeline, "-o", tmp_path / "o", "--config", tmp_path), 2, "not a JSON file")
    assert snapshot(tmp_path) == before


def test_flags_win_over_the_config(cli: Cli, tmp_path: Path, flow: Flow) -> None:
    config = tmp_path / "options.json"
    config.write_text('{"preset": "w4a4", "seed": 3, "steps": 9, "max_float_share": 0.5, "keep": {"conv_out": 6, "*time_emb*": 7}}')
    flags = (*FAST, "--preset", "w8a8", "--keep", "conv_out=5", "--batch-size", "2", "--format", "json")
    ended = cli("quantize", flow.pipeline, "-o", tmp_path / "o", "--config", config, *flags)
    assert ended.code == 0, ended.err
    options = json.loads(ended.out)["manifest"]["quantization"]
    assert (options["weight_bits"], options["activation_bits"]) == (8, 8)
    assert (options["seed"], options["steps"]) == (3, 2)
    assert options["keep"] == {"@first": "float", "@last": 8, "conv_out": 5, "*time_emb*": 7}


@pytest.mark.parametrize("value", ["", "1,2", "1,2,3,4", "a,b,c", "1.5,2,3", "0,1,2", "4,2,1", "1;2;3"])
def test_bad_batch_of_an_engine(cli: Cli, tmp_path: Path, flow: Flow, value: str) -> None:
    ended = cli("build-engine", flow.bundles["tensorrt"], "-o", tmp_path / "o", "--backend", "tensorrt-rtx", "--batch", value)
    assert_refused(ended, 2, "batch")
    assert snapshot(tmp_path) == {}


@pytest.mark.parametrize("value", ["", "0", "-1", "1,x", "1.5"])
def test_bad_batch_of_a_bench(cli: Cli, flow: Flow, value: str) -> None:
    assert_refused(cli("bench", flow.bundles["tensorrt"], "--batch", value), 2, "batch")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--runs", "0"), ("runs",)),
        (("--threads", "0", "--engine", "onnxruntime"), ("threads",)),
        (("--max-ratio", "nan"), ("ratio",)),
        (("--max-ratio", "-1"), ("ratio",)),
        (("--engine", "tensorflow"), ("tensorflow",)),
    ],
)
def test_bad_settings_of_a_bench(cli: Cli, flow: Flow, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    assert_refused(cli("bench", flow.bundles["tensorrt"], flow.bundles["onnxruntime"], *arguments), 2, *words)


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
    assert_refused(cli("sample", flow.bundles["tensorrt"], "-o", tmp_path / "o.png", option, value), 2)
    assert_refused(cli("sample", flow.bundles["tensorrt"], "-o", tmp_path / "o.jpeg"), 2, ".png")
    assert snapshot(tmp_path) == {}


@pytest.mark.parametrize(
    ("option", "value"),
    [("--steps", "0"), ("--iterations", "-1"), ("--calibration-samples", "0"), ("--weight-bits", "16"), ("--seed", "-1")],
)
def test_bad_numbers_of_quantize(cli: Cli, tmp_path: Path, flow: Flow, option: str, value: str) -> None:
    assert_refused(
        cli("quantize", flow.pipeline, "-o", tmp_path / "o", option, value), 2, option.removeprefix("--").replace("-", "_"), value
    )
    assert snapshot(tmp_path) == {}


@pytest.mark.parametrize(("option", "value"), [("--iterations", "-1"), ("--seed", "-1")])
def test_the_demo_refuses_before_it_makes_its_folder(cli: Cli, tmp_path: Path, option: str, value: str) -> None:
    assert_refused(cli("demo", "-o", tmp_path / "o", option, value), 2, value)
    assert snapshot(tmp_path) == {}


def test_a_wrong_capability(cli: Cli, tmp_path: Path, flow: Flow) -> None:
    common = ("build-engine", flow.bundles["tensorrt"], "-o", tmp_path / "o", "--backend", "tensorrt-rtx")
    assert_refused(cli(*common, "--compute-capability", "ada"), 2, "ada")
    assert_refused(cli(*common, "--timeout", "-1", "--compute-capability", "8.9"), 2, "-1")
    assert snapshot(tmp_path) == {}


# What is handed in is broken.


def test_a_folder_that_is_no_pipeline(cli: Cli, tmp_path: Path, flow: Flow) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "readme.txt").write_text("nothing here")
    before = snapshot(tmp_path)
    assert_refused(cli("quantize", tmp_path / "in", "-o", tmp_path / "o"), 3, "no diffusers pipeline", "model_index.json")
    assert_refused(cli("quantize", tmp_path / "in" / "readme.txt", "-o", tmp_path / "o"), 3, "is a file")
    assert_refused(cli("quantize", flow.checkpoint, "-o", tmp_path / "o"), 3, "no diffusers pipeline")
    assert_refused(cli("export", flow.pipeline, "-o", tmp_path / "o", "--target", "tensorrt"), 3, "manifest.json")
    assert_refused(cli("inspect", flow.pipeline), 3, "manifest.json")
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_in_a_weight(cli: Cli, tmp_path: Path, flow: Flow, value: float) -> None:
    shutil.copytree(flow.pipeline, tmp_path / "in")
    (weights,) = (tmp_path / "in" / "unet").glob("*.safetensors")
    tensors = load_file(weights)
    tensors["mid_block.resnets.0.conv1.weight"][0, 0, 0, 0] = value
    save_file(tensors, weights, metadata={"format": "pt"})
    before = snapshot(tmp_path)
    assert_refused(cli("quantize", tmp_path / "in", "-o", tmp_path / "o"), 3, "mid_block.resnets.0.conv1.weight")
    assert snapshot(tmp_path) == before


def test_an_artefact_of_another_kind(cli: Cli, tmp_path: Path, flow: Flow) -> None:
    bundle = flow.bundles["tensorrt"]
    assert_refused(cli("export", bundle, "-o", tmp_path / "o", "--target", "tensorrt"), 3, "is a bundle", "checkpoint")
    assert_refused(cli("check", flow.checkpoint, "--checkpoint", flow.checkpoint), 3, "is a checkpoint")
    assert_refused(cli("check", bundle, "--checkpoint", bundle), 3, "is a bundle")
    assert_refused(cli("build-engine", flow.bundles["onnxruntime"], "-o", tmp_path / "o", "--backend", "tensorrt-rtx"), 3, "onnxruntime")
    assert_refused(cli("bench", flow.checkpoint), 3, "is a checkpoint")
    assert snapshot(tmp_path) == {}


def test_a_changed_file(cli: Cli, tmp_path: Path, flow: Flow) -> None:
    bundle = tampered(flow.bundles["tensorrt"], tmp_path / "bundle")
    checkpoint = tampered(flow.checkpoint, tmp_path / "checkpoint")
    before = snapshot(tmp_path)
    for arguments in (
        ("check", bundle, "--checkpoint", flow.checkpoint),
        ("build-engine", bundle, "-o", tmp_path / "o", "--backend", "tensorrt-rtx"),
        ("bench", bundle),
        ("sample", bundle, "-o", tmp_path / "o.png"),
        ("inspect", bundle),
    ):
        assert_refused(cli(*arguments), 3, "model.onnx", "sha256")
    assert_refused(cli("export", checkpoint, "-o", tmp_path / "o", "--target", "tensorrt"), 3, "sha256")
    assert_refused(cli("check", flow.bundles["tensorrt"], "--checkpoint", checkpoint), 3, "sha256")
    assert snapshot(tmp_path) == before


def test_a_manifest_that_is_none(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    assert_refused(cli("inspect", tmp_path), 3, "manifest.json", "kind", "model")


# Gates.


def test_the_accuracy_gate(cli: Cli, tmp_path: Path, flow: Flow) -> None:
    layer = "down_blocks.0.resnets.0.conv1"

    def drop_bias(model: ModelProto) -> None:
        (tensor,) = (t for t in model.graph.initializer if t.name == f"{layer}.bias")
        tensor.CopyFrom(numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(tensor)), tensor.name))

    bundle = altered(flow.bundle("tensorrt"), tmp_path / "b", drop_bias)
    ended = cli("check", bundle.path, "--checkpoint", flow.checkpoint, "--format", "json")
    assert ended.code == 6
    verdict = json.loads(ended.out)
    assert not verdict["passed"]
    assert verdict["worst_layer"] == layer
    assert ended.err.count("error: ") == 1
    assert layer in ended.err
    table = cli("check", bundle.path, "--checkpoint", flow.checkpoint)
    assert table.code == 6
    assert "FAILED" in table.out
    assert f"worst layer {layer}" in table.out


def test_lint_passes_what_was_exported(cli: Cli, flow: Flow) -> None:
    for name in ("tensorrt", "tensorrt-fp16", "float"):
        ended = cli("check", flow.bundles[name], "--lint")
        assert ended.code == 0, ended.out
        assert ended.out == "lint for tensorrt: passed, 0 errors, 0 warnings\n"
    ended = cli("check", flow.bundles["onnxruntime"], "--lint", "--format", "json")
    assert ended.code == 0
    found = json.loads(ended.out)
    assert found["passed"]
    assert found["errors"] == 0
    # Convolutions whose output is not quantized run in float there, and it says so of each.
    layers = flow.bundle("onnxruntime").manifest.details["layers"]
    convs = {layer["name"] for layer in layers if layer["op"] == "conv2d"}
    assert {(f["rule"], f["severity"]) for f in found["findings"]} == {("float-convolution", "warning")}
    assert {f["module"] for f in found["findings"]} == convs


def computed_scale(model: ModelProto) -> None:
    """Let every activation's Q/DQ pair take a scale that is computed."""
    scale = next(n for n in model.graph.node if n.op_type == "Gather" and n.name.endswith(".scale/Gather")).output[0]
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.input[1] == "dq_deploy.one":
            node.input[1] = scale


def test_lint_names_every_offender_and_ends_with_exit_code_3(cli: Cli, tmp_path: Path, flow: Flow) -> None:
    bundle = altered(flow.bundle("tensorrt"), tmp_path / "b", computed_scale).path
    layers = {layer["name"] for layer in flow.bundle("tensorrt").manifest.details["layers"]}
    before = snapshot(tmp_path)
    ended = cli("check", bundle, "--lint", "--format", "json")
    assert ended.code == 3
    found = json.loads(ended.out)
    assert not found["passed"]
    assert {f["module"] for f in found["findings"]} == layers
    assert {f["rule"] for f in found["findings"]} == {"computed-scale-conv", "computed-scale-matmul"}
    for layer in layers:
        assert f"(module {layer})" in ended.err
    assert "hint: computed-scale-conv: keep the Q/DQ scale constant (1)" in ended.err
    # The lint comes first: nothing is compared, and nothing is built.
    table = cli("check", bundle, "--lint", "--checkpoint", flow.checkpoint)
    assert table.code == 3
    assert "lint for tensorrt: FAILED" in table.out
    assert "PyTorch dB" not in table.out
    built = cli("build-engine", bundle, "-o", tmp_path / "engine", "--backend", "tensorrt-rtx")
    assert built.code == (3 if find_spec("tensorrt_rtx") else 4)
    assert snapshot(tmp_path) == before


def test_lint_and_parity_in_one_command(cli: Cli, flow: Flow) -> None:
    ended = cli("check", flow.bundles["tensorrt"], "--lint", "--checkpoint", flow.checkpoint, "--format", "json")
    assert ended.code == 0, ended.err
    verdict = json.loads(ended.out)
    assert verdict["passed"]
    assert verdict["layers"]
    assert verdict["lint"]["passed"]
    assert verdict["lint"]["findings"] == []


def test_lint_of_any_onnx_file(cli: Cli, tmp_path: Path, flow: Flow) -> None:
    shutil.copytree(flow.bundles["tensorrt"], tmp_path / "copy")
    assert cli("check", tmp_path / "copy" / "model.onnx", "--lint").code == 0
    (tmp_path / "broken.onnx").write_bytes(b"ftrt")
    assert_refused(cli("check", tmp_path / "broken.onnx", "--lint"), 3, "broken.onnx is not an ONNX graph")
    assert_refused(cli("check", tmp_path / "none", "--lint"), 2, "no such path")
    assert_refused(cli("check", flow.checkpoint, "--lint"), 3, "is a checkpoint, and a bundle is needed here")


def test_lint_needs_no_torch_and_no_engine(flow: Flow) -> None:
    ended = process("check", flow.bundles["tensorrt"], "--lint", without=tuple(set(HEAVY) - {"onnx", "onnx_ir", "onnxscript"}))
    assert ended.code == 0, ended.err


def test_the_performance_gate(cli: Cli, flow: Flow) -> None:
    contenders = (flow.bundles["float"], flow.bundles["onnxruntime"], "--engine", "onnxruntime", "--runs", "3", "--format", "json")
    ended = cli("bench", *contenders, "--max-ratio", "0.000001")
    assert ended.code == 7
    assert ended.err.count("error: ") == 1
    assert "0.000001" in ended.err or "1e-06" in ended.err
    assert json.loads(ended.out)["failures"]


# What is not there.


@pytest.mark.parametrize("command", [(), *((c,) for c in COMMANDS)])
def test_help_needs_nothing(command: tuple[str, ...]) -> None:
    ended = process(*command, "--help", without=HEAVY)
    assert ended.code == 0, ended.err
    assert ended.out.startswith("Usage: dq-deploy")
    assert ended.err == ""


def test_importing_the_package_imports_nothing_heavy() -> None:
    program = f"import sys, dq_deploy, dq_deploy.cli; sys.exit(bool(set({HEAVY!r}) & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_inspect_needs_no_runtime(flow: Flow) -> None:
    for path in (flow.checkpoint, flow.bundles["tensorrt"]):
        ended = process("inspect", path, "--format", "json", without=HEAVY)
        assert ended.code == 0, ended.err
        assert json.loads(ended.out) == json.loads((path / "manifest.json").read_text())
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
        ("matplotlib", "demo"),
        ("onnxruntime", "demo"),
        ("tensorrt_rtx", "build-engine"),
    ],
)
def test_a_missing_dependency(tmp_path: Path, flow: Flow, missing: str, command: str) -> None:
    bundle, output = flow.bundles["tensorrt"], tmp_path / "o"
    arguments: dict[str, tuple[Any, ...]] = {
        "quantize": (flow.pipeline, "-o", output, *FAST),
        "export": (flow.checkpoint, "-o", output, "--target", "tensorrt"),
        "check": (bundle, "--checkpoint", flow.checkpoint, "-q"),
        "bench": (bundle, *(("--engine", "openvino") if missing == "openvino" else ())),
        "demo": ("-o", output),
        "build-engine": (bundle, "-o", output, "--backend", "tensorrt-rtx"),
    }
    ended = process(command, *arguments[command], without=(missing,))
    assert_refused(ended, 4, "pip install")
    assert missing in ended.err.replace("-", "_")
    assert snapshot(tmp_path) == {}


def test_enterprise_tensorrt_is_not_installed_here(cli: Cli, tmp_path: Path, flow: Flow) -> None:
    if find_spec("tensorrt") is not None:
        pytest.skip("TensorRT is installed")
    ended = cli("build-engine", flow.bundles["tensorrt"], "-o", tmp_path / "o", "--backend", "tensorrt")
    assert_refused(ended, 4, "tensorrt", "pip install")
    assert snapshot(tmp_path) == {}


# Interrupted.


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_while_quantizing(tmp_path: Path, flow: Flow, number: signal.Signals) -> None:
    # A progress line for every step tells when the work is under way.
    program = "from dq_deploy import cli, console; console._LINE_INTERVAL_S = 0; cli.main()"
    options = ("--steps", "1000", "--calibration-samples", "64", "--batch-size", "1")
    command = [sys.executable, "-c", program, "quantize", str(flow.pipeline), "-o", str(tmp_path / "o"), *options]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as job:
        assert job.stderr is not None
        assert any("/" in line and "left" in line for line in job.stderr), "the work never began"
        job.send_signal(number)
        out, err = job.communicate(timeout=60)
    assert job.returncode == 130, err
    assert out == ""
    assert "Traceback" not in err
    assert err.splitlines()[-1] == "warning: interrupted; nothing half-written is left"
    assert snapshot(tmp_path) == {}


def test_a_reader_that_leaves_early(flow: Flow) -> None:
    command = f"{sys.executable} -c 'from dq_deploy.cli import main; main()' inspect {flow.checkpoint} --format json | head -c 10"
    ended = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert ended.stderr == ""


# A bug stays a bug.


def test_a_bug_shows_its_traceback(cli: Cli, monkeypatch: pytest.MonkeyPatch, flow: Flow) -> None:
    def broken(*_: object) -> None:
        raise KeyError("a bug of ours")

    monkeypatch.setattr("dq_deploy.artifacts.open_artifact", broken)
    ended = cli("inspect", flow.checkpoint)
    assert ended.code == 1
    assert "Traceback" in ended.err
    assert "please report" in ended.err


# The whole way.


def test_the_whole_way(cli: Cli, tmp_path: Path, flow_pipeline: Path) -> None:
    def data(*arguments: object) -> dict[str, Any]:
        ended = cli(*arguments, "--format", "json")
        assert ended.code == 0, ended.err
        assert "error" not in ended.err
        value = json.loads(ended.out)
        assert isinstance(value, dict)
        return value

    checkpoint, tensorrt, onnxruntime = (tmp_path / name for name in ("checkpoint", "tensorrt", "onnxruntime"))
    options = ("--steps", "3", "--calibration-samples", "8", "--iterations", "2", "--config", tmp_path / "options.json")
    (tmp_path / "options.json").write_text('{"max_float_share": 0.2, "reference_samples": 24}')
    made = data("quantize", flow_pipeline, "-o", checkpoint, *options)
    assert made["manifest"] == json.loads((checkpoint / "manifest.json").read_text())
    assert len(made["manifest"]["details"]["snr_db"]["after_distillation"]) == 3
    assert data("export", checkpoint, "-o", tensorrt, "--target", "tensorrt")["manifest"]["details"]["dtype"] == "fp16"
    # Force replaces an artefact of ours, the whole of it.
    shutil.copytree(checkpoint, onnxruntime)
    assert data("export", checkpoint, "-o", onnxruntime, "--target", "onnxruntime", "--force")["manifest"]["details"]["dtype"] == "fp32"
    assert not (onnxruntime / "graph.json").exists()
    verdict = data("check", onnxruntime, "--checkpoint", checkpoint)
    assert verdict["passed"]
    assert len(verdict["timesteps"]) == 3
    timing = data("bench", tensorrt, onnxruntime, "--runs", "3", "--engine", "onnxruntime", "--batch", "1,2", "--baseline", tensorrt)
    assert [row["batch"] for row in timing["rows"]] == [1, 1, 2, 2]
    assert timing["baseline"] == "tensorrt · onnxruntime"
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


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed")
def test_the_compiler_takes_every_planned_layer_as_int8(cli: Cli, tmp_path: Path, flow: Flow) -> None:
    common = ("--backend", "tensorrt-rtx", "--compute-capability", "8.9", "--format", "json")
    ended = cli("build-engine", flow.bundles["tensorrt-fp16"], "-o", tmp_path / "engine", *common)
    assert ended.code == 0, ended.err
    (report,) = json.loads(ended.out)["reports"]
    planned = flow.bundle("tensorrt-fp16").manifest.details["layers"]
    assert report["planned_int8"] == report["planned_layers"] == len(planned)
    assert report["not_int8"] == report["not_found"] == []
    assert "warning" not in ended.err
    shown = cli("inspect", tmp_path / "engine")
    assert shown.code == 0
    assert "tensorrt-rtx" in shown.out
    # It cannot run here, and every command that would need that says so.
    engine = tmp_path / "engine"
    assert_refused(cli("check", engine, "--checkpoint", flow.checkpoint), 4, "engine")
    assert_refused(cli("bench", engine), 4, "engine")
    assert_refused(cli("sample", engine, "-o", tmp_path / "o.png"), 4, "engine")
