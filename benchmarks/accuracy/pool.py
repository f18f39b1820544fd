"""Runs tasks in child processes, a few at a time."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dq_deploy.progress import Progress, silent

from .child import Task
from .planning import Planned

_ROOT = Path(__file__).parents[2]
_POLL_S = 0.2
_GRACE_S = 10.0
_LAST_LINES = 6


@dataclass
class Outcome:
    """What came of a run: labels with reasons for those that failed."""

    done: list[Planned] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    left: list[Planned] = field(default_factory=list)


@dataclass
class _Running:
    planned: Planned
    process: subprocess.Popen[bytes]
    log: Path
    started: float


def run(
    plan: Sequence[Planned],
    *,
    jobs: int,
    logs: Path,
    deadline: float | None = None,
    finished: Callable[[Planned, float], None] | None = None,
    label: str = "accuracy",
    progress: Progress = silent,
) -> Outcome:
    """Run every task, ``jobs`` at a time. ``finished`` is called for each that succeeded, and the seconds it took.

    A task that is not expected to end before ``deadline`` (of ``time.monotonic``) is left; one that runs is let end. When this is
    interrupted, the children are ended and nothing half-measured remains.
    """
    outcome, waiting, running = Outcome(), list(plan), list[_Running]()
    with progress(f"{label} (seconds of work)", max(1, round(sum(p.estimate_s for p in plan)))) as advance:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    planned = waiting.pop(0)
                    if deadline is not None and time.monotonic() + planned.estimate_s > deadline:
                        outcome.left.append(planned)
                    else:
                        running.append(_start(planned, logs))
                for one in [r for r in running if r.process.poll() is not None]:
                    running.remove(one)
                    seconds = time.monotonic() - one.started
                    advance(round(one.planned.estimate_s), one.planned.task.label)
                    if one.process.returncode == 0:
                        outcome.done.append(one.planned)
                        if finished:
                            finished(one.planned, seconds)
                    else:
                        outcome.failed[one.planned.task.label] = _reason(one)
                time.sleep(_POLL_S if running else 0)
        finally:
            _end(running)
    return outcome


def _start(planned: Planned, logs: Path) -> _Running:
    task: Task = planned.task
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / f"{task.label.replace(' ', '-')}.log"
    environment = {**os.environ, "OMP_NUM_THREADS": str(task.threads), "MKL_NUM_THREADS": str(task.threads)}
    environment["OPENBLAS_NUM_THREADS"] = str(task.threads)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "benchmarks.accuracy.child"]
    with log.open("wb") as stream:
        # A session of its own: Ctrl-C reaches this process, which then ends the children in order.
        process = subprocess.Popen(  # noqa: S603  our own module
            command, stdin=subprocess.PIPE, stdout=stream, stderr=stream, env=environment, start_new_session=True
        )
    assert process.stdin is not None
    process.stdin.write(task.model_dump_json().encode())
    process.stdin.close()
    return _Running(planned, process, log, time.monotonic())


def _reason(one: _Running) -> str:
    lines = one.log.read_text(errors="replace").strip().splitlines()[-_LAST_LINES:]
    code = one.process.returncode
    ended = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    return f"{ended}, log {one.log}" + "".join(f"\n    {line}" for line in lines)


def _end(running: Sequence[_Running]) -> None:
    for one in running:
        one.process.terminate()
    for one in running:
        try:
            one.process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            one.process.kill()
            one.process.wait()
