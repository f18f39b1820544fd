"""The harness end to end, on a tiny pipeline with tiny settings."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from benchmarks.accuracy import child, pool
from benchmarks.accuracy.child import Task
from benchmarks.accuracy.command import main
from benchmarks.accuracy.confirmed import read_confirmations
from benchmarks.accuracy.denoisers import denoiser, integer_denoiser
from benchmarks.accuracy.drawing import Drawing
from benchmarks.accuracy.identity import identity
from benchmarks.accuracy.measuring import Bench
from benchmarks.accuracy.methods import method
from benchmarks.accuracy.models import load_reference
from benchmarks.accuracy.pictures import draw_all, models_of
from benchmarks.accuracy.planning import Folders, Planned, Planner, Scope, pending
from benchmarks.accuracy.report import write_report
from benchmarks.accuracy.results import CellResult, read_all, read_result, write_result
from benchmarks.accuracy.settings import Cell, Settings
from benchmarks.accuracy.workspace import Workspace
from dq_deploy.decibels import psnr_db
from dq_deploy.engines.openvino.int8_kernels import int8_saturates
from dq_deploy.errors import UsageError
from dq_deploy.progress import silent

SETTINGS = Settings(steps=3, calibration_samples=4, iterations=2, batch_size=4, max_float_share=0.5, grid_samples=4, snr_samples=2)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    root = tmp_path_factory.mktemp("accuracy")
    return Folders(root / "results", root / "work", root / "data")


@pytest.fixture(scope="module")
def scope(flow_pipeline: Path, folders: Folders) -> Scope:
    return Scope((str(flow_pipeline),), ("w4a4",), ("min-max", "dilatequant"), (0,), SETTINGS, folders)


@pytest.fixture(scope="module")
def planner(scope: Scope) -> Planner:
    return Planner(scope, {model: load_reference(model) for model in scope.models})


@pytest.fixture(scope="module")
def measured(planner: Planner, folders: Folders) -> list[CellResult]:
    """The grid of two methods, each cell in this process."""
    plan = planner.plan("grid")
    assert [(p.task.cell.method, p.state) for p in plan] == [("float", "missing"), ("min-max", "missing"), ("dilatequant", "missing")]
    for planned in pending(plan, rerun_stale=False):
        child.run(planned.task, silent)
    return read_all(folders.results)


def test_figures_of_a_cell(measured: list[CellResult]) -> None:
    base = next(r for r in measured if r.cell.method == "float")
    ours = next(r for r in measured if r.cell.method == "dilatequant")
    assert base.grid is not None
    assert ours.grid is not None
    assert ours.cost is not None
    assert ours.grid.psnr_db is not None
    assert len(ours.grid.psnr_db) == SETTINGS.grid_samples
    assert all(0 < value < 100 for value in ours.grid.psnr_db)
    assert np.shape(ours.grid.error) == np.shape(base.grid.power) == (SETTINGS.steps, SETTINGS.snr_samples)
    assert ours.grid.timesteps == base.grid.timesteps == sorted(base.grid.timesteps)
    assert ours.grid.feature_distance is None  # a pipeline of unknown data has no classifier
    assert (ours.cost.iterations, ours.cost.calibration_inputs) == (2, 12)
    assert ours.cost.peak_mib >= ours.cost.loaded_mib > 0
    assert ours.cost.wall_s > 0
    assert ours.environment["versions"]["torch"] == torch.__version__


def test_what_is_measured_is_not_measured_again(measured: list[CellResult], planner: Planner) -> None:
    plan = planner.plan("grid")
    assert [p.state for p in plan] == ["done"] * 3
    assert pending(plan, rerun_stale=True) == []


def test_other_settings_make_cells_stale_and_they_run_only_when_asked(measured: list[CellResult], planner: Planner, scope: Scope) -> None:
    other = Scope(**{**scope.__dict__, "settings": SETTINGS.model_copy(update={"iterations": 3})})
    plan = Planner(other, planner.references).plan("grid")
    assert [(p.task.cell.method, p.state) for p in plan] == [("float", "done"), ("min-max", "done"), ("dilatequant", "stale")]
    assert pending(plan, rerun_stale=False) == []
    assert [p.task.cell.method for p in pending(plan, rerun_stale=True)] == ["dilatequant"]


@pytest.mark.nightly
def test_a_change_that_changes_no_bit_is_confirmed_and_another_is_not(
    measured: list[CellResult], scope: Scope, folders: Folders, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    older = [r.model_copy(update={"code_sha256": "0" * 64}) for r in measured if r.cell.method == "min-max"]
    for result in [r for r in measured if r.cell.method != "min-max"] + older:
        write_result(result.cell.result_file(results), result)
    options = ["--models", scope.models[0], "--presets", "w4a4", "--methods", "min-max", "--results", str(results)]
    options += ["--work", str(folders.work), "--threads", "1"]
    options += [part for name, value in SETTINGS.model_dump().items() for part in (f"--{name.replace('_', '-')}", str(value))]
    wrong = older[0].model_copy(deep=True)
    assert wrong.grid
    assert wrong.grid.psnr_db
    wrong.grid.psnr_db[0] += 1e-3
    write_result(wrong.cell.result_file(results), wrong)
    run = CliRunner().invoke(main, [*options, "--confirm"])
    assert run.exit_code == 1
    assert "other figures (psnr_db)" in run.output
    assert read_confirmations(results) == []
    write_result(wrong.cell.result_file(results), older[0])
    assert CliRunner().invoke(main, [*options, "--confirm"]).exit_code == 0
    assert [(c.old, [cell.method for cell in c.cells]) for c in read_confirmations(results)] == [("0" * 64, ["min-max"])]
    again = CliRunner().invoke(main, [*options, "--confirm"])
    assert again.exit_code == 2  # nothing is stale any more
    assert "no cell of this selection was made by other code" in again.output


def test_a_machine_without_the_float_pictures_draws_them(
    measured: list[CellResult], planner: Planner, scope: Scope, tmp_path: Path
) -> None:
    elsewhere = Scope(**{**scope.__dict__, "folders": Folders(scope.folders.results, tmp_path, scope.folders.data)})
    plan = Planner(elsewhere, planner.references).plan("grid")
    assert [(p.state, p.reason) for p in plan] == [("missing", "not drawn on this machine yet"), ("done", ""), ("done", "")]


def test_estimates_come_from_past_cells(measured: list[CellResult], planner: Planner) -> None:
    by_method = {p.task.cell.method: p.estimate_s for p in planner.plan("grid")}
    for result in measured:
        if result.cost and result.grid:
            assert by_method[result.cell.method] == pytest.approx(result.cost.wall_s + result.grid.wall_s)


def test_a_checkpoint_that_is_there_is_used(measured: list[CellResult], planner: Planner) -> None:
    task = next(p.task for p in planner.plan("grid") if p.task.cell.method == "min-max")
    started = time.perf_counter()
    again = child.run(task, silent)
    before = next(r for r in measured if r.cell.method == "min-max")
    assert again.cost == before.cost
    assert again.grid
    assert before.grid
    assert again.grid.psnr_db == before.grid.psnr_db
    assert time.perf_counter() - started < 60


def test_rivals_are_ranked_by_psnr(measured: list[CellResult], planner: Planner, scope: Scope) -> None:
    assert planner.best_rivals(scope.models[0], "w4a4", 0) == ["min-max"]
    assert [p.task.cell.method for p in planner.plan("rival")] == ["float", "dilatequant", "min-max"]


def test_a_tier_that_needs_real_pictures_is_refused(measured: list[CellResult], planner: Planner) -> None:
    task = next(p.task for p in planner.plan("rival") if p.task.cell.method == "dilatequant")
    with pytest.raises(UsageError, match="no classifier for the data"):
        child.run(task, silent)


@pytest.mark.skipif(int8_saturates(), reason="the INT8 kernels of this CPU saturate")
def test_pictures_of_the_integer_engine_are_those_of_the_simulation(measured: list[CellResult], planner: Planner) -> None:
    task = next(p.task for p in planner.plan("grid") if p.task.cell.method == "dilatequant")
    reference = load_reference(task.cell.model)
    wanted = identity(task.cell, task.settings, model_sha256=reference.source.sha256, family=reference.family)
    workspace = Workspace(task.work, task.cell.model, reference.source.sha256)
    folder, chosen = workspace.cell_folder(task.cell, wanted.sha256), method("dilatequant")
    drawing = Bench(reference, task.settings, workspace, task.data).drawing
    simulated = drawing.pictures(denoiser(chosen, reference, folder, "cpu"), range(4))
    found = drawing.pictures(integer_denoiser(folder, folder, threads=1), range(4))
    assert min(psnr_db(simulated, found)) > 35


@pytest.mark.nightly
def test_widths_of_one_checkpoint_are_made_once(flow_pipeline: Path, tmp_path: Path) -> None:
    model, places = str(flow_pipeline), Folders(tmp_path / "results", tmp_path / "work", tmp_path / "data")
    scope = Scope((model,), ("w8a8", "w3a8"), ("gptq-auto-untrained", "matryoshka-untrained"), (0,), SETTINGS, places)
    planner = Planner(scope, {model: load_reference(model)})
    for planned in planner.plan("grid"):
        child.run(planned.task, silent)
    found = {(r.cell.preset, r.cell.method): r for r in read_all(places.results)}
    assert len([*places.work.rglob("checkpoint")]) == 3
    wide, narrow = (found[preset, "matryoshka-untrained"] for preset in ("w8a8", "w3a8"))
    assert wide.cost == narrow.cost
    assert wide.grid
    assert narrow.grid
    assert np.mean(wide.grid.psnr_db or 0) > np.mean(narrow.grid.psnr_db or 0) + 3
    write_report(places.results, tmp_path)
    text = (tmp_path / "RESULTS.md").read_text().partition("### Weights of few bits")[2]
    assert {line.split(" ")[1] for line in text.splitlines() if line.startswith("| W")} == {"W8A8", "W3A8"}
    assert f"{np.mean(narrow.grid.psnr_db or 0):.2f} (" in text


def test_report(measured: list[CellResult], folders: Folders, tmp_path: Path) -> None:
    pictures = draw_all(models_of(measured), folders.work, tmp_path)
    assert [Path(p).name for p in pictures] == ["pipeline-psnr.png", "pipeline-samples-w4a4.png", "pipeline-snr-w4a4.png"]
    write_report(folders.results, tmp_path, pictures)
    text = (tmp_path / "RESULTS.md").read_text()
    assert "## pipeline" in text
    assert "| **DilateQuant** |" in text
    assert "| min-max, static |" in text
    assert "w8a8 nncf" in text  # among the missing cells
    assert "w4a4 min-max" not in text
    rows = json.loads((tmp_path / "summary.json").read_text())["rows"]
    assert {row["method"] for row in rows} == {"float", "min-max", "dilatequant"}
    ours = next(row for row in rows if row["method"] == "min-max")
    assert ours["psnr_difference"]["low"] <= ours["psnr_difference"]["value"] <= ours["psnr_difference"]["high"]


def test_pictures_do_not_depend_on_the_batch(flow_pipeline: Path) -> None:
    reference = load_reference(str(flow_pipeline))
    source = reference.source
    whole = Drawing(source.scheduler, source.sample_shape, 3, reference.conditions).pictures(reference, range(5))
    single = Drawing(source.scheduler, source.sample_shape, 3, reference.conditions, batch=2).pictures(reference, range(5))
    assert np.allclose(whole, single, atol=1e-5)
    later = Drawing(source.scheduler, source.sample_shape, 3, reference.conditions).pictures(reference, range(3, 5))
    assert np.allclose(whole[3:], later, atol=1e-5)


def planned(task: Task, estimate_s: float = 1.0) -> Planned:
    return Planned(task, "missing", "", estimate_s)


def test_children_fail_alone_and_say_why(measured: list[CellResult], scope: Scope, planner: Planner, tmp_path: Path) -> None:
    bad = scope.task(Cell(model=str(tmp_path / "nowhere"), preset="w4a4", method="min-max"), "grid")
    good = next(p.task for p in planner.plan("grid") if p.task.cell.method == "min-max")
    finished = []
    outcome = pool.run([planned(bad), planned(good)], jobs=2, logs=tmp_path / "logs", finished=lambda p, _: finished.append(p.task))
    assert finished == [good]
    assert [p.task for p in outcome.done] == [good]
    assert list(outcome.failed) == ["nowhere w4a4 min-max (grid)"]
    reason = outcome.failed["nowhere w4a4 min-max (grid)"]
    assert "exit code 2" in reason
    assert "nowhere" in reason


def test_no_cell_is_started_that_would_end_too_late(scope: Scope, planner: Planner, tmp_path: Path) -> None:
    task = planner.plan("grid")[0].task
    outcome = pool.run([planned(task, estimate_s=100)], jobs=1, logs=tmp_path, deadline=time.monotonic() + 10)
    assert [p.task for p in outcome.left] == [task]
    assert not list(tmp_path.iterdir())


def test_children_end_with_their_parent(scope: Scope, planner: Planner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    real = pool._start

    def start(one: Planned, logs: Path) -> pool._Running:
        started.append(real(one, logs))
        return started[-1]

    monkeypatch.setattr(pool, "_start", start)
    alarm = threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT))
    alarm.start()
    with pytest.raises(KeyboardInterrupt):
        pool.run([planned(planner.plan("grid")[0].task)], jobs=1, logs=tmp_path)
        alarm.join()
    assert started[0].process.poll() is not None


ARGUMENTS = ["--steps", "3", "--calibration-samples", "4", "--iterations", "2", "--batch-size", "4", "--max-float-share", "0.5",
             "--grid-samples", "4", "--snr-samples", "2", "--threads", "1"]  # fmt: skip


def invoke(folders: Folders, *arguments: str) -> tuple[int, str, str]:
    places = ["--results", str(folders.results), "--work", str(folders.work), "--data", str(folders.data)]
    result = CliRunner().invoke(main, [*places, *ARGUMENTS, *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_dry_run_lists_what_is_missing_and_touches_nothing(flow_pipeline: Path, tmp_path: Path) -> None:
    folders = Folders(tmp_path / "results", tmp_path / "work", tmp_path / "data")
    options = ["--models", str(flow_pipeline), "--presets", "w4a4,w8a8", "--methods", "min-max,base,nncf", "--tier", "grid"]
    code, stdout, _ = invoke(folders, *options, "--dry-run", "--format", "json")
    found = json.loads(stdout)
    assert code == 0
    # NNCF has no other preset.
    cells = [(c["preset"], c["method"]) for c in found["cells"]]
    assert cells == [("float", "float"), ("w4a4", "min-max"), ("w4a4", "base"), ("w8a8", "min-max"), ("w8a8", "base"), ("w8a8", "nncf")]
    assert found["to_measure"] == 6
    assert found["estimate_s"] > 0
    assert list(tmp_path.iterdir()) == []


def test_the_command_measures_what_is_missing_and_writes_the_table(
    measured: list[CellResult], flow_pipeline: Path, folders: Folders
) -> None:
    options = ["--models", str(flow_pipeline), "--presets", "w4a4", "--methods", "min-max,wd", "--tier", "grid"]
    code, _, stderr = invoke(folders, *options, "--output", str(folders.work))
    assert code == 0, stderr
    assert "1 of 3 cells to measure" in stderr
    assert "pipeline w4a4 wd (grid)" in stderr
    assert "PSNR" in stderr
    assert read_result(Cell(model=str(flow_pipeline), preset="w4a4", method="wd").result_file(folders.results))
    assert "| WD |" in (folders.work / "RESULTS.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--presets", "w9a9", "--methods", "magic", "--seeds", "x"], "unknown preset 'w9a9'"),
        (["--methods", "magic"], "unknown method 'magic'"),
        (["--seeds", "-1"], "'-1' is not a seed"),
        (["--tier", "silver"], "unknown tier 'silver'"),
        (["--report-only"], "no results in"),
    ],
)
def test_bad_arguments_end_with_2(options: list[str], message: str, tmp_path: Path) -> None:
    folders = Folders(tmp_path / "results", tmp_path / "work", tmp_path / "data")
    code, _, stderr = invoke(folders, *options)
    assert code == 2
    assert message in stderr
