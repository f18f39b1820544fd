"""The gate on schedules: each timestep by the member that runs it, against that member's checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from dq_deploy.accuracy import check
from dq_deploy.artifacts import Artifact, open_artifact
from dq_deploy.engines.build.engine import build_engine
from dq_deploy.engines.schedules.combine import combine
from dq_deploy.errors import ArtifactError, UsageError
from tests.command_line import Cli, assert_refused
from tests.flow import Flow, altered

SWITCHES = [500.0, 100.0]
TURNS = {0.0: "3 (float)", 200.0: "2 (W8A8)", 400.0: "2 (W8A8)", 600.0: "1 (W4A4)", 800.0: "1 (W4A4)"}


@pytest.fixture(scope="module")
def schedule(flow: Flow, narrow: Flow, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """W4A4 above 500, W8A8 down to above 100, float for the last step."""
    members = [narrow.bundles["qdq"], flow.bundles["qdq"], flow.bundles["float"]]
    return combine(members, tmp_path_factory.mktemp("schedule") / "schedule", switches=SWITCHES)


def test_each_step_is_judged_with_the_checkpoint_of_its_member(schedule: Artifact, flow: Flow, narrow: Flow) -> None:
    result = check(schedule, [narrow.checkpoint, flow.checkpoint], engines=["openvino"])
    assert result.failures == []
    assert {row.timestep: row.member for row in result.timesteps} == TURNS
    alone = {
        flow.checkpoint: check(flow.bundles["qdq"], flow.checkpoint),
        narrow.checkpoint: check(narrow.bundles["qdq"], narrow.checkpoint),
    }
    for row in result.timesteps[1:]:
        whose = alone[narrow.checkpoint if row.timestep > 500 else flow.checkpoint]
        (same,) = (one for one in whose.timesteps if one.timestep == row.timestep)
        assert row.snr_reference_db == pytest.approx(same.snr_reference_db)
        assert row.snr_bundle_db == pytest.approx(same.snr_bundle_db, abs=0.01)
    last = result.timesteps[0]
    assert last.snr_reference_db is None
    assert last.snr_bundle_db > 90
    assert last.min_snr_db == 60
    assert [row.timestep for row in result.engines[0].timesteps] == list(TURNS)
    assert {row.layer.split("/")[0] for row in result.layers} == {"1", "2"}
    assert result.final_error is not None
    assert [step.member for step in result.final_error.steps] == [TURNS[t] for t in list(TURNS)[1:]]
    assert sum(step.share or 0 for step in result.final_error.steps) == pytest.approx(1, abs=1e-4)
    assert {name.split("/")[0] for name in result.clipped} <= {"1", "2"}


def test_a_required_snr_is_required_of_what_runs(schedule: Artifact, flow: Flow, narrow: Flow) -> None:
    """W4A4's steps fail it, and no step that W4A4 does not run."""
    found = check(schedule, [narrow.checkpoint, flow.checkpoint], optimized=False)
    snr = {row.timestep: row.snr_bundle_db for row in found.timesteps}
    between = (max(snr[t] for t in (600.0, 800.0)) + min(snr[t] for t in (200.0, 400.0))) / 2
    assert snr[800.0] < between < snr[200.0]
    result = check(schedule, [narrow.checkpoint, flow.checkpoint], optimized=False, min_snr=between)
    assert [line.split(":")[0] for line in result.failures] == ["timestep 600", "timestep 800"]


def test_a_wrong_member_fails_by_its_name(flow: Flow, narrow: Flow, tmp_path: Path) -> None:
    layer = "down_blocks.0.resnets.0.conv1"

    def drop_bias(model: onnx.ModelProto) -> None:
        (tensor,) = (t for t in model.graph.initializer if t.name == f"{layer}.bias")
        tensor.CopyFrom(numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(tensor)), tensor.name))

    wrong = altered(flow.bundle("qdq"), tmp_path / "wrong", drop_bias)
    made = combine([narrow.bundles["qdq"], wrong], tmp_path / "schedule", switches=[500])
    result = check(made, [flow.checkpoint, narrow.checkpoint], optimized=False)
    assert {row.layer for row in result.layers if not row.passed} == {f"2/{layer}"}
    assert result.failures[0].startswith(f"layer 2/{layer}, ")
    failed = {row.timestep for row in result.timesteps if not row.passed}
    assert failed
    assert failed <= {0.0, 200.0, 400.0}


