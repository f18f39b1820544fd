"""``dq-deploy check``: both parity tests, one verdict. It fails closed: nothing compared, NaN or a missing timestep is a failure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from ..artifacts import Artifact, is_kind, open_artifact
from ..artifacts.details import BundleDetails, CheckpointDetails, EngineDetails, GraphDetails
from ..artifacts.final_error import FinalError
from ..engines.choice import Engine, engines_of, runner_on
from ..engines.onnxruntime.runner import OnnxRuntimeRunner
from ..engines.runner import Runner
from ..errors import AccuracyGateError, ArtifactError, EnvironmentProblem, UsageError
from ..exporters.attention import float_attention
from ..exporters.convolutions import float_convolutions
from ..progress import Progress, silent
from ..quantization.checkpoint import Checkpoint, load_checkpoint
from ..quantization.running.ambient import default_torch
from .bisect import Bisection
from .bisect import bisect as find_where
from .end_to_end import MAX_SNR_DIFFERENCE_DB, TimestepParity, end_to_end
from .local import MAX_CODE_STEP, LayerParity, local_parity
from .regions import RegionParity, region_parity
from .table_rows import table_row_failures


class EngineParity(BaseModel):
    """What runs the model for its users, compared end to end; ``details`` has its version, provider, precision and threads."""

    engine: str
    details: dict[str, Any]
    timesteps: list[TimestepParity]


class CheckResult(BaseModel):
    """The verdict and everything it rests on. Truthy when it passed.

    ``layers`` and ``timesteps`` are a bundle's, in onnxruntime as the graph is written; they are empty for a built engine, whose layers are
    fused. ``engines`` are those that were compared besides, or the engine itself. ``final_error`` and ``clipped`` (by quantizer, the share
    of held-out values at each timestep that its codes cannot say) are the checkpoint's, as measured when it was made; nothing is judged by
    them.
    """

    bundle: str
    target: str
    dtype: str
    layers: list[LayerParity]
    timesteps: list[TimestepParity]
    engines: list[EngineParity] = Field(default_factory=list)
    regions: list[RegionParity] = Field(default_factory=list)
    failures: list[str]
    bisection: Bisection | None = None
    final_error: FinalError | None = None
    clipped: dict[str, list[float]] = Field(default_factory=dict)

    def __bool__(self) -> bool:
        return not self.failures

    @property
    def worst_layer(self) -> LayerParity | None:
        """The layer closest to, or farthest beyond, the local bounds; None when none was compared."""
        return max(self.layers, key=lambda row: row.severity, default=None)

    @property
    def worst_timestep(self) -> TimestepParity | None:
        """The timestep with the lowest SNR against the float model (NaN is lowest); None when none was compared."""
        compared = self.timesteps or [row for engine in self.engines for row in engine.timesteps]
        return min(compared, key=lambda row: -math.inf if math.isnan(row.snr_bundle_db) else row.snr_bundle_db, default=None)

    def enforce(self) -> None:
        """Raise AccuracyGateError when the gate failed."""
        if self.failures:
            shown = "\n".join(f"  {line}" for line in self.failures[:8])
            more = f"\n  … and {len(self.failures) - 8} more" if len(self.failures) > 8 else ""
            raise AccuracyGateError(f"{self.bundle} fails the check:\n{shown}{more}")


@default_torch()
def check(
    artifact: str | Path | Artifact[GraphDetails],
    checkpoint: str | Path | Artifact[CheckpointDetails],
    *,
    engines: Sequence[Engine] = (),
    optimized: bool = True,
    min_snr: float | None = None,
    bisect: bool = False,
    threads: int | None = None,
    progress: Progress = silent,
) -> CheckResult:
    """Judge a bundle or an engine against its checkpoint.

    A bundle in onnxruntime: layer by layer, and end to end at every calibrated timestep; ``optimized`` also runs the optimized session,
    which is reported and not judged. Then end to end on each of ``engines``, judged by the same bounds. An engine end to end on what it was
    built for. ``min_snr`` in dB fails every timestep that is farther from the float model than that.

    ``bisect``, of a bundle: the first layer and timestep where a failed comparison went wrong, and which layers make the checkpoint's own
    error at its worst timestep.

    Raises UsageError, ArtifactError or EnvironmentProblem when the comparison cannot be made at all (an engine that cannot run here); a
    comparison that fails is a falsy result.
    """
    opened = artifact if isinstance(artifact, Artifact) else open_artifact(artifact, ("bundle", "engine"))
    loaded = load_checkpoint(checkpoint.path if isinstance(checkpoint, Artifact) else checkpoint)
    _same_family(opened, loaded)
    if bisect and opened.manifest.kind == "engine":
        raise UsageError(f"{opened.path} is an engine, whose layers are fused: a bisection cuts a bundle's graph", _HOW_TO_BISECT)
    details = opened.details
    loaded = _as_exported(loaded, details)
    reference, bound = loaded.reference(), MAX_SNR_DIFFERENCE_DB[details.dtype]
    runners: dict[str, Runner] = {name: runner_on(opened, name, threads=threads) for name in _engines(opened, engines)}
    allowed = {name: _allowed(runner, bound) for name, runner in runners.items()}
    layers, tables, regions = [], [], []
    if is_kind(opened, BundleDetails):
        tables = table_row_failures(opened, loaded)
        layers = local_parity(opened, loaded, reference, progress=progress)
        regions = region_parity(opened, loaded, reference)
        runners[_AS_WRITTEN] = OnnxRuntimeRunner(opened, optimized=False)
        if optimized:
            runners[_OPTIMIZED] = OnnxRuntimeRunner(opened)
    largest = details.batch[2] if isinstance(details, EngineDetails) else None
    rows = end_to_end(runners, loaded, reference, {_AS_WRITTEN: bound, _OPTIMIZED: bound, **allowed}, largest=largest, progress=progress)
    for row in (row for run in rows.values() for row in run):
        row.min_snr_db = min_snr
    timesteps = rows.get(_AS_WRITTEN, [])
    for row, quick in zip(timesteps, rows.get(_OPTIMIZED, []), strict=False):
        row.snr_optimized_db = quick.snr_bundle_db
    compared = [EngineParity(engine=name, details=runners[name].details, timesteps=rows[name]) for name in allowed]
    result = CheckResult(
        bundle=str(opened.path), target=details.target, dtype=details.dtype, layers=layers, timesteps=timesteps, engines=compared,
        regions=regions, failures=[*_failures(opened, layers, timesteps, compared, loaded), *_regions(regions), *tables],
        final_error=loaded.details.final_error, clipped=loaded.details.clipped or {},
    )  # fmt: skip
    if bisect and is_kind(opened, BundleDetails):
        result.bisection = find_where(opened, loaded, result, min_snr=min_snr, threads=threads, progress=progress)
    return result


# Names of the two sessions that judge a bundle's graph.
_AS_WRITTEN, _OPTIMIZED = "as written", "optimized"
_HOW_TO_BISECT = "check the bundle that it was built from: --bisect --engine openvino (or openvino-int8)"


def _as_exported(checkpoint: Checkpoint, details: GraphDetails) -> Checkpoint:
    """The checkpoint's forward as the artefact has it: without the quantizers that its export left out."""
    if details.attention == "float":
        checkpoint = float_attention(checkpoint)
    elif isinstance(details, EngineDetails) and details.float_attention:
        checkpoint = float_attention(checkpoint, details.float_attention)
    names = details.float_convolutions
    return float_convolutions(checkpoint, names) if names else checkpoint


