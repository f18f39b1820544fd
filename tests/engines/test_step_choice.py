"""Which steps get the better member: by the costs in the checkpoints' manifests, within a budget of time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dq_deploy import choose_steps
from dq_deploy.artifacts import Artifact, open_artifact
from dq_deploy.artifacts.turns import turns
from dq_deploy.engines.schedules.combine import combine
from dq_deploy.engines.schedules.step_choice import _measured
from dq_deploy.errors import ArtifactError, UsageError
from dq_deploy.progress import silent
from tests.command_line import Cli, assert_refused
from tests.flow import Flow, altered_manifest

TIMESTEPS = [0.0, 200.0, 400.0, 600.0, 800.0]


def with_costs(flow: Flow, root: Path, only_db: list[float | None], parts: list[list[float]] | None = None) -> tuple[Artifact, Artifact]:
    """The flow's checkpoint and bundle qdq as if the steps, ascending, cost this."""
    checkpoint = open_artifact(flow.checkpoint, "checkpoint")
    steps = [{"timesteps": part, "only_db": db} for part, db in zip(parts or [[t] for t in TIMESTEPS], only_db, strict=True)]
    details: dict[str, Any] = {**checkpoint.manifest.details, "final_error": {"steps": steps, "seeds": 1, "all_db": 1.0}}
    changed = altered_manifest(checkpoint, root / "checkpoint", details=details)
    return changed, altered_manifest(flow.bundle("qdq"), root / "bundle", parent=changed.as_parent)


@pytest.mark.parametrize(
    ("only_db", "budget", "order", "switch", "steps"),
    [
        ([60, 60, 60, 60, 20], "1.2x", ("float", "bundle"), 600.0, 1),  # the first step in sampling is the dear one
        ([20, 60, 60, 60, 60], "1.2x", ("bundle", "float"), 0.0, 1),
        ([60, 60, 60, 30, 30], "1.45x", ("float", "bundle"), 400.0, 2),
        ([30, 30, 60, 60, 60], "1.45x", ("bundle", "float"), 200.0, 2),
        ([20, 60, 60, 30, 20.1], "1.2x", ("bundle", "float"), 0.0, 1),  # one: the dearer of the two ends
        ([20, 60, 60, 22, 22], "1.4x", ("float", "bundle"), 400.0, 2),  # two: the dearer two, exactly within the budget
    ],
)
def test_the_dearest_end_gets_the_better_member(flow: Flow, tmp_path: Path, only_db: list[float | None], budget: str,
                                                order: tuple[str, str], switch: float, steps: int) -> None:  # fmt: skip
    checkpoint, bundle = with_costs(flow, tmp_path, only_db)
    for members in ([bundle, flow.bundles["float"]], [flow.bundles["float"], bundle]):
        found = choose_steps(members, [checkpoint], budget, time_ratio=2)
        assert tuple(Path(member).name for member in found.members) == order
        assert found.switches == (switch,)
        assert Path(found.better).name == "float"
        assert (found.better_steps, found.steps) == (steps, 5)
        assert found.time == pytest.approx(1 + steps / 5)
        assert found.snr_db > found.alone_db
    made = combine(found.members, tmp_path / "schedule", switches=found.switches)
    runs = {turn.member.details.float: turn.timesteps for turn in turns(made)}
    assert runs[True] == (TIMESTEPS[-steps:] if order[0] == "float" else TIMESTEPS[:steps])


def test_between_two_quantized_members_each_step_counts_by_its_own_cost(flow: Flow, narrow: Flow, tmp_path: Path) -> None:
    eight, eight_bundle = with_costs(flow, tmp_path / "eight", [50, 50, 50, 50, 50])
    four = altered_manifest(
        open_artifact(narrow.checkpoint, "checkpoint"), tmp_path / "four",
        details={
            **open_artifact(narrow.checkpoint, "checkpoint").manifest.details,
            "final_error": {"steps": [{"timesteps": [0.0, 200.0], "only_db": 20}, {"timesteps": [400.0, 600.0, 800.0], "only_db": 49}]},
        },
    )  # fmt: skip
    four_bundle = altered_manifest(narrow.bundle("qdq"), tmp_path / "four-bundle", parent=four.as_parent)
    found = choose_steps([four_bundle, eight_bundle], [eight, four], "1.4x", time_ratio=2)
    assert [Path(member).name for member in found.members] == ["four-bundle", "bundle"]
    assert found.switches == (200.0,)
    assert found.better_steps == 2


