"""`dq-deploy build-engine --allow`: errors of the lint that the user lets pass."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.command_line import Cli, assert_refused
from tests.engines import graphs
from tests.flow import snapshot

pytest.importorskip("openvino")


def test_allowed_on_the_command_line_recorded_and_inspected(cli: Cli, tmp_path: Path) -> None:
    bundle = graphs.computed_scale(tmp_path / "bundle", "MatMul").path
    build = ("build-engine", bundle, "-o", tmp_path / "engine", "--backend", "openvino", "--format", "json")
    refused = cli(*build)
    assert refused.code == 3
    assert "computed-scale-matmul: layer/MatMul" in refused.err
    ended = cli(*build, "--allow", "computed-scale-matmul")
    assert ended.code == 0, ended.err
    assert "warning: computed-scale-matmul is allowed: TensorRT-RTX builds it without a word, and multiplies in FP32." in ended.err
    assert json.loads((tmp_path / "engine" / "manifest.json").read_text())["details"]["lint_allowed"] == {"computed-scale-matmul": 1}
    assert "lint overridden: computed-scale-matmul" in cli("inspect", tmp_path / "engine").out


def test_a_rule_that_is_none(cli: Cli, tmp_path: Path) -> None:
    bundle = graphs.computed_scale(tmp_path / "bundle", "MatMul").path
    before = snapshot(tmp_path)
    ended = cli("build-engine", bundle, "-o", tmp_path / "engine", "--backend", "openvino", "--allow", "computed-scale-matmull")
    assert_refused(
        ended,
        2,
        "no rule of the lint that may be allowed in a build for qdq: computed-scale-matmull",
        "did you mean computed-scale-matmul",
    )
    assert snapshot(tmp_path) == before
