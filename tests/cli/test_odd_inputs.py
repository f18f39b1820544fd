"""Odd command lines and paths: each ends with an error that says what is wrong, and none in a traceback."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from dq_deploy.artifacts import create_artifact, open_artifact
from dq_deploy.errors import UsageError
from tests.command_line import Cli
from tests.flow import Flow, snapshot

LONG = "x" * 300
PATHS = (
    "", "a\0b", LONG, f"{LONG}/x", "file", "file/below", "bin", "empty", "pipe", "loop", "loop/x", "dangling", "folder", "/dev/null",
    "/dev/zero", "/proc/self/mem", "-", "~nobody/x", "..", "é–ж",
)  # fmt: skip
SOURCES = ("owner/name@", "a/b/c", "builtin:", "builtin:\0", "https://example.org/a/b", "owner/na me", "a/b@\0", "owner/name")
VALUES = (
    ("--steps", "0"), ("--steps", "99999999999999999999"), ("--seed", "99999999999999999999"), ("--seed", "-1"), ("--batch-size", "0"),
    ("--weight-bits", "1"), ("--weight-bits", "99"), ("--guidance-scale", "nan"), ("--guidance-scale", "inf"), ("--guidance-scale", "3"),
    ("--classes", "a-b"), ("--classes", ""), ("--classes", "9-1"), ("--keep", "x"), ("--keep", "=8"), ("--keep", "*=nan"),
    ("--lora-scale", "nan"), ("--device", "tpu"), ("--device", ""), ("--auto-bits", "x"), ("--auto-bits", "nanMB"),
    ("--auto-bits", "-1x"), ("--auto-bits", "1e999dB"), ("--preset", ""), ("--height", "8"), ("--sampler", "x"),
)  # fmt: skip
REST = {
    "export": ("-o", "o", "--target", "qdq"),
    "check": ("--checkpoint", "folder"),
    "inspect": (),
    "layers": (),
    "sample": ("-o", "o.png"),
    "report": ("-o", "o.html"),
    "model-card": (),
    "push": ("a/b",),
    "bench": (),
    "build-engine": ("-o", "o", "--backend", "openvino"),
    "triton-repository": ("-o", "o"),
    "pipeline-folder": ("-o", "o", "--for", "openvino-genai"),
}


@pytest.fixture(autouse=True)
def among_odd_things(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "bin").write_bytes(b"\xff\xfe\0")
    (tmp_path / "empty").write_text("")
    os.mkfifo("pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")


def refused(cli: Cli, *command: object, codes: tuple[int, ...] = (2, 3, 4)) -> None:
    ended = cli(*command)
    assert ended.code in codes, (command, ended.err)
    assert "Traceback" not in ended.err
    assert ended.err.count("error: ") == 1, (command, ended.err)


def test_as_a_source(cli: Cli) -> None:
    for path in (*PATHS, *SOURCES):
        refused(cli, "quantize", path, "-o", "out", "--dry-run")


@pytest.mark.parametrize("command", REST)
def test_as_an_artefact(cli: Cli, command: str) -> None:
    for path in (*PATHS, "owner/name"):
        refused(cli, command, path, *REST[command])


@pytest.mark.parametrize("option", ["--prompts", "--config", "--lora"])
def test_as_an_option(cli: Cli, flow: Flow, option: str) -> None:
    for path in PATHS:
        if (option, path) not in {("--config", "/dev/null"), ("--prompts", "pipe"), ("--prompts", "/dev/zero")}:  # these wait, or never end
            refused(cli, "quantize", flow.pipeline, "-o", "out", "--dry-run", option, path)


def test_values(cli: Cli, flow: Flow) -> None:
    for option, value in VALUES:
        refused(cli, "quantize", flow.pipeline, "-o", "out", "--dry-run", option, value)


def test_force_never_replaces_what_an_artefact_is_made_from(cli: Cli, flow: Flow, tmp_path: Path) -> None:
    checkpoint, bundle = tmp_path / "outer" / "c", tmp_path / "b"
    shutil.copytree(flow.bundles["qdq"], tmp_path / "outer")
    shutil.copytree(flow.checkpoint, checkpoint)
    shutil.copytree(flow.bundles["qdq"], bundle)
    (tmp_path / "link").symlink_to(checkpoint)
    before = snapshot(tmp_path)
    for output in (checkpoint, tmp_path / "link", tmp_path / "outer"):
        refused(cli, "export", checkpoint, "-o", output, "--target", "onnxruntime", "--force", codes=(2,))
    refused(cli, "build-engine", bundle, "-o", bundle, "--backend", "openvino", "--force", codes=(2,))
    refused(cli, "triton-repository", bundle, "-o", bundle, "--force", codes=(2,))
    assert snapshot(tmp_path) == before


def test_as_an_output(cli: Cli, flow: Flow) -> None:
    for path in ("a\0b", LONG, "/", "file", "file/below", "/dev/null", "loop", "loop/x", "dangling/x", ".."):
        refused(cli, "export", flow.checkpoint, "-o", path, "--target", "onnxruntime", codes=(2,))
    refused(cli, "export", flow.checkpoint, "-o", os.fsdecode(b"bad\xff"), "--target", "onnxruntime", codes=(2,))
    manifest = open_artifact(flow.checkpoint, "checkpoint").manifest
    with (
        pytest.raises(UsageError, match="cannot create /proc/x: No such file or directory\nchoose another output"),
        create_artifact("/proc/x", manifest),
    ):
        pass