def test_a_wrong_float_member_fails(flow: Flow, tmp_path: Path) -> None:
    def scaled(model: onnx.ModelProto) -> None:
        tensor = max(model.graph.initializer, key=lambda t: int(np.prod(t.dims)))
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.01), tensor.name))

    wrong = altered(flow.bundle("float"), tmp_path / "wrong", scaled)
    result = check(combine([flow.bundles["qdq"], wrong], tmp_path / "schedule", switches=[100]), flow.checkpoint, optimized=False)
    (line,) = result.failures
    assert line.startswith("timestep 0: SNR ")
    assert line.endswith(" dB, and 60 dB are required")


def test_an_engine_as_a_member(flow: Flow, tmp_path: Path) -> None:
    engine = build_engine(flow.bundles["qdq"], tmp_path / "engine", backend="openvino", batch=(1, 2, 3))
    made = combine([engine, flow.bundles["float"]], tmp_path / "schedule", switches=[100])
    result = check(made, flow.checkpoint)
    assert result.failures == []
    assert result.layers == result.timesteps == []
    (only,) = result.engines
    assert only.engine == "openvino+onnxruntime"
    assert [row.member for row in only.timesteps] == ["2 (float)", *["1 (W8A8)"] * 4]
    assert check(made, flow.checkpoint, engines=["openvino"]).engines[0].engine == "openvino"


def test_checkpoints_that_do_not_fit(schedule: Artifact, flow: Flow, narrow: Flow, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"member 1 \(W4A4\) of .* was not exported from .*checkpoint\ngive --checkpoint for each"):
        check(schedule, flow.checkpoint)
    with pytest.raises(UsageError, match="is checked against one checkpoint, and given: .*checkpoint, .*checkpoint\nonly a schedule"):
        check(flow.bundles["qdq"], [flow.checkpoint, narrow.checkpoint])
    with pytest.raises(UsageError, match="is checked against one checkpoint, and given: none"):
        check(flow.bundles["qdq"], [])
    plain = combine([flow.bundles["qdq"], flow.bundles["float"]], tmp_path / "plain", switches=[100])
    with pytest.raises(UsageError, match="no member of .*plain is from .*flow-narrow.*\nleave it out"):
        check(plain, [flow.checkpoint, narrow.checkpoint])
    with pytest.raises(UsageError, match="is a schedule: a bisection cuts one bundle's graph\ncheck a member, such as .*/1"):
        check(schedule, [flow.checkpoint, narrow.checkpoint], bisect=True)
    floats = combine([flow.bundles["float"], _other_float(flow, tmp_path)], tmp_path / "floats", switches=[100])
    with pytest.raises(UsageError, match="has only float members: it has nothing quantized to check"):
        check(floats, flow.checkpoint)


def _other_float(flow: Flow, tmp_path: Path) -> Path:
    return altered(flow.bundle("float"), tmp_path / "other", lambda model: setattr(model.graph, "name", "other")).path


def test_on_the_command_line(cli: Cli, schedule: Artifact, flow: Flow, narrow: Flow) -> None:
    both = ("--checkpoint", flow.checkpoint, "--checkpoint", narrow.checkpoint)
    ended = cli("check", schedule.path, *both)
    assert ended.code == 0, ended.err
    for words in ("member", "1 (W4A4)", "2 (W8A8)", "3 (float)", "each by its member's checkpoint", "\npassed; "):
        assert words in ended.out
    verdict = json.loads(cli("check", schedule.path, *both, "--format", "json").out)
    assert verdict["timesteps"][0]["snr_reference_db"] is None
    assert verdict["timesteps"][0]["member"] == "3 (float)"
    assert_refused(cli("check", schedule.path, *both[:2]), 3, "1 (W4A4)", "--checkpoint for each quantized member")
    assert_refused(cli("check", schedule.path, "--lint"), 3, "is a schedule", "give one of its members")
    assert cli("check", schedule.path, *both, "--min-snr", "200").code == 6
    assert open_artifact(schedule.path, "schedule").manifest == schedule.manifest
