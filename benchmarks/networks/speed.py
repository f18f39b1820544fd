"""How fast a network's quantized models are: every contender interleaved in one run, as ratios to ONNX Runtime in float."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import dq_deploy
from benchmarks.accuracy.denoisers import CHECKPOINT
from benchmarks.accuracy.identity import identity
from benchmarks.accuracy.methods import method
from benchmarks.accuracy.models import Reference, load_reference
from benchmarks.accuracy.peers import FLOAT_ONNX, NNCF_XML, ORT_ONNX
from benchmarks.accuracy.quantizing import quantize_cell
from benchmarks.accuracy.results import write_text
from benchmarks.accuracy.settings import Cell, Settings
from benchmarks.accuracy.workspace import Workspace
from benchmarks.latency.runners import PlainOnnxRuntime, PlainOpenVino, TorchRunner
from dq_deploy.console import Output, to_json
from dq_deploy.engines.bench import bench
from dq_deploy.engines.bench.contenders import Contender, contenders_from
from dq_deploy.engines.onnxruntime.runner import OnnxRuntimeRunner
from dq_deploy.engines.openvino.runner import OpenVinoRunner
from dq_deploy.errors import DqDeployError
from dq_deploy.progress import Progress

from .methods import OURS, PRESET
from .network import network, source_name

BASELINE = "ONNX Runtime, float"
OURS_OPENVINO, OURS_ORT = "ours on OpenVINO", "ours on ONNX Runtime"
NNCF, STATIC, OPENVINO, TORCH = "NNCF on OpenVINO", "quantize_static on ONNX Runtime", "OpenVINO, float", "PyTorch, float"
BATCHES = (1, 4)
EVERY_BATCH, EVERY_THREADS = range(1, 9), (1, 2)
_WARMUP = 2


@dataclass(frozen=True)
class SpeedTask:
    """A network to time, and where everything lies. ``seconds`` are spent on each batch, of ``rounds`` at the most."""

    name: str
    settings: dict[str, Any]
    work: str
    result: str
    threads: int = 1
    rounds: int = 25
    seconds: float = 60.0


def measure(task: SpeedTask, progress: Progress) -> dict[str, Any]:
    """Quantize what is not there yet, export anew with the code of today, time. What does not run is named with its error."""
    reference = load_reference(source_name(task.name))
    folders = {name: _artefact(name, reference, task, progress) for name in (OURS, "onnxruntime", "nncf")}
    bundles = {target: folders[OURS] / f"bundle-{target}" for target in ("tensorrt", "onnxruntime")}
    for target, path in bundles.items():
        options = {"dtype": "fp32"} if target == "tensorrt" else {}
        dq_deploy.export(folders[OURS] / CHECKPOINT, path, target=target, force=True, progress=progress, **options)  # type: ignore[arg-type]
    (template,) = contenders_from([bundles["tensorrt"]], engines=["onnxruntime"], threads=task.threads)
    makers: dict[str, Callable[[], Any]] = {
        BASELINE: lambda: PlainOnnxRuntime(folders["nncf"] / FLOAT_ONNX, threads=task.threads),
        OURS_OPENVINO: lambda: OpenVinoRunner(bundles["tensorrt"], threads=task.threads),
        NNCF: lambda: PlainOpenVino(folders["nncf"] / NNCF_XML, threads=task.threads),
        OPENVINO: lambda: PlainOpenVino(folders["nncf"] / FLOAT_ONNX, threads=task.threads),
        OURS_ORT: lambda: OnnxRuntimeRunner(bundles["onnxruntime"], threads=task.threads),
        STATIC: lambda: PlainOnnxRuntime(folders["onnxruntime"] / ORT_ONNX, threads=task.threads),
        TORCH: lambda: TorchRunner(reference.source.model, reference.input_names, compiled=False, threads=task.threads),
    }
    failures: list[dict[str, Any]] = []
    everyone = _made(makers, template, failures)
    rows: list[dict[str, Any]] = []
    machine: dict[str, Any] = {}
    details: dict[str, Any] = {}
    for batch in BATCHES:
        ready, seconds = _ready(everyone, batch, failures)
        rounds = max(5, min(task.rounds, round(task.seconds / seconds)))
        found = bench(ready, batches=[batch], runs=rounds, warmup=_WARMUP, baseline=BASELINE, progress=progress)
        rows += [{**asdict(row), "rounds": rounds} for row in found.rows]
        machine, details = found.machine, details | found.contenders
    failures += _every_batch(bundles["tensorrt"], template)
    own = network(task.name)
    return {
        "name": task.name, "title": own.title, "family": own.family, "ours": OURS, "threads": task.threads, "rows": rows,
        "failures": failures,
        "machine": machine, "parameters": sum(p.numel() for p in reference.source.model.parameters()),
        "contenders": {name: {k: v for k, v in entry.items() if k != "path"} for name, entry in details.items()},
    }  # fmt: skip


def _artefact(name: str, reference: Reference, task: SpeedTask, progress: Progress) -> Path:
    """The folder that the accuracy harness keeps a method's model in, made now if it is not there."""
    settings = Settings(**task.settings)
    cell, source = Cell(model=source_name(task.name), preset=PRESET, method=name), reference.source
    found = identity(cell, settings, model_sha256=source.sha256, family=reference.family)
    folder = Workspace(Path(task.work), cell.model, source.sha256).cell_folder(cell, found.sha256)
    quantize_cell(cell, method(name), reference, settings, folder, "cpu", progress)
    return folder


