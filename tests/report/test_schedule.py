"""A schedule on the report's page."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dq_deploy.artifacts import Artifact
from dq_deploy.engines.build.engine import build_engine
from dq_deploy.engines.schedules.combine import combine
from dq_deploy.errors import ArtifactError, UsageError
from dq_deploy.hub.card import model_card, read_report
from dq_deploy.report.artifacts import gather
from dq_deploy.report.make import Drawing, ReportRequest, Timing, write_report
from tests.command_line import Cli
from tests.flow import Flow


@pytest.fixture(scope="module")
def schedule(flow: Flow, narrow: Flow, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return combine([narrow.bundles["qdq"], flow.bundles["qdq"]], tmp_path_factory.mktemp("schedule") / "turns", switches=[500])


def test_who_runs_which_step(schedule: Artifact, flow: Flow, narrow: Flow, tmp_path: Path) -> None:
    second = Path(shutil.copytree(narrow.checkpoint, tmp_path / "second"))  # on the page they go by their names
    wanted = ReportRequest(drawing=Drawing(n=1), layer_error=False, timing=Timing(runs=2))
    data = write_report([flow.checkpoint, second, schedule.path, flow.bundles["float"]], tmp_path / "page.html", wanted=wanted)
    (row,) = data.schedules
    assert row.name == "turns"
    assert dict(zip(row.timesteps, row.members, strict=True)) == {
        **dict.fromkeys([0.0, 200.0, 400.0], "2 (W8A8)"), **dict.fromkeys([600.0, 800.0], "1 (W4A4)"),
    }  # fmt: skip
    assert all(value is not None for value in row.only_db)
    assert min(row.snr_db[1:3]) > max(row.snr_db[3:])
    assert data.pictures is not None
    assert data.pictures.artefact == "turns"
    assert [check.bundle for check in data.checks] == ["turns"]
    assert data.checks[0].passed
    page = (tmp_path / "page.html").read_text()
    assert "turns, step by step" in page
    assert "1 (W4A4)" in page
    assert "dq-deploy combine narrow qdq --switch 500 -o turns" in data.commands
    assert sum(command.startswith("dq-deploy quantize") for command in data.commands) == 2
    assert data.latency is not None
    assert {"turns · onnxruntime", "turns/1 · onnxruntime", "turns/2 · onnxruntime"} <= data.latency.contenders.keys()
    assert not any("turns/" in tile.label for tile in data.headlines)
    (tmp_path / "page.json").write_text(data.model_dump_json())
    assert "**passed**" in model_card(schedule, read_report(tmp_path / "page.json", schedule))


def test_checkpoints_that_do_not_fit(schedule: Artifact, flow: Flow, narrow: Flow, tmp_path: Path) -> None:
    second = Path(shutil.copytree(narrow.checkpoint, tmp_path / "second"))
    with pytest.raises(ArtifactError, match=r"turns/1: not exported from .*\ngive the checkpoint of each quantized member"):
        gather([flow.checkpoint, schedule.path])
    with pytest.raises(UsageError, match="a report is about one checkpoint, and these were given"):
        gather([flow.checkpoint, second, flow.bundles["qdq"]])
    with pytest.raises(UsageError, match="a report is about one checkpoint, and none was given"):
        gather([schedule.path])
    plain = combine([flow.bundles["qdq"], flow.bundles["float"]], tmp_path / "plain", switches=[100])
    with pytest.raises(ArtifactError, match="plain.*: not exported from .*second"):
        gather([second, plain.path])
    assert [artifact.path.name for artifact in gather([flow.checkpoint, second, schedule.path]).others] == ["second"]


def test_a_schedule_with_an_engine(cli: Cli, flow: Flow, tmp_path: Path) -> None:
    engine = build_engine(flow.bundles["qdq"], tmp_path / "engine", backend="openvino")
    made = combine([engine, flow.bundles["float"]], tmp_path / "turns", switches=[100])
    ended = cli("report", flow.checkpoint, made.path, "-o", tmp_path / "page.html", "--no-layer-error", "--no-samples")
    assert ended.code == 0, ended.err
    assert "2 (float)" in (tmp_path / "page.html").read_text()
