"""Artefacts on the command line: outputs that exist, folders of another kind, changed files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.command_line import Cli, assert_refused
from tests.flow import Flow, snapshot, tampered


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_an_existing_output_that_is_not_ours_is_never_touched(
    cli: Cli, tmp_path: Path, flow: Flow, monkeypatch: pytest.MonkeyPatch, force: tuple[str, ...]
) -> None:
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "thesis.txt").write_text("years of work")
    (tmp_path / "o.png").write_text("a picture") if not force else (tmp_path / "o.png").mkdir()
    before = snapshot(tmp_path)
    bundle = flow.bundles["qdq"]
    assert_refused(cli("quantize", flow.pipeline, "-o", tmp_path / "o", *force), 2, "exists")
    assert_refused(cli("export", flow.checkpoint, "-o", tmp_path / "o", "--target", "qdq", *force), 2, "exists")
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
        assert_refused(cli("export", flow.checkpoint, "-o", output, "--target", "qdq"), 2, "file")
        assert_refused(cli("demo", "-o", output, "--force"), 2, "file")
        assert_refused(cli("sample", flow.bundles["qdq"], "-o", output), 2, "file")
    assert snapshot(tmp_path) == before


def test_an_artefact_of_another_kind(cli: Cli, tmp_path: Path, flow: Flow) -> None:
    bundle = flow.bundles["qdq"]
    assert_refused(cli("export", bundle, "-o", tmp_path / "o", "--target", "qdq"), 3, "is a bundle", "checkpoint")
    assert_refused(cli("check", flow.checkpoint, "--checkpoint", flow.checkpoint), 3, "is a checkpoint")
    assert_refused(cli("check", bundle, "--checkpoint", bundle), 3, "is a bundle")
    assert_refused(cli("build-engine", flow.bundles["onnxruntime"], "-o", tmp_path / "o", "--backend", "tensorrt-rtx"), 3, "onnxruntime")
    assert_refused(cli("bench", flow.checkpoint), 3, "is a checkpoint")
    assert snapshot(tmp_path) == {}


def test_a_changed_file(cli: Cli, tmp_path: Path, flow: Flow) -> None:
    bundle = tampered(flow.bundles["qdq"], tmp_path / "bundle")
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
    assert_refused(cli("export", checkpoint, "-o", tmp_path / "o", "--target", "qdq"), 3, "sha256")
    assert_refused(cli("check", flow.bundles["qdq"], "--checkpoint", checkpoint), 3, "sha256")
    assert snapshot(tmp_path) == before


def test_a_manifest_that_is_none(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    assert_refused(cli("inspect", tmp_path), 3, "manifest.json", "kind", "model")
