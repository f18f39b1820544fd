"""Schedules: members take turns over the timesteps, in the folder, in the runner, and wherever a bundle or an engine goes."""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import dq_deploy
from dq_deploy.artifacts import Artifact, open_artifact
from dq_deploy.artifacts.turns import members_at, turns
from dq_deploy.engines.bench import bench, contenders_from
from dq_deploy.engines.build.engine import build_engine
from dq_deploy.engines.loading.choice import engines_on, make_runner, runner_on, runtime_name
from dq_deploy.engines.onnxruntime.runner import OnnxRuntimeRunner
from dq_deploy.engines.running.schedule import ScheduleRunner
from dq_deploy.engines.schedules.combine import combine
from dq_deploy.engines.triton import triton_repository
from dq_deploy.errors import ArtifactError, UsageError
from dq_deploy.exporters.lint import lint
from dq_deploy.hub.card import model_card
from tests.bundles import write_graph
from tests.command_line import Cli, assert_refused
from tests.engines.test_runner import ONE_ROW, ROWS
from tests.flow import STEPS, Flow, altered_manifest, snapshot
from tests.tiny import resealed

SWITCH = 400.0
"""A calibrated timestep of the flow: 0, 200, 400, 600 and 800."""


@pytest.fixture(scope="module")
def schedule(flow: Flow, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """W8A8 for ONNX Runtime above 400, float below: the first takes one timestep at a time, the second one for each sample."""
    members = [flow.bundles["onnxruntime"], flow.bundles["float"]]
    return combine(members, tmp_path_factory.mktemp("schedule") / "schedule", switches=[SWITCH])


@pytest.fixture(scope="module")
def with_engine(flow: Flow, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """An engine of OpenVINO, for batches of up to 3, above 400, and float below."""
    root = tmp_path_factory.mktemp("schedule")
    engine = build_engine(flow.bundles["qdq"], root / "engine", backend="openvino", batch=(1, 2, 3))
    return combine([engine, flow.bundles["float"]], root / "schedule", switches=[SWITCH])


def noise(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 1, 8, 8)).astype(np.float32)


@pytest.mark.parametrize(
    ("timestep", "member"),
    [(1e6, 0), (500.5, 0), (500, 1), (499, 1), (100.00001, 1), (100, 2), (0, 2), (-1, 2), (np.inf, 0)],
)
def test_a_timestep_that_equals_a_switch_is_the_next_members(timestep: float, member: int) -> None:
    assert members_at(timestep, [500, 100]) == member


def test_timesteps_are_compared_in_fp32() -> None:
    """0.1 is less than its nearest fp32: as doubles the graph's timestep would be above the switch that the user typed."""
    assert float(np.float32(0.1)) > 0.1
    assert members_at(np.float32(0.1), [0.1]) == 1


def test_each_member_runs_its_own_timesteps(schedule: Artifact, flow: Flow) -> None:
    runner = make_runner(schedule)
    above, below = OnnxRuntimeRunner(flow.bundles["onnxruntime"]), OnnxRuntimeRunner(flow.bundles["float"])
    sample = noise(3)
    for timestep in schedule.manifest.timesteps:
        expected = (above if timestep > SWITCH else below).run({"sample": sample, "timestep": timestep})
        other = (below if timestep > SWITCH else above).run({"sample": sample, "timestep": timestep})
        got = runner.run({"sample": sample, "timestep": timestep})
        np.testing.assert_array_equal(got, expected)
        assert not np.array_equal(got, other)


def test_a_mixed_batch_is_split_by_member_and_comes_back_in_order(schedule: Artifact) -> None:
    runner = make_runner(schedule)
    steps, sample = np.array([0.0, 800.0, 400.0, 600.0, 0.0, 401.0, 800.0], np.float32), noise(7)
    singles = [runner.run({"sample": sample[i : i + 1], "timestep": steps[i]}) for i in range(7)]
    got = runner.run({"sample": sample, "timestep": steps})
    np.testing.assert_allclose(got, np.concatenate(singles), rtol=2e-4, atol=2e-5)
    assert got.dtype == np.float32


@pytest.mark.parametrize("text", [ONE_ROW, ROWS], ids=["timestep [1]", "timestep [N]"])
def test_the_runners_contract(tmp_path: Path, text: str) -> None:
    """Words and places of complaints are those of the whole batch, whatever part of it a member gets."""
    graphs = [
        write_graph(tmp_path / "a.onnx", text),
        write_graph(tmp_path / "b.onnx", text.replace("{1.0, 10.0, 100.0}", "{2.0, 20.0, 200.0}")),
    ]
    strict = ScheduleRunner([OnnxRuntimeRunner(graph) for graph in graphs], [1.0])
    for timestep in (1, np.array([1]), np.array(1.0, np.float16), [1, 1]):
        np.testing.assert_array_equal(strict.run({"sample": np.ones((2, 2), np.float32), "timestep": timestep}), np.full((2, 2), 20.0))
    for inputs, message in (
        ({"sample": np.ones((2, 2)), "timestep": [0.0, np.nan]}, "'timestep' is nan at sample 1"),
        ({"sample": np.ones((2, 2)), "timestep": [0, 1, 2]}, r"give a scalar, \[1\] or one for each of the 2 samples"),
        ({"sample": np.ones((2, 3)), "timestep": 0}, r"input 'sample' has shape \[2, 3\], and the graph takes \[any, 2\]"),
        ({"sample": np.ones((2, 2))}, "input 'timestep' is missing"),
        ({"sample": np.array([[1, 1], [1, 1], [1, np.nan]]), "timestep": [2, 2, 0]}, r"the first nan at \[2, 1\]"),
    ):
        with pytest.raises(UsageError, match=message):
            strict.run(inputs)
    lax = ScheduleRunner([OnnxRuntimeRunner(graph, nonfinite="propagate") for graph in graphs], [1.0])
    got = lax.run({"sample": np.array([[1, 1], [np.nan, 1], [1, 1]], np.float32), "timestep": np.array([2, 0, 0])})
    np.testing.assert_array_equal(got, [[100, 100], [np.nan, np.nan], [2, 2]])


def test_graphs_of_other_inputs_do_not_run_together(tmp_path: Path) -> None:
    graphs = [
        write_graph(tmp_path / "a.onnx", ROWS),
        write_graph(tmp_path / "b.onnx", ROWS.replace("sample", "image").replace("out_image", "out_sample")),
    ]
    with pytest.raises(ArtifactError, match="take different inputs: sample of 2 dimensions; image of 2 dimensions"):
        ScheduleRunner([OnnxRuntimeRunner(graph) for graph in graphs], [1.0])


def test_the_folder_holds_whole_artefacts(schedule: Artifact, flow: Flow) -> None:
    assert schedule.manifest.kind == "schedule"
    assert [turn.timesteps for turn in turns(schedule)] == [[600.0, 800.0], [0.0, 200.0, 400.0]]
    for number, name in (("1", "onnxruntime"), ("2", "float")):
        assert snapshot(schedule.path / number) == snapshot(flow.bundles[name])
        assert open_artifact(schedule.path / number, "bundle").manifest == flow.bundle(name).manifest
    assert [member.manifest_sha256 for member in schedule.details.members] == [
        flow.bundle(name).as_parent.manifest_sha256 for name in ("onnxruntime", "float")
    ]
    assert "weight_bits" in (schedule.manifest.quantization or {})


def test_three_members(flow: Flow, tmp_path: Path) -> None:
    members = [flow.bundles[name] for name in ("onnxruntime", "qdq", "float")]
    found = turns(combine(members, tmp_path / "schedule", switches=[500, 100]))
    assert [turn.timesteps for turn in found] == [[600.0, 800.0], [200.0, 400.0], [0.0]]
    assert [turn.span for turn in found] == ["above 500", "above 100, up to 500", "100 and below"]


@pytest.mark.parametrize(
    ("names", "switches", "message"),
    [
        (["qdq"], [], "a schedule has two or three members, and 1 is given"),
        (["qdq"] * 4, [3, 2, 1], "and 4 are given"),
        (["qdq", "float"], [], "2 members take turns at 1 timestep, and the switches given are none"),
        (["qdq", "float"], [500, 100], "2 members take turns at 1 timestep, and the switches given are 500, 100"),
        (["qdq", "onnxruntime", "float"], [100, 500], "must be finite and descend, as timesteps do in sampling, and they are 100, 500"),
        (["qdq", "float"], [float("nan")], "must be finite and descend"),
        (["qdq", "float"], [800], "with switches at 800, .*qdq would run no calibrated timestep"),
        (["qdq", "float"], [-1], "with switches at -1, .*float would run no calibrated timestep"),
        (["qdq", "qdq"], [400], "the same artefact is given twice"),
    ],
)
def test_what_does_not_make_a_schedule(flow: Flow, tmp_path: Path, names: list[str], switches: list[float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        combine([flow.bundles[name] for name in names], tmp_path / "schedule", switches=switches)
    assert not (tmp_path / "schedule").exists()


def test_members_of_other_models_are_refused_with_what_differs(flow: Flow, tmp_path: Path) -> None:
    bundle = flow.bundle("qdq")
    details, source = bundle.manifest.details, bundle.manifest.details["source"]
    other = altered_manifest(
        bundle, tmp_path / "other", timesteps=[0.0, 500.0],
        details={**details, "sample_shape": [1, 16, 16], "source": {**source, "sha256": "0" * 64}},
    )  # fmt: skip
    with pytest.raises(ArtifactError) as refused:
        combine([flow.bundles["float"], other], tmp_path / "schedule", switches=[SWITCH])
    for what in (
        "source sha256 000",
        "sample shape [1, 16, 16], not [1, 8, 8]",
        "timesteps [0.0, 500.0], not [0.0, 200.0",
        "combine what came from one model",
    ):
        assert what in str(refused.value)
    guided = altered_manifest(bundle, tmp_path / "guided", quantization={**bundle.manifest.quantization, "guidance_scale": 3.0})
    unguided = altered_manifest(bundle, tmp_path / "unguided", quantization={**bundle.manifest.quantization, "guidance_scale": 1.0})
    with pytest.raises(ArtifactError, match=r"guidance scale 1\.0, not 3\.0"):
        combine([guided, unguided], tmp_path / "schedule", switches=[SWITCH])
    with pytest.raises(ArtifactError, match=r"guidance scale 1\.0, not 3\.0"):  # a float member before them says nothing
        combine([flow.bundles["float"], guided, unguided], tmp_path / "schedule", switches=[500, 100])
    unknown = altered_manifest(bundle, tmp_path / "unknown", details={**details, "source": None})
    with pytest.raises(ArtifactError, match="unknown does not say what model it came from"):
        combine([flow.bundles["float"], unknown], tmp_path / "schedule", switches=[SWITCH])


def test_what_is_no_member(schedule: Artifact, flow: Flow, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is a schedule, and a bundle or an engine is needed here\ngive one of its members"):
        combine([schedule.path, flow.bundles["float"]], tmp_path / "out", switches=[SWITCH])
    with pytest.raises(
        ArtifactError, match="is a checkpoint, and a bundle or an engine is needed here\nmake one from it: dq-deploy export"
    ):
        combine([flow.checkpoint, flow.bundles["float"]], tmp_path / "out", switches=[SWITCH])
    copy = Path(shutil.copytree(schedule.path, tmp_path / "copy"))
    with pytest.raises(UsageError, match="is what it would be made from"):
        combine([copy / "1", copy / "2"], copy, switches=[SWITCH], force=True)


def test_a_changed_member_is_refused(schedule: Artifact, flow: Flow, tmp_path: Path) -> None:
    changed = Path(shutil.copytree(schedule.path, tmp_path / "changed"))
    (changed / "2" / "model.onnx").write_bytes((changed / "1" / "model.onnx").read_bytes())
    with pytest.raises(ArtifactError, match="'2/model.onnx' has"):
        open_artifact(changed, "schedule")
    # One who tampers makes the hashes agree again; the members' own manifests still say what they were.
    with pytest.raises(ArtifactError, match="is not a schedule of this dq-deploy: '2/model.onnx' is not the member's"):
        open_artifact(resealed(changed), "schedule")
    swapped = Path(shutil.copytree(schedule.path, tmp_path / "swapped"))
    shutil.rmtree(swapped / "2")
    shutil.copytree(flow.bundles["qdq"], swapped / "2")
    manifest = json.loads((swapped / "manifest.json").read_text())
    manifest["files"] = {name: entry for name, entry in manifest["files"].items() if (swapped / name).exists()}
    (swapped / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="2 is another artefact than was combined"):
        open_artifact(resealed(swapped), "schedule")


@pytest.mark.parametrize("change", [{"switches": [1.0, 2.0]}, {"switches": []}, {"members": []}, {"members": [{"folder": "../x"}]}])
def test_a_manifest_that_makes_no_sense(schedule: Artifact, tmp_path: Path, change: dict[str, object]) -> None:
    broken = Path(shutil.copytree(schedule.path, tmp_path / "broken"))
    manifest = json.loads((broken / "manifest.json").read_text())
    manifest["details"].update(change)
    (broken / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="is not a valid schedule of this dq-deploy"):
        open_artifact(broken, "schedule")


def test_the_drop_in(schedule: Artifact, flow: Flow) -> None:
    model = dq_deploy.load(schedule.path)
    sample = torch.from_numpy(noise(2))
    for timestep, name in ((600, "onnxruntime"), (400, "float")):
        expected = dq_deploy.load(flow.bundles[name])(sample, timestep).sample
        assert torch.equal(model(sample, timestep).sample, expected)
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(again(sample, 600).sample, model(sample, 600).sample)
    with pytest.raises(UsageError, match="only a bundle in onnxruntime can be watched\ngive one of its members, such as .*/1"):
        dq_deploy.load(schedule.path, watch=True)


def test_engines_and_bundles_together(with_engine: Artifact, flow: Flow) -> None:
    assert runtime_name(with_engine) == "openvino+onnxruntime"
    assert engines_on(with_engine, None) == ["openvino"]
    runner = runner_on(with_engine, "openvino")
    assert runner.name == "openvino"
    assert len(runner.details["members"]) == 2
    sample = noise(3)
    direct = runner_on(with_engine.members[0], "openvino").run({"sample": sample, "timestep": 800.0})
    np.testing.assert_array_equal(runner.run({"sample": sample, "timestep": 800.0}), direct)
    # The engine's largest batch is asked of its own part alone.
    mixed = np.array([0.0, 0.0, 800.0, 0.0, 0.0, 800.0], np.float32)
    assert runner.run({"sample": noise(6), "timestep": mixed}).shape == (6, 1, 8, 8)
    with pytest.raises(UsageError, match="was built for"):
        runner.run({"sample": noise(4), "timestep": 800.0})
    with pytest.raises(UsageError, match="is an engine of openvino, and onnxruntime runs bundles"):
        dq_deploy.load(with_engine, runtime="onnxruntime")


def test_no_engine_for_all_members(with_engine: Artifact, flow: Flow, tmp_path: Path) -> None:
    mixed = combine([with_engine.members[0], flow.bundles["onnxruntime"]], tmp_path / "schedule", switches=[SWITCH])
    with pytest.raises(UsageError, match=r"no engine runs all members of .*schedule \(.*1: openvino; .*2: onnxruntime\)"):
        contenders_from([mixed])


def test_a_schedules_time_is_that_of_a_step_on_average(schedule: Artifact, flow: Flow) -> None:
    contenders = contenders_from([flow.bundles["qdq"], schedule], engines=["onnxruntime"])
    plain, whole, *parts = contenders
    assert [part.part_of for part in parts] == [whole.name] * 2
    assert list(whole.turns.values()) == [2 / STEPS, 3 / STEPS]

    class Sleeping:
        """A member's runner that takes so long."""

        def __init__(self, seconds: float) -> None:
            self.name, self.details, self.seconds = "onnxruntime", {}, seconds

        def run(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
            import time

            time.sleep(self.seconds)
            return inputs["sample"]

    timed = [plain, whole, *(replace(part, runner=Sleeping(seconds)) for part, seconds in zip(parts, (0.02, 0.005), strict=True))]
    result = bench(timed, runs=3, warmup=0, max_ratio=1e-6)
    rows = {row.contender: row for row in result.rows}
    expected = 0.4 * rows[parts[0].name].median_ms + 0.6 * rows[parts[1].name].median_ms
    assert rows[whole.name].median_ms == pytest.approx(expected, rel=0.2)
    assert rows[whole.name].median_ms > 0.4 * 20 + 0.6 * 5
    assert [failure.split(" takes")[0] for failure in result.failures] == [whole.name]
    assert any(note.startswith(f"{whole.name} is a step's time on average") and "40% " in note for note in result.notes)
    with pytest.raises(UsageError, match="needs something to compare with the baseline"):
        bench(contenders_from([schedule], engines=["onnxruntime"]), runs=1, max_ratio=2)


def test_pictures(schedule: Artifact, with_engine: Artifact, tmp_path: Path) -> None:
    drawn = dq_deploy.sample(schedule.path, tmp_path / "grid.png", n=2)
    assert drawn.engine == "onnxruntime"
    assert drawn.timesteps == sorted(schedule.manifest.timesteps, reverse=True)
    assert drawn.psnr_mean_db is not None
    assert drawn.psnr_mean_db > 20
    assert dq_deploy.sample(with_engine.path, tmp_path / "engine.png", n=5, compare_float=False).n == 5  # in batches of 3


def test_card_and_commands(schedule: Artifact, with_engine: Artifact) -> None:
    card = model_card(schedule)
    assert "W8A8 above 400; float 400 and below" in card
    assert "| timesteps above 400 | bundle in `1/`, W8A8 |" in card
    assert "dq-deploy combine onnxruntime float --switch 400 -o schedule" in card
    assert 'dq_deploy.load("OWNER/NAME")' in card
    assert "An engine is code" in model_card(with_engine)


def test_what_takes_no_schedule_says_so(schedule: Artifact, tmp_path: Path) -> None:
    for refuse in (
        lambda: lint(schedule.path),
        lambda: build_engine(schedule.path, tmp_path / "o"),
        lambda: triton_repository(schedule.path, tmp_path / "o"),
    ):
        with pytest.raises(ArtifactError, match="is a schedule, and a bundle.* is needed here\ngive one of its members"):
            refuse()


def test_on_the_command_line(cli: Cli, flow: Flow, tmp_path: Path) -> None:
    members = (flow.bundles["onnxruntime"], flow.bundles["float"])
    before = snapshot(members[0])
    made = cli("combine", *members, "--switch", "400", "-o", tmp_path / "schedule", "--format", "json")
    assert made.code == 0, made.err
    assert json.loads(made.out)["manifest"]["details"]["switches"] == [400.0]
    assert snapshot(members[0]) == before
    shown = cli("inspect", tmp_path / "schedule")
    assert shown.code == 0
    assert "W8A8, bundle onnxruntime: timesteps above 400 (2 of 5)" in shown.out
    assert json.loads(cli("inspect", tmp_path / "schedule", "--format", "json").out)["kind"] == "schedule"
    assert cli("push", tmp_path / "schedule", "some/one", "--dry-run").code == 0
    assert_refused(cli("combine", *members, "--switch", "400", "-o", tmp_path / "schedule"), 2, "already exists")
    assert_refused(cli("combine", *members, "-o", tmp_path / "o"), 2, "--switch", "--auto-steps")
    assert_refused(cli("combine", members[0], "--switch", "400", "-o", tmp_path / "o"), 2, "1 is given")
    assert_refused(cli("combine", *members, "--switch", "soon", "-o", tmp_path / "o"), 2, "soon")
    assert_refused(cli("combine", *members, "--switch", "9000", "-o", tmp_path / "o"), 2, "would run no calibrated timestep")
    assert_refused(cli("inspect", tmp_path / "schedule", "--layer", "*"), 2, "each of its members has its own tables")
    assert_refused(cli("layers", tmp_path / "schedule"), 3, "is a schedule")
    assert cli("combine", *members, "--switch", "200", "-o", tmp_path / "schedule", "--force").code == 0
