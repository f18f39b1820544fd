"""``dq-deploy prove``: what an owner of a GPU can say of engines, in one file: that they are right, what they run in, and how fast.

It puts together what ``check``, ``bench`` and the engine inspector say. Nothing of it was executed by this project: files that owners sent
lie in docs/proofs.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pydantic import Field

from ..artifacts import Artifact, open_artifact
from ..artifacts.details import CheckpointDetails, EngineDetails
from ..artifacts.layer_bits import bits_in_words
from ..artifacts.lineage import origin_of
from ..artifacts.reading import read_record
from ..artifacts.records import Record
from ..engines.bench import BenchRow, bench, contenders_from
from ..engines.bench.contenders import Contender
from ..engines.descriptors.registry import DEFAULT_BUILDER
from ..engines.devices.cuda_driver import gpu_compute_capability
from ..engines.layer_report import BOOKKEEPING, LayerReport
from ..engines.layer_report.executed import ExecutedProduct, counted, executed_products
from ..engines.layer_report.kernels import Kernel
from ..engines.loading.engine_files import builder_of, entry_for, take_to_a_gpu
from ..errors import AccuracyGateError, ArtifactError, EnvironmentProblem, UsageError
from ..progress import Progress, silent
from .check import check

SCHEMA_VERSION = 1


class ProvenAccuracy(Record):
    """The verdict of ``check``, and at each timestep the SNR against the float model of the engine and of the PyTorch forward."""

    passed: bool
    failures: list[str]
    timesteps: list[float]
    snr_db: list[float]
    reference_db: list[float | None]


class ProvenTime(Record):
    """A batch's milliseconds: of a call, between two CUDA events on the GPU, and (``floor_ms``) the least that its peaks allow."""

    batch: int
    median_ms: float
    device_median_ms: float | None
    device_p90_ms: float | None
    floor_ms: float | None


class ProvenEngine(Record):
    """One engine. ``bits`` is None for a float one, which ``accuracy`` is None for too.

    ``inspected`` says why ``products`` have no ``executed`` format where the inspector said nothing; None where it did. ``cuda_graphs`` is
    "on", or why not. ``profiles`` are its optimization profiles where it has several; ``products`` are those of the first.
    """

    engine: str
    model: str
    backend: str
    version: str
    bits: str | None
    gpu: str
    compute_capability: str
    file_sha256: str
    accuracy: ProvenAccuracy | None
    products: list[ExecutedProduct]
    inspected: str | None
    planned_kernels: int
    kernels: int | None
    times: list[ProvenTime]
    cuda_graphs: str
    profiles: list[dict[str, tuple[int, int, int]]] = Field(default_factory=list)


class Proof(Record):
    """What was proven of engines on one GPU, and where. Truthy when every quantized engine passed its check."""

    schema_version: int = SCHEMA_VERSION
    machine: dict[str, Any]
    settings: dict[str, Any]
    engines: list[ProvenEngine] = Field(min_length=1)
    notes: list[str]

    def __bool__(self) -> bool:
        return all(engine.accuracy is None or engine.accuracy.passed for engine in self.engines)

    def enforce(self) -> None:
        """Raise AccuracyGateError naming the engines that failed their check."""
        failed = [(one.engine, one.accuracy) for one in self.engines if one.accuracy is not None and not one.accuracy.passed]
        if failed:
            raise AccuracyGateError("; ".join(f"{name} fails the check: {accuracy.failures[0]}" for name, accuracy in failed))


@runtime_checkable
class Inspected(Protocol):
    """A runner that can say which kernels it has."""

    def kernels(self) -> Sequence[Kernel]:
        """The kernels that run. Raises ArtifactError where that is not known."""


