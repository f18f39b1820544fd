"""A page about the widths of one checkpoint: each bundle's pictures under its own name, in rows, and its own verdict."""

from __future__ import annotations

import shutil
from pathlib import Path
from statistics import mean

import pytest

from dq_deploy.artifacts import open_artifact
from dq_deploy.engines.build.engine import build_engine
from dq_deploy.exporters import export
from dq_deploy.report.data import ReportData
from dq_deploy.report.make import Drawing, ReportRequest, write_report
from dq_deploy.sampling import draw
from tests.tiny import make_checkpoint

BUNDLES = ("wide", "narrow", "least")


@pytest.fixture(scope="module")
def folder(attention_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundles of 8, 4 and 3 bits of one checkpoint with an engine of each, and that of 4 bits once more."""
    folder = tmp_path_factory.mktemp("widths")
    source = make_checkpoint(attention_pipeline, folder / "nested", rounding="nearest", matryoshka=(8, 4, 3), steps=2).artifact
    export(source, folder / "wide", target="qdq", dtype="fp32")
    export(source, folder / "narrow", target="qdq", dtype="fp32", weight_bits=4)
    export(source, folder / "least", target="qdq", dtype="fp32", weight_bits=3)
    shutil.copytree(folder / "narrow", folder / "again")
    for name in BUNDLES:
        build_engine(folder / name, folder / f"{name}-engine", backend="openvino")
    return folder


@pytest.fixture(scope="module")
def data(folder: Path) -> ReportData:
    wanted = ReportRequest(drawing=Drawing(n=2), layer_error=False)
    engines = [f"{name}-engine" for name in BUNDLES]
    return write_report([folder / name for name in ("nested", *BUNDLES, "again", *engines)], folder / "page.html", wanted=wanted)


def test_a_row_of_pictures_for_each_width(data: ReportData, folder: Path) -> None:
    assert data.pictures is not None
    assert data.pictures.expected is not None
    rows = data.pictures.rows
    assert [(row.artefact, row.bits) for row in rows] == [("wide", "W8A8"), ("narrow", "W4A8"), ("least", "W3A8")]
    drawn = draw(folder / "narrow", Drawing(n=2))
    assert rows[1].psnr_db == pytest.approx(drawn.psnr_db, abs=0.01)
    assert len(rows[1].quantized) == len(data.pictures.expected) == 2
    assert rows[0].quantized != rows[1].quantized
    means = [mean(row.psnr_db or []) for row in rows]
    assert means[0] > means[1] > means[2]
    tiles = {tile.label.partition(" from")[0]: tile.value for tile in data.headlines}
    assert tiles["PSNR of 2 images by narrow (W4A8)"] == f"{means[1]:.1f} dB"
    text = (folder / "page.html").read_text()
    assert f"by wide (W8A8), narrow (W4A8) and least (W3A8) row by row in {data.pictures.engine}, " in text
    assert f"The images of wide (W8A8) have {means[0]:.1f} dB" in text


def test_every_width_is_judged_as_that(data: ReportData) -> None:
    assert {row.bundle: row.passed for row in data.checks} == {"wide": True, "narrow": True, "least": True, "again": True}
    assert [series.name for series in data.snr][1:] == ["wide", "narrow (W4A8)", "least (W3A8)", "again (W4A8)"]
    wide, narrow = (mean(value for value in series.snr_db if value is not None) for series in data.snr[1:3])
    assert wide > narrow
    assert {row.name: row.what for row in data.artifacts if row.kind == "bundle"} == {
        "wide": "qdq, fp32", "narrow": "qdq, fp32, W4A8", "least": "qdq, fp32, W3A8", "again": "qdq, fp32, W4A8",
    }  # fmt: skip


def test_every_width_has_its_engine_and_its_bytes(data: ReportData, folder: Path) -> None:
    assert [row.name.partition(" ·")[0] for row in data.engines] == [f"{name}-engine" for name in BUNDLES]
    assert [row.bits for row in data.engines] == ["W8A8", "W4A8", "W3A8"]
    assert all(row.as_planned == row.planned_layers > 0 for row in data.engines)
    assert all(min(row.file_bytes, row.weights_bytes) > 0 for row in data.engines)
    assert [fact.label for fact in data.summary] == [width.name for width in open_artifact(folder / "nested", "checkpoint").details.widths]
    text = (folder / "page.html").read_text()
    assert all(f"<th>{name}-engine" in text for name in BUNDLES)
    assert [line.split("<td>")[1].partition("<")[0] for line in text.splitlines() if "-engine ·" in line and "<th>" in line] == [
        "W8A8", "W4A8", "W3A8",
    ]  # fmt: skip
