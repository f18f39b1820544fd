"""Options of ``build-engine`` on the command line: how they are written, and refused."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from dq_deploy.artifacts import Artifact, open_artifact
from dq_deploy.cli import run
from tests.engines import graphs

SIZES = ("--height", "4,8,16", "--width", "8,8,8")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return graphs.any_size(tmp_path_factory.mktemp("bundle") / "bundle")


def build(bundle: Artifact, output: Path, *options: str) -> int:
    return run(["build-engine", str(bundle.path), "-o", str(output), "--format", "json", *options])


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed")
def test_options_are_kept_in_the_manifest(bundle: Artifact, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = ("--backend", "tensorrt-rtx", "--compute-capability", "8.9", "--optimization-level", "0", "--workspace-mb", "256")
    assert build(bundle, tmp_path / "engine", *options, *SIZES) == 0
    assert json.loads(capfd.readouterr().out)["reports"][0]["planned_int8"] == 2
    details = open_artifact(tmp_path / "engine", "engine").manifest.details
    assert details["options"] == {"optimization_level": 0, "workspace_mb": 256}
    assert details["sizes"] == {"height": [4, 8, 16], "width": [8, 8, 8]}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--backend", "tensorrt-rtx", *SIZES, "--timing-cache", "cache"), "TensorRT-RTX times no kernels when it builds"),
        (("--backend", "openvino", *SIZES, "--weight-streaming"), "backend openvino has no --weight-streaming"),
        (("--backend", "openvino", *SIZES, "--optimization-level", "0"), "backend openvino has no --optimization-level"),
        (("--backend", "tensorrt-rtx", *SIZES, "--optimization-level", "9"), "optimization_level is 9"),
        (
            ("--backend", "openvino", *SIZES, "--tokens", "1,2,3"),
            "the graph has no dynamic dimension tokens\nhint: it has: batch, height, width",
        ),
        (("--backend", "openvino"), "the graph has the dynamic dimension(s) height, width, which need a range"),
        (("--backend", "openvino", "--height", "4,8"), "--height takes MIN,OPT,MAX, not '4,8'"),
        (("--backend", "openvino", "--width", "wide"), "--width takes whole numbers with commas between them"),
    ],
)
def test_refused(bundle: Artifact, tmp_path: Path, capfd: pytest.CaptureFixture[str], options: tuple[str, ...], expected: str) -> None:
    assert build(bundle, tmp_path / "engine", *options) == 2
    assert expected in capfd.readouterr().err
    assert not (tmp_path / "engine").exists()