def prove(paths: Sequence[str | Path], checkpoints: Sequence[str | Path], *, batches: Sequence[int] = (1,), runs: int = 50,
          progress: Progress = silent) -> Proof:  # fmt: skip
    """Check, inspect and time engines on this machine's GPU; the first is the one that the others' times are compared with.

    ``checkpoints``: those that the quantized engines came from, in any order.

    Raises EnvironmentProblem (no GPU here, with what is needed), UsageError (no engine, a checkpoint that is missing or of none of them)
    and what ``check`` and ``bench`` raise.
    """
    engines = [open_artifact(path, "engine") for path in paths]
    _on_a_gpu(engines)
    origins = _origins(engines, [open_artifact(path, "checkpoint") for path in checkpoints])
    capability = _this_gpu(engines)
    verdicts = {engine.path: _accuracy(engine, origins[engine.path], progress) for engine in engines if engine.path in origins}
    contenders = contenders_from(engines)
    timed = bench(contenders, batches=batches, runs=runs, progress=progress)
    proven = [_proven(engine, contender, capability, verdicts.get(engine.path), timed.rows)
              for engine, contender in zip(engines, contenders, strict=True)]  # fmt: skip
    return Proof(machine=timed.machine, settings=timed.settings, engines=proven, notes=timed.notes)


def _on_a_gpu(engines: Sequence[Artifact[EngineDetails]]) -> None:
    if not engines:
        raise UsageError("no engine was given", "build one with: dq-deploy build-engine")
    for engine in engines:
        descriptor = builder_of(engine.path, engine.details)
        if not descriptor.gpu:
            raise ArtifactError(
                f"{engine.path} is an engine of {descriptor.title}, and prove runs engines on an NVIDIA GPU",
                "check and bench judge it where it runs; for a GPU build another: "
                + shlex.join(["dq-deploy", "build-engine", engine.details.bundle, "-o", "ENGINE", "--backend", DEFAULT_BUILDER.name]),
            )


def _this_gpu(engines: Sequence[Artifact[EngineDetails]]) -> str:
    try:
        return "{}.{}".format(*gpu_compute_capability())
    except (OSError, RuntimeError) as error:
        raise EnvironmentProblem(
            f"prove runs engines on an NVIDIA GPU, and none can be used here: {error}", take_to_a_gpu(engines)
        ) from None


def _origins(engines: Sequence[Artifact[EngineDetails]],
             checkpoints: Sequence[Artifact[CheckpointDetails]]) -> Mapping[Path, Artifact[CheckpointDetails]]:  # fmt: skip
    """The checkpoint of every quantized engine, by the engine's path."""
    given = {checkpoint.as_parent.manifest_sha256: checkpoint for checkpoint in checkpoints}
    quantized = [engine for engine in engines if not engine.details.float]
    found = {engine.path: given[origin] for engine in quantized if (origin := origin_of(engine)) in given}
    if missing := [str(engine.path) for engine in quantized if engine.path not in found]:
        raise UsageError(f"no checkpoint was given that {', '.join(missing)} came from", "name it: --checkpoint CHECKPOINT (repeatable)")
    if unread := [str(one.path) for one in checkpoints if one.path not in {origin.path for origin in found.values()}]:
        raise UsageError(f"none of the engines came from {', '.join(unread)}", "leave it out, or name its engine")
    return found


def _accuracy(engine: Artifact[EngineDetails], checkpoint: Artifact[CheckpointDetails], progress: Progress) -> ProvenAccuracy:
    verdict = check(engine, checkpoint, progress=progress)
    rows = verdict.engines[0].timesteps
    return ProvenAccuracy(
        passed=bool(verdict), failures=verdict.failures, timesteps=[row.timestep for row in rows],
        snr_db=[row.snr_bundle_db for row in rows], reference_db=[row.snr_reference_db for row in rows],
    )  # fmt: skip


