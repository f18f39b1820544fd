"""Time that a user waits for the tool itself: help, and an export beside a bare ``torch.onnx.export`` of the float model."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import dq_deploy
from benchmarks.accuracy.models import load_reference
from benchmarks.accuracy.peers import export_float
from dq_deploy.progress import Progress

from .preparing import Made
from .subjects import Subject

_HELP_RUNS, _EXPORT_ROUNDS = 11, 2


def startup(subject: Subject, made: Made, progress: Progress) -> dict[str, Any]:
    """Seconds of ``dq-deploy --help``, and of both exports, the median of several in turns (the first of each is left out)."""
    reference = load_reference(subject.builtin)
    with TemporaryDirectory() as folder, progress("start-up", _HELP_RUNS + _EXPORT_ROUNDS + 1) as advance:
        helps = []
        for _ in range(_HELP_RUNS):
            helps.append(_timed(_help))
            advance(1, "help")
        ours, bare = [], []
        for _ in range(_EXPORT_ROUNDS + 1):
            ours.append(_timed(lambda: dq_deploy.export(made.checkpoint, Path(folder) / "bundle", target="qdq", force=True)))
            bare.append(_timed(lambda: export_float(reference, reference.source.sample_shape, Path(folder) / "bare.onnx")))
            advance(1, "export")
    return {"help_s": median(helps), "help_s_least": min(helps), "export_s": median(ours[1:]), "bare_export_s": median(bare[1:])}


def _help() -> None:
    subprocess.run([sys.executable, "-m", "dq_deploy", "--help"], stdout=subprocess.DEVNULL, check=True)


def _timed(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start
