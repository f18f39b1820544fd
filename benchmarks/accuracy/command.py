"""The command: plan, say how long it will take, measure what is missing, write the table."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from types import FrameType
from typing import Any, Literal

import click

from dq_deploy.console import Output, duration
from dq_deploy.errors import DqDeployError, UsageError

from . import pool
from .child import INTERRUPTED
from .confirmed import confirm, different_figures
from .identity import OTHER_CODE
from .methods import BY_NAME, FEW_BITS, PRESETS
from .models import DATASETS, load_reference
from .pictures import draw_all, models_of
from .planning import Folders, Planned, Planner, Scope, default_presets, pending
from .report import write_report
from .results import read_all, read_result
from .settings import FLOAT, TIERS, DrawnBy, Settings, Tier, default_work

HERE = Path(__file__).parent
FAILED = 1
_DATA = Path("/usr/share/datasets/fashion-mnist")  # where Debian's dataset-fashion-mnist puts it
_CONFIRM = "Measure the stale cells of this selection again; if every bit is as it was, all that the older code measured stands."
_DRAWN_BY = "What runs quantized models for rivals and headlines; openvino runs the exported graph on INT8 kernels, the faster way."
_SEEDS = "First seeds of the calibration, with commas; nearer together than --calibration-samples they share trajectories."
_SOURCE = (
    "A model of your own: a pipeline folder, a hub id, or FILE.py:FUNCTION or module:FUNCTION that returns it (README.md). "
    "Repeatable; with --models beside those, else alone."
)
_OWN = Path("accuracy-results") / "results"
_SIZES = {name: info.default for name, info in Settings.model_fields.items()}


def comma_list(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...] | None:  # noqa: ARG001  click's signature
    """The parts of an option's value between commas; None where it was not given."""
    if value is None:
        return None
    if not (parts := tuple(part.strip() for part in value.split(",") if part.strip())):
        raise click.BadParameter(f"nothing is named in {value!r}")
    return parts


def _sizes(command: Any) -> Any:
    """An option for each field of ``Settings``."""
    for name, default in reversed(_SIZES.items()):
        kind = type(default)
        command = click.option(f"--{name.replace('_', '-')}", name, type=kind, default=default, show_default=True)(command)
    return command


