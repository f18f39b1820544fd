"""``dq-deploy check``: both parity tests, one verdict. It fails closed: nothing compared, NaN or a missing timestep is a failure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..artifacts import Artifact, is_kind, open_artifact
from ..artifacts.details import BundleDetails, CheckpointDetails, EngineDetails, RunnableDetails, ScheduleDetails
from ..engines.loading.choice import Engine, engines_of, make_runner, runner_on, runtime_name
from ..engines.loading.engine_files import largest_batch
from ..engines.running.runner import GraphRunner
from ..errors import UsageError
from ..progress import Progress, silent
from ..quantization.calibration.trajectories import Trajectories
from ..quantization.checkpoint import load_checkpoint
from ..quantization.running.ambient import default_torch
from .bisect import bisect as find_where
from .comparing import allowed_db, computed_in, refuse_bf16
from .end_to_end import FLOAT_SNR_DB, TimestepParity, end_to_end, float_end_to_end
from .local import LayerParity, local_parity
from .parts import Part, Size, clipped_by, final_error_of, parts_of, sizes_of, some_checkpoint
from .regions import RegionParity, region_parity
from .sizes import SizeParity
from .table_rows import table_row_failures
from .verdict import CheckResult, EngineParity, failures_of

__all__ = ["CheckResult", "check"]

CheckpointPath = str | Path | Artifact[CheckpointDetails]
Rows = dict[str, list[TimestepParity]]
"""By runner, a row for each timestep."""
_AS_WRITTEN, _OPTIMIZED = "as written", "optimized"
"""The two sessions that judge a bundle's graph."""


@default_torch()
def check(
    artifact: str | Path | Artifact[RunnableDetails],
    checkpoint: CheckpointPath | Sequence[CheckpointPath],
    *,
    engines: Sequence[Engine] = (),
    optimized: bool = True,
    min_snr: float | None = None,
    bisect: bool = False,
    threads: int | None = None,
    progress: Progress = silent,
) -> CheckResult:
    """Judge a bundle, an engine or a schedule against its checkpoint, or each quantized member's of a schedule.

    At every size that the checkpoint was calibrated at, and one between, as far as an engine takes them.

    A bundle in onnxruntime: layer by layer, and end to end at every calibrated timestep; ``optimized`` also runs the optimized session,
    which is reported and not judged. Then end to end on each of ``engines``, judged by the same bounds. An engine end to end on what it was
    built for. A schedule end to end as it takes turns, each timestep against the checkpoint of the member that runs it, and its bundles
    layer by layer. ``min_snr`` in dB fails every timestep that is farther from the float model than that.

    ``bisect``, of a bundle: the first layer and timestep where a failed comparison went wrong, and which layers make the checkpoint's own
    error at its worst timestep.

    Raises UsageError, ArtifactError or EnvironmentProblem when the comparison cannot be made at all (an engine that cannot run here); a
    comparison that fails is a falsy result.
    """
    opened = artifact if isinstance(artifact, Artifact) else open_artifact(artifact, ("bundle", "engine", "schedule"))
    given = [checkpoint] if isinstance(checkpoint, str | Path | Artifact) else list(checkpoint)
    if bisect and not is_kind(opened, BundleDetails):
        raise _no_bisection(opened)
    parts = parts_of(opened, [load_checkpoint(one.path if isinstance(one, Artifact) else one) for one in given])
    first, *others = sizes_of(opened, parts)
    runners = _runners(opened, engines, optimized=optimized, threads=threads)
    layers, regions, failures = _layer_by_layer(parts, first, progress)
    rows = _step_by_step(parts, runners, first, min_snr, progress)
    judged = _judged(rows)
    for row, quick in zip(judged.get("", []), rows.get(_OPTIMIZED, []), strict=False):
        row.snr_optimized_db = quick.snr_bundle_db
    sizes = [_at_size(parts, runners, size, min_snr, progress) for size in others]
    result = CheckResult(
        bundle=str(opened.path),
        target="+".join(dict.fromkeys(part.graph.details.target for part in parts)),
        dtype="+".join(dict.fromkeys(part.graph.details.dtype for part in parts)),
        layers=layers,
        timesteps=judged.get("", []),
        engines=[EngineParity(engine=name, details=runners[name].details, timesteps=found) for name, found in judged.items() if name],
        regions=regions,
        size=first.name,
        sizes=sizes,
        failures=[
            *failures_of(layers, regions, judged, first.timesteps), *failures,
            *(f"{at.size}: {line}" for at in sizes for line in at.failures),
        ],
        final_error=final_error_of(parts),
        clipped=clipped_by(parts, opened.manifest.timesteps),
    )  # fmt: skip
    if bisect and is_kind(opened, BundleDetails) and (exported := parts[0].exported):
        result.bisection = find_where(opened, exported, result, min_snr=min_snr, threads=threads, progress=progress)
    return result


def _no_bisection(artifact: Artifact[RunnableDetails]) -> UsageError:
    if is_kind(artifact, ScheduleDetails):
        return UsageError(
            f"{artifact.path} is a schedule: a bisection cuts one bundle's graph", f"check a member, such as {artifact.path}/1"
        )
    return UsageError(
        f"{artifact.path} is an engine, whose layers are fused: a bisection cuts a bundle's graph",
        "check the bundle that it was built from: --bisect --engine openvino (or openvino-int8)",
    )