def _proven(engine: Artifact[EngineDetails], contender: Contender, capability: str, accuracy: ProvenAccuracy | None,
            rows: Sequence[BenchRow]) -> ProvenEngine:  # fmt: skip
    details = engine.details
    entry = entry_for(engine, details, capability)
    report = read_record(engine.file(entry.report), LayerReport, "a layer report")
    kernels, why = _kernels(contender)
    times = [
        ProvenTime(batch=row.batch, median_ms=row.median_ms, device_median_ms=row.device_median_ms, device_p90_ms=row.device_p90_ms,
                   floor_ms=row.floor_ms)
        for row in rows if row.contender == contender.name
    ]  # fmt: skip
    return ProvenEngine(
        engine=engine.path.name, model=str(engine.manifest.model), backend=details.backend, version=details.version,
        bits=bits_in_words(engine), gpu=str(contender.runner.details.get("provider")), compute_capability=capability,
        file_sha256=engine.manifest.files[entry.file].sha256, accuracy=accuracy, products=executed_products(report, kernels or ()),
        inspected=why, planned_kernels=_launched(report.kernels), kernels=None if kernels is None else _launched(kernels), times=times,
        cuda_graphs=str(contender.runner.details.get("cuda_graphs")), profiles=details.profiles,
    )  # fmt: skip


def _launched(kernels: Sequence[Kernel]) -> int:
    return sum(kernel.type not in BOOKKEEPING for kernel in kernels)


def _kernels(contender: Contender) -> tuple[Sequence[Kernel] | None, str | None]:
    """The loaded engine's kernels, or why they are not known."""
    if not isinstance(contender.runner, Inspected):
        return None, "this engine has no inspector"
    try:
        return contender.runner.kernels(), None
    except ArtifactError as error:
        return None, error.message


def proof_page(proof: Proof) -> str:
    """The proof as a page, in Markdown."""
    gpu = proof.engines[0]
    where = (
        f"Compute capability {gpu.compute_capability}, {proof.machine['system']}, {proof.settings['runs']} timed runs. Written by "
        "`dq-deploy prove`; the JSON beside it has everything."
    )
    columns = "| engine | bits | check | lowest SNR (PyTorch) | executed | as planned | kernels |"
    lines = [f"# {gpu.model} on {gpu.gpu}", "", where, "", columns, "|---|---|---|---|---|---|---:|"]
    lines += [_engine_row(engine) for engine in proof.engines]
    lines += [
        "",
        "| engine | batch | on the GPU: median | p90 | roofline | a call: median | CUDA graph |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    lines += [_time_row(engine, row) for engine in proof.engines for row in engine.times]
    changed = [(engine, product) for engine in proof.engines if engine.inspected is None
               for product in engine.products if not product.as_planned]  # fmt: skip
    if changed:
        lines += ["", "## Not as planned", "", "| engine | product | planned | executed | kernel |", "|---|---|---|---|---|"]
        lines += [f"| {e.engine} | `{p.node}` | {p.planned or '–'} | {p.executed or '–'} | `{p.kernel or '–'}` |" for e, p in changed]
    lines += ["", *(f"- {note}" for note in proof.notes)]
    return "\n".join(lines).rstrip() + "\n"


def _engine_row(engine: ProvenEngine) -> str:
    accuracy = engine.accuracy
    verdict = "float" if accuracy is None else "passed" if accuracy.passed else "**failed**"
    snr = "–"
    if accuracy is not None and accuracy.snr_db:
        worst = min(range(len(accuracy.snr_db)), key=accuracy.snr_db.__getitem__)
        reference = accuracy.reference_db[worst]
        snr = f"{accuracy.snr_db[worst]:.2f} dB" + ("" if reference is None else f" ({reference:.2f})")
    executed, planned = f"not known: {engine.inspected}", "–"
    if engine.inspected is None:
        executed = ", ".join(f"{count} {name.upper()}" for name, count in counted(engine.products).items())
        planned = f"{sum(product.as_planned for product in engine.products)} of {len(engine.products)}"
    kernels = f"{engine.planned_kernels} planned" if engine.kernels is None else f"{engine.kernels} ({engine.planned_kernels} planned)"
    return f"| {engine.engine} | {engine.bits or 'float'} | {verdict} | {snr} | {executed} | {planned} | {kernels} |"


def _time_row(engine: ProvenEngine, row: ProvenTime) -> str:
    shown = ("–" if value is None else f"{value:.4f} ms" for value in (row.device_median_ms, row.device_p90_ms, row.floor_ms))
    return f"| {engine.engine} | {row.batch} | {' | '.join(shown)} | {row.median_ms:.3f} ms | {engine.cuda_graphs} |"