def _made(makers: Mapping[str, Callable[[], Any]], template: Contender, failures: list[dict[str, Any]]) -> list[Contender]:
    found = []
    for name, make in makers.items():
        try:
            found.append(Contender(name=name, runner=make(), inputs=template.inputs))
        except Exception as error:  # noqa: BLE001  an engine's own, as many kinds as there are engines
            failures.append({"contender": name, "batch": None, "threads": None, "error": _said(error)})
    return found


def _ready(everyone: Sequence[Contender], batch: int, failures: list[dict[str, Any]]) -> tuple[list[Contender], float]:
    """Those that run at this batch, compiled for it now, and the seconds that a round of them takes."""
    ready, seconds = [], 0.0
    for contender in everyone:
        error, taken = _tried(contender, batch)
        if error is None:
            ready.append(contender)
            seconds += taken
        else:
            failures.append({"contender": contender.name, "batch": batch, "threads": None, "error": error})
    return ready, seconds


def _tried(contender: Contender, batch: int) -> tuple[str | None, float]:
    """What is wrong with a contender at a batch, None if nothing, and the seconds of its second run."""
    try:
        inputs = contender.inputs(batch)[0]
        contender.runner.run(inputs)
        started = time.perf_counter()
        output = contender.runner.run(inputs)
        taken = time.perf_counter() - started
    except Exception as error:  # noqa: BLE001  as above
        return _said(error), 0.0
    return (None if np.isfinite(output).all() else "NaN or Inf in its output"), taken


def _every_batch(bundle: Path, template: Contender) -> list[dict[str, Any]]:
    """Where our bundle does not run on OpenVINO, at every small batch with one thread and two."""
    failures = []
    for threads in EVERY_THREADS:
        for batch in EVERY_BATCH:
            # A runner for each: OpenVINO keeps the model of every shape that it has seen.
            try:
                error, _ = _tried(Contender(OURS_OPENVINO, OpenVinoRunner(bundle, threads=threads), template.inputs), batch)
            except Exception as problem:  # noqa: BLE001  as above
                error = _said(problem)
            if error is not None:
                failures.append({"contender": OURS_OPENVINO, "batch": batch, "threads": threads, "error": error})
    return failures


def _said(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def main() -> int:
    """Time the network of the task on stdin; progress and errors on stderr, the exit code of the error."""
    out = Output()
    try:
        task = SpeedTask(**json.loads(sys.stdin.read()))
        torch.set_num_threads(task.threads)
        write_text(Path(task.result), json.dumps(to_json(measure(task, out.progress)), indent=1))
    except DqDeployError as error:
        out.error(error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
