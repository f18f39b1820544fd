"""SIGKILL at random points of quantize, export and build: no half artefact is ever seen, and going on ends in the same bytes.

Each attempt is a fork of this process, so that a run takes seconds. A run of quantize is killed and resumed until it is through; an export
is begun anew, as is a build, which is not bit-identical by nature (its kernels are timed) and must open and verify instead.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from dq_deploy.artifacts import Kind, open_artifact
from dq_deploy.engines.build.engine import build_engine
from dq_deploy.exporters import export
from dq_deploy.quantization import quantize
from tests.engines import graphs
from tests.flow import snapshot
from tests.tiny import FAST, SHAPE, PlainUNet, scheduler

# Every stage has something to do, and little of it.
OPTIONS = {
    **FAST,
    "preset": "w4a8",
    "steps": 2,
    "calibration_samples": 2,
    "iterations": 2,
    "batch_size": 4,
    "dilation": "symmetric",
    "reference_samples": 1,
}
_MOST_RESUMED = 12  # then it may finish


@dataclass
class Killed:
    """Kills that hit a running process, runs that ended and were compared with one that was never killed, and what was wrong."""

    stage: str
    kills: int = 0
    compared: int = 0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Stage:
    """``run(output)`` makes an artefact of ``kind``; ``same`` says that it does so bit for bit."""

    name: str
    kind: Kind
    run: Callable[[Path], object]
    same: bool


def stages(work: Path) -> list[Stage]:
    """Everything that writes an artefact; what they start from is made in ``work``."""
    checkpoint = work / "from-checkpoint"
    quantize(PlainUNet(), checkpoint, scheduler=scheduler(), sample_shape=SHAPE, **{**OPTIONS, "iterations": 0})
    bundle = graphs.network(work / "from-bundle")

    def quantized(output: Path) -> None:
        quantize(PlainUNet(), output, scheduler=scheduler(), sample_shape=SHAPE, resume=True, **OPTIONS)

    return [
        Stage("quantize", "checkpoint", quantized, same=True),
        Stage("export", "bundle", lambda output: export(checkpoint, output, target="qdq"), same=True),
        Stage("build", "engine", lambda output: build_engine(bundle, output, compute_capabilities=["8.9"], batch=(1, 1, 1)), same=False),
    ]


def attempt(stage: Stage, output: Path, after_s: float | None) -> tuple[bool, str]:
    """Run in a fork and kill it after so many seconds: whether it was killed, and what it said."""
    log = output.parent / "stderr"
    child = os.fork()
    if child == 0:
        code = 1
        try:
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, 2)
            sys.stderr = os.fdopen(2, "w")  # in a test it is pytest's, and what the child says would go with the child
            torch.set_num_threads(1)
            stage.run(output)
            code = 0
        except BaseException:  # noqa: BLE001  the child ends here
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    if after_s is not None:
        time.sleep(after_s)
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    text = log.read_text() if log.exists() else ""
    log.unlink(missing_ok=True)
    return code == -signal.SIGKILL, "" if code in (0, -signal.SIGKILL) else f"exit code {code}: {text[-2000:]}"


def kill(stage: Stage, count: int, work: Path, seed: int = 0) -> Killed:
    """Kill ``count`` runs at times uniform over a whole run's."""
    chance, result, started = random.Random(seed), Killed(stage.name), time.monotonic()
    through = work / f"{stage.name}-through"
    stage.run(through)  # also warms what a fork inherits
    second = time.monotonic()
    _, said = attempt(stage, work / f"{stage.name}-timed", None)
    whole_s = time.monotonic() - second
    result.failures += [f"unkilled: {said}"] if said else []
    number = 0
    while result.kills < count and len(result.failures) < 5:
        number += 1
        output = work / f"{stage.name}-{number}"
        for _ in range(_MOST_RESUMED):
            hit, said = attempt(stage, output, chance.uniform(0, whole_s) if result.kills < count else None)
            result.kills += hit
            if said:
                result.failures.append(f"run {number}: {said}")
            result.failures += _visible_half(stage, output)
            if not hit or output.exists():  # a kill may come when the artefact stands and only the process has not ended
                break
        if not output.exists():
            _, said = attempt(stage, output, None)
            result.failures += [f"run {number}, going on: {said}"] if said else []
        result.failures += _differs(stage, output, through)
        result.compared += 1
    result.seconds = time.monotonic() - started
    return result


def _visible_half(stage: Stage, output: Path) -> list[str]:
    """What is seen is either nothing or whole, and beside it there are only hidden folders and the work folder."""
    problems = []
    if output.exists():
        try:
            open_artifact(output, stage.kind)
        except Exception as error:  # noqa: BLE001  every kind is a finding
            problems.append(f"{output.name} is half an artefact: {error}")
    known = (output.name, f"{output.name}.resume")
    strange = [p.name for p in output.parent.iterdir() if output.name in p.name and p.name not in known and not p.name.startswith(".")]
    return problems + ([f"left in sight: {strange}"] if strange else [])


def _differs(stage: Stage, output: Path, through: Path) -> list[str]:
    if not output.exists():
        return [f"{output.name} was not made"]
    found = _visible_half(stage, output)
    if stage.same and snapshot(output) != snapshot(through):
        names = [name for name, value in snapshot(through).items() if snapshot(output).get(name) != value]
        found.append(f"{output.name} is another than without kills: {names}")
    return found