def _runners(artifact: Artifact[RunnableDetails], engines: Sequence[Engine], *, optimized: bool,
             threads: int | None) -> dict[str, GraphRunner]:  # fmt: skip
    """What was asked for, and of bundles the graph as it is written; of a schedule with built engines what ``load`` takes.

    Raises UsageError for an engine that another was built for, and EnvironmentProblem for a bundle in bf16.
    """
    graphs: list[Artifact[Any]] = [*artifact.members] or [artifact]
    bundles = all(is_kind(graph, BundleDetails) for graph in graphs)
    for graph in graphs if bundles else []:
        refuse_bf16(graph)
    asked = engines_of(artifact, engines or None) if is_kind(artifact, EngineDetails) else engines
    found = {name: runner_on(artifact, name, threads=threads) for name in asked}
    if bundles:
        found[_AS_WRITTEN] = make_runner(artifact, runtime="onnxruntime", optimized=False)
        found |= {_OPTIMIZED: make_runner(artifact, runtime="onnxruntime")} if optimized else {}
    elif not found:
        found[runtime_name(artifact)] = make_runner(artifact, runtime="auto", **({} if threads is None else {"threads": threads}))
    return found


def _layer_by_layer(parts: Sequence[Part], size: Size, progress: Progress) -> tuple[list[LayerParity], list[RegionParity], list[str]]:
    """Layers and float parts of every bundle, named as the member's, and what else fails in its graph."""
    layers, regions, failures = [], [], []
    for part, samples in zip(parts, size.samples, strict=True):
        if not part.exported or not is_kind(part.graph, BundleDetails):
            continue
        whose = f"member {part.label}, " if part.label else ""
        tables = [f"{whose}{line}" for line in table_row_failures(part.graph, part.exported)]
        found = _layers(part, samples, progress)
        layers += found
        for region in region_parity(part.graph, part.exported, samples):
            region.value = f"{part.prefix}{region.value}"
            regions.append(region)
        failures += [f"no layer of member {part.label} was compared"] if part.label and not found else []
        failures += tables
    return layers, regions, failures


def _layers(part: Part, samples: Trajectories, progress: Progress) -> list[LayerParity]:
    """Layers of a bundle at the timesteps that it runs; none of an engine, whose layers are fused."""
    if not part.exported or not is_kind(part.graph, BundleDetails) or not len(samples.timesteps):
        return []
    layers = local_parity(part.graph, part.exported, samples, progress=progress)
    for layer in layers:
        layer.layer = f"{part.prefix}{layer.layer}"
    return layers


def _step_by_step(parts: Sequence[Part], runners: Mapping[str, GraphRunner], size: Size, min_snr: float | None, progress: Progress) -> Rows:
    """Every calibrated timestep, ascending, through the runners of the whole artefact.

    What a float member runs is compared with the float model, and must be within what a float graph's rounding leaves.
    """
    rows: Rows = {name: [] for name in runners}
    for part, samples in zip(parts, size.samples, strict=True):
        if not len(samples.timesteps):  # at a further size its turn may be over before it begins
            continue
        own = {name: part.runner(runner) for name, runner in runners.items()}
        dtype, largest = part.graph.details.dtype, largest_batch(part.graph)
        if part.exported is None:
            required = {name: FLOAT_SNR_DB[computed_in(runner, dtype)] for name, runner in own.items()}
            found = float_end_to_end(runners, some_checkpoint(parts), samples, required, largest=largest, progress=progress)
        else:
            allowed = {name: allowed_db(runner, dtype) for name, runner in own.items()}
            found = end_to_end(runners, part.exported, samples, allowed, largest=largest, progress=progress)
        for name, compared in found.items():
            for row in compared:
                row.member = part.label
                row.min_snr_db = max((bound for bound in (row.min_snr_db, min_snr) if bound is not None), default=None)
            rows[name] += compared
    return {name: sorted(found, key=lambda row: row.timestep) for name, found in rows.items()}


def _judged(rows: Rows) -> Rows:
    """Those that decide: by engine, and under "" those of a bundle's graph as it is written."""
    engines = {name: found for name, found in rows.items() if name not in (_AS_WRITTEN, _OPTIMIZED)}
    return engines | ({"": rows[_AS_WRITTEN]} if _AS_WRITTEN in rows else {})


def _at_size(parts: Sequence[Part], runners: Mapping[str, GraphRunner], size: Size, min_snr: float | None,
             progress: Progress) -> SizeParity:  # fmt: skip
    """Both parity tests at a further size."""
    judged = _judged(_step_by_step(parts, runners, size, min_snr, progress))
    layers = [layer for part, samples in zip(parts, size.samples, strict=True) for layer in _layers(part, samples, progress)]
    return SizeParity(
        size=size.name, calibrated=size.calibrated, timesteps=judged, layers=len(layers),
        failures=failures_of(layers, [], judged, size.timesteps),
    )  # fmt: skip
