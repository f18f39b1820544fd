"""`dq-deploy quantize`: what it refuses, and being stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.command_line import Cli, assert_refused
from tests.flow import Flow, snapshot
from tests.nightly import mostly_nightly

FAST = ("--steps", "2", "--calibration-samples", "2", "--iterations", "0")


def test_an_unknown_preset_lists_those_that_exist(cli: Cli, tmp_path: Path, flow: Flow) -> None:
    assert_refused(cli("quantize", flow.pipeline, "-o", tmp_path / "o", "--preset", "w3a3"), 2, "w3a3", "w8a8, w6a6, w4a8, w4a4")
    assert snapshot(tmp_path) == {}


def test_an_unknown_builtin_lists_those_that_exist(cli: Cli, tmp_path: Path) -> None:
    assert_refused(cli("quantize", "builtin:mnist", "-o", tmp_path / "o"), 2, "builtin:mnist", "those that exist")
    assert snapshot(tmp_path) == {}


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
        ('{"lr_scale": NaN}', ("not a JSON file", "NaN is not a JSON number")),
        ('{"seed": 1, "seed": 2}', ("not a JSON file", "key 'seed' stands there twice")),
        ('{"source": "x", "force": true, "cls": 1}', ("source", "force", "cls")),
        ("[1, 2]", ("one JSON object",)),
        ("steps = 20", ("not a JSON file",)),
        ("\udcff", ("not a JSON file",)),
        ('{"temporal": 3}', ("temporal is the former name of activations", "name one of them")),
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
    config.write_text(
        '{"preset": "w4a4", "seed": 3, "steps": 9, "max_float_share": 0.5, "temporal": false, "keep": {"conv_out": 6, "*time_emb*": 7}}'
    )
    flags = (*FAST, "--preset", "w8a8", "--keep", "conv_out=5", "--batch-size", "2", "--format", "json")
    ended = cli("quantize", flow.pipeline, "-o", tmp_path / "o", "--config", config, *flags)
    assert ended.code == 0, ended.err
    options = json.loads(ended.out)["manifest"]["quantization"]
    assert (options["weight_bits"], options["activation_bits"]) == (8, 8)
    assert (options["seed"], options["steps"], options["activations"]) == (3, 2, "static")  # by its former name
    assert options["keep"] == {"@first": "float", "@last": 8, "conv_out": 5, "*time_emb*": 7}


@pytest.mark.parametrize(
    ("option", "value"),
    [("--steps", "0"), ("--iterations", "-1"), ("--calibration-samples", "0"), ("--weight-bits", "16"), ("--seed", "-1")],
)
def test_bad_numbers_of_quantize(cli: Cli, tmp_path: Path, flow: Flow, option: str, value: str) -> None:
    assert_refused(
        cli("quantize", flow.pipeline, "-o", tmp_path / "o", option, value), 2, option.removeprefix("--").replace("-", "_"), value
    )
    assert snapshot(tmp_path) == {}


def test_a_folder_that_is_no_pipeline(cli: Cli, tmp_path: Path, flow: Flow) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "readme.txt").write_text("nothing here")
    before = snapshot(tmp_path)
    assert_refused(cli("quantize", tmp_path / "in", "-o", tmp_path / "o"), 3, "not a diffusers pipeline", "model_index.json")
    assert_refused(cli("quantize", tmp_path / "in" / "readme.txt", "-o", tmp_path / "o"), 3, "is a file")
    assert_refused(cli("quantize", flow.checkpoint, "-o", tmp_path / "o"), 3, "not a diffusers pipeline")
    assert_refused(cli("export", flow.pipeline, "-o", tmp_path / "o", "--target", "qdq"), 3, "manifest.json")
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


@pytest.mark.parametrize("number", mostly_nightly([signal.SIGINT, signal.SIGTERM], signal.SIGTERM))
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
