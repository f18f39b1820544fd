"""``dq-deploy check``: both parity tests, one verdict. It fails closed: nothing compared, NaN or a missing timestep is a failure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..artifacts import Artifact, is_kind, open_artifact
from ..artifacts.details import BundleDetails, CheckpointDetails, EngineDetails, GraphDetails, RunnableDetails, ScheduleDetails
from ..artifacts.lineage import origin_of
from ..engines.choice import Engine, engines_of, runner_on
from ..engines.engine_files import largest_batch
from ..engines.onnxruntime.runner import OnnxRuntimeRunner
from ..engines.runner import Runner
from ..errors import ArtifactError, UsageError
from ..progress import Progress, silent
from ..quantization.calibration.trajectories import Trajectories
from ..quantization.checkpoint import Checkpoint, load_checkpoint
from ..quantization.running.ambient import default_torch
from .bisect import bisect as find_where
from .check_schedule import check_schedule
from .comparing import allowed_db, as_exported, refuse_bf16
from .end_to_end import MAX_SNR_DIFFERENCE_DB, end_to_end
from .local import local_parity
from .regions import region_parity
from .sizes import SizeParity, expected_timesteps, no_size, sizes_within
from .table_rows import table_row_failures
from .verdict import CheckResult, EngineParity, failures_of

__all__ = ["CheckResult", "check"]

CheckpointPath = str | Path | Artifact[CheckpointDetails]


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
    loaded = [load_checkpoint(one.path if isinstance(one, Artifact) else one) for one in given]
    if is_kind(opened, ScheduleDetails):
        return check_schedule(
            opened, loaded, engines=engines, optimized=optimized, min_snr=min_snr, threads=threads, progress=progress
        )  # fmt: skip
    if len(loaded) != 1:
        names = ", ".join(str(one.artifact.path) for one in loaded) or "none"
        raise UsageError(f"a {opened.manifest.kind} is checked against one checkpoint, and given: {names}", "only a schedule takes several")
    assert is_kind(opened, GraphDetails)
    return _check_graph(opened, loaded[0], engines, optimized, min_snr, bisect, threads, progress)


def _check_graph(opened: Artifact[GraphDetails], checkpoint: Checkpoint, engines: Sequence[Engine], optimized: bool, min_snr: float | None,
                 bisect: bool, threads: int | None, progress: Progress) -> CheckResult:  # fmt: skip
    _same_family(opened, checkpoint)
    details = opened.details
    checkpoint = as_exported(checkpoint, details)
    within = list(sizes_within(opened, checkpoint))
    if not within:
        raise no_size(opened, checkpoint)
    (size, _, reference), *others = within
    bound = MAX_SNR_DIFFERENCE_DB[details.dtype]
    runners: dict[str, Runner] = {name: runner_on(opened, name, threads=threads) for name in _engines(opened, engines)}
    allowed = {name: allowed_db(runner, details.dtype) for name, runner in runners.items()}
    layers, tables, regions = [], [], []
    if is_kind(opened, BundleDetails):
        tables = table_row_failures(opened, checkpoint)
        layers = local_parity(opened, checkpoint, reference, progress=progress)
        regions = region_parity(opened, checkpoint, reference)
        runners[_AS_WRITTEN] = OnnxRuntimeRunner(opened, optimized=False)
        if optimized:
            runners[_OPTIMIZED] = OnnxRuntimeRunner(opened)
    bounds = {_AS_WRITTEN: bound, _OPTIMIZED: bound, **allowed}
    rows = end_to_end(runners, checkpoint, reference, bounds, largest=largest_batch(opened), progress=progress)
    for row in (row for run in rows.values() for row in run):
        row.min_snr_db = min_snr
    timesteps = rows.get(_AS_WRITTEN, [])
    for row, quick in zip(timesteps, rows.get(_OPTIMIZED, []), strict=False):
        row.snr_optimized_db = quick.snr_bundle_db
    sizes = [
        _at_size(opened, checkpoint, other, runners, bounds, min_snr, progress)
        for other in others
    ]  # fmt: skip
    compared = [EngineParity(engine=name, details=runners[name].details, timesteps=rows[name]) for name in allowed]
    steps = {name: rows[name] for name in allowed} | ({"": timesteps} if is_kind(opened, BundleDetails) else {})
    result = CheckResult(
        bundle=str(opened.path), target=details.target, dtype=details.dtype, layers=layers, timesteps=timesteps, engines=compared,
        regions=regions, size=size, sizes=sizes,
        failures=[
            *failures_of(layers, regions, steps, expected_timesteps(checkpoint, size, reference)), *tables,
            *(f"{at.size}: {line}" for at in sizes for line in at.failures),
        ],
        final_error=checkpoint.details.final_error, clipped=checkpoint.details.clipped or {},
    )  # fmt: skip
    if bisect and is_kind(opened, BundleDetails):
        result.bisection = find_where(opened, checkpoint, result, min_snr=min_snr, threads=threads, progress=progress)
    return result


def _at_size(opened: Artifact[GraphDetails], checkpoint: Checkpoint, size: tuple[str, bool, Trajectories], runners: Mapping[str, Runner],
             bounds: Mapping[str, float], min_snr: float | None, progress: Progress) -> SizeParity:  # fmt: skip
    """Both parity tests at a further size."""
    name, calibrated, reference = size
    rows = end_to_end(runners, checkpoint, reference, bounds, largest=largest_batch(opened), progress=progress)
    for row in (row for run in rows.values() for row in run):
        row.min_snr_db = min_snr
    judged = {name: found for name, found in rows.items() if name not in (_AS_WRITTEN, _OPTIMIZED)}
    judged |= {"": rows[_AS_WRITTEN]} if _AS_WRITTEN in rows else {}
    layers = local_parity(opened, checkpoint, reference, progress=progress) if is_kind(opened, BundleDetails) else []
    return SizeParity(
        size=name, calibrated=calibrated, timesteps=judged, layers=len(layers),
        failures=failures_of(layers, [], judged, expected_timesteps(checkpoint, name, reference)),
    )  # fmt: skip


# Names of the two sessions that judge a bundle's graph.
_AS_WRITTEN, _OPTIMIZED = "as written", "optimized"


def _no_bisection(artifact: Artifact[RunnableDetails]) -> UsageError:
    if is_kind(artifact, ScheduleDetails):
        return UsageError(
            f"{artifact.path} is a schedule: a bisection cuts one bundle's graph", f"check a member, such as {artifact.path}/1"
        )
    return UsageError(
        f"{artifact.path} is an engine, whose layers are fused: a bisection cuts a bundle's graph",
        "check the bundle that it was built from: --bisect --engine openvino (or openvino-int8)",
    )


def _engines(artifact: Artifact[GraphDetails], asked: Sequence[Engine]) -> Sequence[Engine]:
    """Those to compare beside the graph itself. Raises UsageError for one that an engine was not built for, EnvironmentProblem in bf16."""
    if is_kind(artifact, EngineDetails):
        return engines_of(artifact, asked or None)
    refuse_bf16(artifact)
    return asked


def _same_family(artifact: Artifact[GraphDetails], checkpoint: Checkpoint) -> None:
    if artifact.details.float:
        raise UsageError(f"this {artifact.manifest.kind} is the float baseline: it has nothing quantized to check")
    if origin_of(artifact) != checkpoint.artifact.as_parent.manifest_sha256:
        raise ArtifactError(
            f"{artifact.path} was not exported from {checkpoint.artifact.path}", "export it again, or name the right checkpoint"
        )
