"""``build-engine --backend openvino`` from the command line, and what takes the engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dq_deploy.artifacts import Artifact
from dq_deploy.cli import run
from tests.engines import graphs


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return graphs.network(tmp_path_factory.mktemp("bundle") / "bundle")


def test_engine_of_openvino(bundle: Artifact, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["build-engine", str(bundle.path), "-o", str(tmp_path / "engine"), "--backend", "openvino", "--batch", "1,2,4"]
    assert run([*arguments, "--int8-kernels", "always", "--format", "json"]) == 0
    captured = capfd.readouterr()
    (report,) = json.loads(captured.out)["reports"]
    assert (report["backend"], report["planned_int8"], report["planned_layers"]) == ("openvino", 8, 8)
    assert "building with openvino" in captured.err

    assert run(["bench", str(tmp_path / "engine"), "--batch", "4", "--runs", "1", "--format", "json"]) == 0
    (row,) = json.loads(capfd.readouterr().out)["rows"]
    assert row["contender"] == "engine · openvino"


def test_layers_in_float_are_warned_of_and_counted(bundle: Artifact, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["build-engine", str(bundle.path), "-o", str(tmp_path / "engine"), "--backend", "openvino", "--int8-kernels", "never"]
    assert run(arguments) == 0
    captured = capfd.readouterr()
    assert "warning: layer attn.pv does not run in INT8" in captured.err
    assert "warning: and 3 more layers (--format json has them all)" in captured.err


def test_option_of_another_backend_ends_with_exit_code_2(bundle: Artifact, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["build-engine", str(bundle.path), "-o", str(tmp_path / "engine"), "--backend", "openvino"]
    assert run([*arguments, "--compute-capability", "8.9"]) == 2
    assert "backend openvino builds for the CPU, so --compute-capability does not apply" in capfd.readouterr().err
    assert not (tmp_path / "engine").exists()