@click.command()
@click.option("--models", callback=comma_list, help="Built-in names and paths of pipelines, with commas.  [default: every built-in]")
@click.option("--source", "sources", multiple=True, help=_SOURCE)
@click.option(
    "--presets", callback=comma_list, help="With commas.  [default: vq2a8,vq3a8,w3a8,w6a8,nvfp4,w4a8-fp8,fp8,w4a4,w4a8,w6a6,w8a8]"
)
@click.option("--methods", callback=comma_list, help=f"With commas.  [default: {','.join(BY_NAME)}]")
@click.option("--seeds", callback=comma_list, default="0", show_default=True, help=_SEEDS)
@click.option("--tier", "tiers", callback=comma_list, help="grid, rival, headline, with commas.  [default: all; grid with --source]")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Cells at a time, each in a process of its own.")
@click.option("--threads", type=click.IntRange(1), default=None, help="CPU threads of a cell.  [default: cores / jobs]")
@click.option("--max-minutes", type=click.FloatRange(0), default=None, help="Start no cell that is not expected to end within this time.")
@click.option("--dry-run", is_flag=True, help="Print the missing cells and the time they will take, and stop.")
@click.option("--rerun-stale", is_flag=True, help="Measure cells again that other code or settings made.")
@click.option("--confirm", "confirming", is_flag=True, help=_CONFIRM)
@click.option("--report-only", is_flag=True, help="Only write the table.")
@click.option(
    "--results",
    type=click.Path(path_type=Path),
    default=None,
    help=f"Folder of the figures.  [default: beside the code; {_OWN} with --source]",
)
@click.option("--output", type=click.Path(path_type=Path), default=None, help="Folder of RESULTS.md.  [default: the parent of --results]")
@click.option(
    "--work", type=click.Path(path_type=Path), default=None, help="Folder of checkpoints and pictures.  [default: the user's cache]"
)
@click.option("--data", type=click.Path(path_type=Path), default=_DATA, show_default=True, help="Fashion-MNIST's IDX files.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--drawn-by", type=click.Choice(["torch", "openvino"]), default="torch", show_default=True, help=_DRAWN_BY)
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
@_sizes
def main(models: tuple[str, ...] | None, sources: tuple[str, ...], presets: tuple[str, ...] | None, methods: tuple[str, ...] | None,
         seeds: tuple[str, ...], tiers: tuple[str, ...] | None, jobs: int, threads: int | None, max_minutes: float | None, dry_run: bool,
         rerun_stale: bool, confirming: bool, report_only: bool, results: Path | None, output: Path | None, work: Path | None, data: Path,
         device: str, drawn_by: DrawnBy, form: Literal["table", "json"], **sizes: Any) -> None:  # fmt: skip
    """Quantize the same models by every method, from the same data and with the same budget, and judge them by the same metrics.

    Figures lie in one file a cell; what is there is not measured again, so a run may be stopped at any time and continued on another day or
    machine.
    """
    out = Output(form)
    started = time.monotonic()
    try:
        results = results or (_OWN if sources else HERE / "results")
        models = (*(models or ()), *sources) if sources else models
        folders = Folders(results.absolute(), (work or default_work()).absolute(), data.absolute())
        threads = threads or max(1, (os.cpu_count() or 1) // jobs)
        scope = replace(_scope(models, presets, methods, seeds, Settings(**sizes), folders, device, threads), drawn_by=drawn_by)
        # What a model of the user's own was trained on is not known: there are no features to judge it by.
        chosen = _tiers(tiers or (("grid",) if sources else None))
        target = (output or results.parent).absolute()
        if report_only:
            _report(scope, target, out)
            return
        deadline = None if max_minutes is None else started + 60 * max_minutes
        run = Run(scope, chosen, jobs, deadline, rerun_stale, out)
        if dry_run:
            run.announce()
            return
        with _terminable():
            failed = run.confirm() if confirming else run.measure()
        _report(scope, target, out)
        sys.exit(FAILED if failed else 0)
    except DqDeployError as error:
        out.error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        out.note("interrupted; the finished cells are kept, and the same command continues")
        sys.exit(INTERRUPTED)


def _scope(models: tuple[str, ...] | None, presets: tuple[str, ...] | None, methods: tuple[str, ...] | None, seeds: tuple[str, ...],
           settings: Settings, folders: Folders, device: str, threads: int) -> Scope:  # fmt: skip
    """Raises UsageError naming every unknown preset, method and seed at once."""
    known = (*PRESETS, *FEW_BITS)
    problems = [f"unknown preset '{p}' (presets: {', '.join(known)})" for p in presets or () if p not in known]
    problems += [f"unknown method '{m}' (methods: {', '.join(BY_NAME)})" for m in methods or () if m not in BY_NAME]
    problems += [f"'{s}' is not a seed" for s in seeds if not s.isdecimal()]
    if problems:
        raise UsageError("; ".join(problems))
    return Scope(
        models=models or tuple(DATASETS),
        presets=presets or default_presets(),
        methods=methods or tuple(BY_NAME),
        seeds=tuple(int(s) for s in seeds),
        settings=settings,
        folders=folders,
        device=device,
        threads=threads,
    )


def _tiers(names: tuple[str, ...] | None) -> tuple[Tier, ...]:
    unknown = [name for name in names or () if name not in TIERS]
    if unknown:
        raise UsageError(f"unknown tier '{unknown[0]}'", f"tiers: {', '.join(TIERS)}")
    return tuple(tier for tier in TIERS if names is None or tier in names)


@dataclass
class Run:
    """One run of the command."""

    scope: Scope
    tiers: Sequence[Tier]
    jobs: int
    deadline: float | None
    rerun_stale: bool
    out: Output
    planner: Planner = field(init=False)

    def __post_init__(self) -> None:
        references = {model: load_reference(model) for model in self.scope.models}
        self.planner = Planner(self.scope, references)

    def announce(self) -> None:
        """Print every missing and stale cell and the time that measuring takes."""
        plans = {tier: self.planner.plan(tier) for tier in self.tiers}
        rows, data = [], []
        for tier, plan in plans.items():
            for p in plan:
                data.append({**p.task.cell.model_dump(), "tier": tier, "state": p.state, "reason": p.reason, "estimate_s": p.estimate_s})
                if p.state != "done":
                    state = f"{p.state} ({p.reason})" if p.reason else p.state
                    rows.append([p.task.cell.label, tier, state, duration(p.estimate_s)])
        self.out.table("cells", ["cell", "tier", "state", "about"], rows)
        todo = [p for plan in plans.values() for p in pending(plan, rerun_stale=self.rerun_stale)]
        seconds = sum(p.estimate_s for p in todo) / self.jobs
        stale = sum(p.state == "stale" for plan in plans.values() for p in plan)
        self.out.text(f"{len(todo)} cells to measure, about {duration(seconds)} with {self.jobs} at a time" + self._stale_note(stale))
        self.out.data({"cells": data, "to_measure": len(todo), "estimate_s": seconds, "jobs": self.jobs})

    def measure(self) -> dict[str, str]:
        """Measure tier by tier; returns the failed tasks with reasons."""
        failed: dict[str, str] = {}
        for tier in self.tiers:
            plan = self.planner.plan(tier)
            todo = pending(plan, rerun_stale=self.rerun_stale)
            seconds = sum(p.estimate_s for p in todo) / self.jobs
            stale = sum(p.state == "stale" for p in plan)
            self.out.note(f"{tier}: {len(todo)} of {len(plan)} cells to measure, about {duration(seconds)}" + self._stale_note(stale))
            # The float model's pictures come first: all others are compared with them.
            base = [p for p in todo if p.task.cell.method == FLOAT]
            first = self._pool(tier, base) if tier == "grid" else {}
            failed |= first or self._pool(tier, [p for p in todo if tier != "grid" or p.task.cell.method != FLOAT])
        for label, reason in failed.items():
            self.out.warn(f"{label} failed: {reason}")
        return failed

    def confirm(self) -> dict[str, str]:
        """Measure cells that other code made again, in a scratch folder; returns what failed or came out differently, with reasons."""
        plan = [p for p in self.planner.plan("grid") if p.reason == OTHER_CODE]
        if not plan:
            raise UsageError("no cell of this selection was made by other code", "select stale cells with --presets and --methods")
        self.out.note(f"{len(plan)} cells to measure again, about {duration(sum(p.estimate_s for p in plan) / self.jobs)}")
        results = self.scope.folders.results
        with tempfile.TemporaryDirectory(prefix="dq-deploy-confirm-") as scratch:
            elsewhere = Path(scratch)
            again = [replace(p, task=p.task.model_copy(update={"results": elsewhere})) for p in plan]
            failed = self._pool("grid", again)
            cells = [p.task.cell for p in plan]
            failed |= {cell.label: reason for cell in cells if (reason := different_figures(cell, results, elsewhere))}
            for one in [] if failed else confirm(cells, results, elsewhere):
                self.out.note(f"what code {one.old[:8]} measured stands for {one.new[:8]}: {len(one.cells)} cells, every bit the same")
        for label, reason in failed.items():
            self.out.warn(f"{label}: {reason}")
        return failed

    def _stale_note(self, stale: int) -> str:
        again = "measured again" if self.rerun_stale else "kept; --rerun-stale measures them again"
        return f"; {stale} were made by other code or settings and are {again}" if stale else ""

    def _pool(self, tier: Tier, todo: Sequence[Planned]) -> dict[str, str]:
        if not todo:
            return {}
        logs = self.scope.folders.work / "logs"
        outcome = pool.run(
            todo, jobs=self.jobs, logs=logs, deadline=self.deadline, finished=self._tell, label=tier, progress=self.out.progress
        )
        if outcome.left:
            self.out.note(f"{len(outcome.left)} cells were left for another day (--max-minutes)")
        return outcome.failed

    def _tell(self, planned: Planned, seconds: float) -> None:
        found = read_result(planned.task.cell.result_file(self.scope.folders.results))
        psnr = found.grid.psnr_db if found and found.grid else None
        figure = f", PSNR {mean(psnr):.2f} dB" if psnr and planned.task.tier == "grid" else ""
        self.out.note(f"{planned.task.label}: {duration(seconds)}{figure}")


def _report(scope: Scope, output: Path, out: Output) -> None:
    cells = read_all(scope.folders.results)
    pictures = draw_all(models_of(cells), scope.folders.work, output)
    write_report(scope.folders.results, output, pictures)
    out.note(f"wrote {output / 'RESULTS.md'}")


class _terminable:  # noqa: N801  used as a statement
    """SIGTERM ends the run as Ctrl-C does."""

    def __enter__(self) -> None:
        def interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  the signal's arguments
            raise KeyboardInterrupt

        self.previous = signal.signal(signal.SIGTERM, interrupt)

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self.previous)