def _allowed(runner: Runner, bound: float) -> float:
    """Allowed difference in dB of SNR, ``bound`` by the artefact's type: OpenVINO's hint may have what is not INT8 computed in bf16."""
    return bound if runner.details.get("precision", "f32") == "f32" else max(bound, MAX_SNR_DIFFERENCE_DB["bf16"])


def _engines(artifact: Artifact[GraphDetails], asked: Sequence[Engine]) -> Sequence[Engine]:
    """Those to compare beside the graph itself. Raises UsageError for one that an engine was not built for, EnvironmentProblem in bf16."""
    if is_kind(artifact, EngineDetails):
        return engines_of(artifact, asked or None)
    if artifact.details.dtype == "bf16":
        raise EnvironmentProblem(
            f"{artifact.path} is a bf16 bundle, and ONNX Runtime has no bfloat16 kernels on a CPU to check it with",
            "its integers and scales are those of the fp32 export of the same checkpoint: check that one, and lint this one (check --lint)",
        )
    return asked


def _same_family(artifact: Artifact[GraphDetails], checkpoint: Checkpoint) -> None:
    manifest, origin = artifact.manifest, checkpoint.artifact.as_parent.manifest_sha256
    if artifact.details.float:
        raise UsageError(f"this {manifest.kind} is the float baseline: it has nothing quantized to check")
    exported_from = manifest.parent.manifest_sha256 if manifest.parent else None
    if isinstance(artifact.details, EngineDetails):
        exported_from = artifact.details.checkpoint_sha256
    if exported_from != origin:
        raise ArtifactError(
            f"{artifact.path} was not exported from {checkpoint.artifact.path}", "export it again, or name the right checkpoint"
        )


def _failures(artifact: Artifact, layers: list[LayerParity], timesteps: list[TimestepParity], engines: list[EngineParity],
              checkpoint: Checkpoint) -> list[str]:  # fmt: skip
    failures = []
    for row in sorted(layers, key=lambda r: -r.severity):
        if row.passed:
            continue
        failures.append(
            f"layer {row.layer}, worst at timestep {row.worst_timestep:g}: {row.code_mismatches} of {row.code_elements} codes differ by up "
            f"to {row.code_step:g} (allowed {row.allowed_mismatches}, {MAX_CODE_STEP}), output by {row.output_error:.1e} (allowed "
            f"{row.allowed_error:.0e}); {row.output_elements} outputs compared"
        )
    compared = {"": timesteps} if artifact.manifest.kind == "bundle" else {}
    for at, rows in (compared | {f"{engine.engine}, ": engine.timesteps for engine in engines}).items():
        failures += [f"{at}timestep {step.timestep:g}: {_why(step)}" for step in rows if not step.passed]
        expected = checkpoint.artifact.manifest.timesteps
        missing = sorted(set(expected) - {row.timestep for row in rows})
        if missing or not expected:
            failures.append(f"{at}timesteps not compared: {', '.join(f'{t:g}' for t in missing) or 'all'}")
    if compared and not layers:
        failures.append("no layer was compared")
    if not compared and not engines:
        failures.append("nothing was compared")
    return failures


def _regions(rows: list[RegionParity]) -> list[str]:
    failures = []
    for row in rows:
        if row.passed:
            continue
        where = "the output" if row.value == "out_sample" else row.value
        missing = f"; the graph does not compute {row.node}" if row.node else ""
        failures.append(f"float part before {where}, fed {row.inputs}: {row.error:.1e} times what rounding allows{missing}")
    return failures


def _why(step: TimestepParity) -> str:
    if not step.alike:
        return (
            f"SNR {step.snr_bundle_db:.2f} dB, and the PyTorch forward has {step.snr_reference_db:.2f} dB "
            f"(allowed difference {step.allowed_db:.2f} dB over {step.samples} samples)"
        )
    return f"SNR {step.snr_bundle_db:.2f} dB, and {step.min_snr_db:g} dB are required"
