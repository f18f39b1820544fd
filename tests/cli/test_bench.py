"""`dq-deploy bench`: what it refuses, and its gate."""

from __future__ import annotations

import json

import pytest

from tests.command_line import Cli, assert_refused
from tests.flow import Flow


@pytest.mark.parametrize("value", ["", "0", "-1", "1,x", "1.5"])
def test_bad_batch_of_a_bench(cli: Cli, flow: Flow, value: str) -> None:
    assert_refused(cli("bench", flow.bundles["qdq"], "--batch", value), 2, "batch")


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
    assert_refused(cli("bench", flow.bundles["qdq"], flow.bundles["onnxruntime"], *arguments), 2, *words)


def test_the_performance_gate(cli: Cli, flow: Flow) -> None:
    contenders = (flow.bundles["float"], flow.bundles["onnxruntime"], "--engine", "onnxruntime", "--runs", "3", "--format", "json")
    ended = cli("bench", *contenders, "--max-ratio", "0.000001")
    assert ended.code == 7
    assert ended.err.count("error: ") == 1
    assert "0.000001" in ended.err or "1e-06" in ended.err
    assert json.loads(ended.out)["failures"]
