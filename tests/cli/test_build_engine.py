"""`dq-deploy build-engine`: what it refuses, and the real compiler."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.command_line import Cli, assert_refused
from tests.flow import Flow, snapshot


@pytest.mark.parametrize("value", ["", "1,2", "1,2,3,4", "a,b,c", "1.5,2,3", "0,1,2", "4,2,1", "1;2;3"])
def test_bad_batch_of_an_engine(cli: Cli, tmp_path: Path, flow: Flow, value: str) -> None:
    ended = cli("build-engine", flow.bundles["qdq"], "-o", tmp_path / "o", "--backend", "tensorrt-rtx", "--batch", value)
    assert_refused(ended, 2, "batch")
    assert snapshot(tmp_path) == {}


def test_a_wrong_capability(cli: Cli, tmp_path: Path, flow: Flow) -> None:
    common = ("build-engine", flow.bundles["qdq"], "-o", tmp_path / "o", "--backend", "tensorrt-rtx")
    assert_refused(cli(*common, "--compute-capability", "ada"), 2, "ada")
    assert_refused(cli(*common, "--timeout", "-1", "--compute-capability", "8.9"), 2, "-1")
    assert snapshot(tmp_path) == {}


def test_enterprise_tensorrt_is_not_installed_here(cli: Cli, tmp_path: Path, flow: Flow) -> None:
    if find_spec("tensorrt") is not None:
        pytest.skip("TensorRT is installed")
    ended = cli("build-engine", flow.bundles["qdq"], "-o", tmp_path / "o", "--backend", "tensorrt")
    assert_refused(ended, 4, "engine tensorrt needs", "pip install")
    assert snapshot(tmp_path) == {}


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed")
def test_the_compiler_takes_every_layer_as_planned(cli: Cli, tmp_path: Path, flow: Flow) -> None:
    common = ("--backend", "tensorrt-rtx", "--compute-capability", "8.9", "--format", "json")
    ended = cli("build-engine", flow.bundles["qdq-fp16"], "-o", tmp_path / "engine", *common)
    assert ended.code == 0, ended.err
    (report,) = json.loads(ended.out)["reports"]
    planned = [layer for layer in flow.bundle("qdq-fp16").manifest.details["layers"] if layer["op"] != "matmul"]
    assert report["planned_int8"] == report["planned_layers"] == len(planned)
    assert report["attentions_fused"] == report["attentions"] == 1
    assert report["activation_bytes"] > 0
    assert report["not_int8"] == report["not_found"] == []
    assert "warning" not in ended.err
    shown = cli("inspect", tmp_path / "engine")
    assert shown.code == 0
    for row in ("tensorrt-rtx", r"compute capability\W+8\.9", r"batch\W+1 to ", r"input sample\W+batch × 1 × 8 × 8"):
        assert re.search(row, shown.out)
    # It cannot run here, and every command that would need that says so.
    engine = tmp_path / "engine"
    assert_refused(cli("check", engine, "--checkpoint", flow.checkpoint), 4, "engine")
    assert_refused(cli("bench", engine), 4, "engine")
    assert_refused(cli("sample", engine, "-o", tmp_path / "o.png"), 4, "engine")
