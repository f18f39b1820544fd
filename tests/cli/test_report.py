"""``report``: what it refuses before anything is measured, what it prints, and the exit code of a bundle that is not what it should be."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.command_line import Cli, assert_refused
from tests.flow import Flow, altered, snapshot, tampered

QUICK = ("--no-samples", "--no-layer-error", "--no-check")


def test_the_page_and_its_data(cli: Cli, flow: Flow, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    ended = cli("report", flow.bundles["float"], "--checkpoint", flow.checkpoint, "-o", page, *QUICK, "--title", "Ours", "--format", "json")
    assert ended.code == 0, ended.err
    data = json.loads(ended.out)
    assert data["title"] == "Ours"
    assert data["pictures"] is None
    assert data["checks"] == []
    assert [row["is_float"] for row in data["artifacts"]] == [False, True]
    assert data["commands"][-1].endswith("--no-samples --no-layer-error --no-check")
    assert "<h1>Ours</h1>" in page.read_text()
    table = cli("report", flow.checkpoint, "-o", page, *QUICK, "--force")
    assert table.code == 0, table.err
    assert "SNR at the worst timestep" in table.out
    assert f"page: {page}" in table.out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--no-samples", "-n", "3"), "--count would be ignored: --no-samples draws no pictures"),
        (("--batch", "1", "--runs", "3"), "--batch, --runs would be ignored: without --bench nothing is timed"),
        (("--bench", "--batch", "one"), "--batch"),
        (("--bench", "--batch", "0"), "there is no bundle and no engine to time; batch size 0 is below 1"),
        (("-n", "0"), "n is 0"),
        (("--steps", "2000"), "the scheduler refuses 2000 steps"),
        (("--classes", "1"), "the model takes no classes"),
    ],
)
def test_bad_options(cli: Cli, flow: Flow, tmp_path: Path, options: tuple[str, ...], words: str) -> None:
    assert_refused(cli("report", flow.checkpoint, "-o", tmp_path / "r.html", *options), 2, words)
    assert snapshot(tmp_path) == {}


def test_bad_paths(cli: Cli, flow: Flow, tmp_path: Path) -> None:
    page = tmp_path / "r.html"
    assert_refused(cli("report", "-o", page), 2, "--help")
    assert_refused(cli("report", tmp_path / "missing", "-o", page), 2, "no such path")
    assert_refused(cli("report", flow.pipeline, "-o", page), 3, "not a dq-deploy artefact")
    assert_refused(cli("report", flow.bundles["qdq"], "-o", page), 2, "none was given", "--checkpoint")
    assert_refused(cli("report", flow.checkpoint, "-o", tmp_path / "r.pdf"), 2, "does not end in .html")
    damaged = tampered(flow.checkpoint, tmp_path / "damaged")
    assert_refused(cli("report", damaged, "-o", page), 3, "another sha256")
    timed = ("--bench", "--baseline", flow.bundles["float"])
    assert_refused(cli("report", flow.checkpoint, flow.bundles["qdq"], "-o", page, *timed), 2, "is not among what is timed")
    page.write_text("mine")
    assert_refused(cli("report", flow.checkpoint, "-o", page), 2, "already exists", "--force")
    assert page.read_text() == "mine"


def test_a_failed_check_is_on_the_page_and_in_the_exit_code(cli: Cli, flow: Flow, tmp_path: Path) -> None:
    def shifted(model: onnx.ModelProto) -> None:
        table = next(t for t in model.graph.initializer if t.name.endswith(".input.scale") and numpy_helper.to_array(t).size > 1)
        table.CopyFrom(numpy_helper.from_array(np.roll(numpy_helper.to_array(table), 1), table.name))

    bundle = altered(flow.bundle("qdq"), tmp_path / "shifted", shifted)
    page = tmp_path / "report.html"
    ended = cli("report", flow.checkpoint, bundle.path, "-o", page, "--no-samples", "--no-layer-error")
    assert ended.code == 6, ended.err
    assert "shifted: " in ended.err
    assert "✗ failed" in page.read_text()