def test_without_a_ratio_both_are_timed(flow: Flow) -> None:
    """A tiny network's times say little, but a ratio they are: of one against the other, and back."""
    there = _measured(flow.bundle("float"), flow.bundle("onnxruntime"), silent)
    back = _measured(flow.bundle("onnxruntime"), flow.bundle("float"), silent)
    assert 0.1 < there * back < 10


@pytest.mark.parametrize(
    ("budget", "ratio", "message"),
    [
        ("5%", 2, "is a factor of time above 1, such as 1.05x, and not '5%'"),
        ("1x", 2, "and not '1x'"),
        ("1.1", 2, "and not '1.1'"),
        ("1.1x", 2, "1.1x allows .*float no step: at 2.00 × the other's time, one of 5 makes 1.200x"),
        ("2x", 2, "2x allows .*float every step: it takes 2.00 × the other's time\nuse it alone"),
        ("1.2x", 0.9, "float is the better one and takes 0.90 × the other's time: no slower\nuse it alone"),
        ("1.2x", 0, "the time ratio is 0, and must be a number above 0"),
        ("1.2x", float("nan"), "the time ratio is nan"),
    ],
)
def test_budgets_that_choose_nothing(flow: Flow, tmp_path: Path, budget: str, ratio: float, message: str) -> None:
    checkpoint, bundle = with_costs(flow, tmp_path, [30] * 5)
    with pytest.raises(UsageError, match=message):
        choose_steps([bundle, flow.bundles["float"]], [checkpoint], budget, time_ratio=ratio)


def test_costs_that_are_not_known(flow: Flow, narrow: Flow, tmp_path: Path) -> None:
    members = [flow.bundles["qdq"], flow.bundles["float"]]
    with pytest.raises(ArtifactError, match=r"qdq was not exported from nothing that was given\ngive --checkpoint"):
        choose_steps(members, [], "1.2x", time_ratio=2)
    with pytest.raises(ArtifactError, match="qdq was not exported from .*flow-narrow"):
        choose_steps(members, [narrow.checkpoint], "1.2x", time_ratio=2)
    for name, only_db in (("gap", [30, 30, None, 30, 30]),):
        checkpoint, bundle = with_costs(flow, tmp_path / name, only_db)
        with pytest.raises(ArtifactError, match="does not say what each step costs the final sample: not all of them are finite numbers"):
            choose_steps([bundle, flow.bundles["float"]], [checkpoint], "1.2x", time_ratio=2)
    source = open_artifact(flow.checkpoint, "checkpoint")
    unmeasured = altered_manifest(
        source, tmp_path / "unmeasured", details={**source.manifest.details, "final_error": {"not_measured": "final_samples is 0"}}
    )
    bundle = altered_manifest(flow.bundle("qdq"), tmp_path / "unmeasured-bundle", parent=unmeasured.as_parent)
    with pytest.raises(ArtifactError, match="costs the final sample: final_samples is 0\nquantize it again"):
        choose_steps([bundle, flow.bundles["float"]], [unmeasured], "1.2x", time_ratio=2)
    with pytest.raises(UsageError, match="steps are chosen for two members, and 3 are given"):
        choose_steps([*members, flow.bundles["onnxruntime"]], [flow.checkpoint], "1.2x", time_ratio=2)


def test_on_the_command_line(cli: Cli, flow: Flow, tmp_path: Path) -> None:
    checkpoint, bundle = with_costs(flow, tmp_path, [60, 60, 60, 60, 20])
    auto = ("--auto-steps", "1.2x", "--checkpoint", checkpoint.path, "--time-ratio", 2)
    members = (bundle.path, flow.bundles["float"])
    ended = cli("combine", *members, *auto, "-o", tmp_path / "schedule", "--format", "json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert found["auto_steps"]["switches"] == [600.0]
    assert [member["name"] for member in found["manifest"]["details"]["members"]] == ["float", "bundle"]
    told = cli("combine", *members, *auto, "-o", tmp_path / "again")
    assert "float runs the first 1 of 5 steps: 1.200 × the other's time (its own is 2.00 ×)" in told.err
    assert_refused(cli("combine", *members, *auto, "-o", tmp_path / "again"), 2, "already exists")
    assert_refused(cli("combine", *members, *auto, "--switch", 400, "-o", tmp_path / "o"), 2, "give either the switches")
    assert_refused(cli("combine", *members, "--switch", 400, "--time-ratio", 2, "-o", tmp_path / "o"), 2, "--time-ratio would be ignored")
