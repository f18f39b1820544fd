"""``dq-deploy check``: both parity tests, one verdict. It fails closed: nothing compared, NaN or a missing timestep is a failure."""

from __future__ import annotations

import math
from pathlib import Path

from pydantic import BaseModel

from ..artifacts import Artifact, open_artifact
from ..errors import AccuracyGateError, ArtifactError, EnvironmentProblem, UsageError
from ..exporters.attention import float_attention
from ..progress import Progress, silent
from ..quantization.checkpoint import Checkpoint, load_checkpoint
from .end_to_end import TimestepParity, end_to_end
from .local import MAX_CODE_SHARE, MAX_CODE_STEP, MAX_OUTPUT_ERROR, LayerParity, local_parity


class CheckResult(BaseModel):
    """The verdict and everything it rests on. Truthy when it passed."""

    bundle: str
    target: str
    dtype: str
    layers: list[LayerParity]
    timesteps: list[TimestepParity]
    failures: list[str]

    def __bool__(self) -> bool:
        return not self.failures

    @property
    def worst_layer(self) -> LayerParity | None:
        """The layer closest to, or farthest beyond, the local bounds; None when none was compared."""
        return max(self.layers, key=lambda row: row.severity, default=None)

    @property
    def worst_timestep(self) -> TimestepParity | None:
        """The timestep with the lowest SNR against the float model (NaN is lowest); None when none was compared."""
        return min(self.timesteps, key=lambda row: -math.inf if math.isnan(row.snr_bundle_db) else row.snr_bundle_db, default=None)

    def enforce(self) -> None:
        """Raise AccuracyGateError when the gate failed."""
        if self.failures:
            shown = "\n".join(f"  {line}" for line in self.failures[:8])
            more = f"\n  … and {len(self.failures) - 8} more" if len(self.failures) > 8 else ""
            raise AccuracyGateError(f"{self.bundle} does not compute what its checkpoint does:\n{shown}{more}")


def check(
    artifact: str | Path | Artifact, checkpoint: str | Path | Artifact, *, optimized: bool = True, progress: Progress = silent
) -> CheckResult:
    """Judge a bundle against its checkpoint in onnxruntime: layer by layer, and end to end at every calibrated timestep.

    ``optimized`` also runs the optimized session, which is reported and not judged. Raises UsageError, ArtifactError or EnvironmentProblem
    when the comparison cannot be made at all; a comparison that fails is a falsy result.
    """
    opened = artifact if isinstance(artifact, Artifact) else open_artifact(artifact, ("bundle", "engine"))
    if opened.manifest.kind == "engine":
        raise EnvironmentProblem(
            "a TensorRT engine can only be checked where it can run, and this version runs none",
            "check the bundle that it was built from: dq-deploy check BUNDLE --checkpoint CHECKPOINT",
        )
    loaded = load_checkpoint(checkpoint.path if isinstance(checkpoint, Artifact) else checkpoint)
    _same_family(opened, loaded)
    if opened.manifest.details["dtype"] == "bf16":
        raise EnvironmentProblem(
            f"{opened.path} is a bf16 bundle, and ONNX Runtime has no bfloat16 kernels on a CPU to check it with",
            "its integers and scales are those of the fp32 export of the same checkpoint: check that one, and lint this one (check --lint)",
        )
    if opened.manifest.details.get("attention") == "float":
        loaded = float_attention(loaded)
    reference = loaded.reference()
    layers = local_parity(opened, loaded, reference, progress=progress)
    timesteps = end_to_end(opened, loaded, reference, optimized=optimized, progress=progress)
    details = opened.manifest.details
    return CheckResult(
        bundle=str(opened.path), target=details["target"], dtype=details["dtype"], layers=layers, timesteps=timesteps,
        failures=_failures(layers, timesteps, loaded),
    )  # fmt: skip


def _same_family(bundle: Artifact, checkpoint: Checkpoint) -> None:
    if bundle.manifest.details["float"]:
        raise UsageError("this bundle is the float baseline: there is nothing quantized in it to check")
    parent = bundle.manifest.parent
    if parent is None or parent.manifest_sha256 != checkpoint.artifact.as_parent.manifest_sha256:
        raise ArtifactError(
            f"{bundle.path} was not exported from {checkpoint.artifact.path}", "export it again, or name the right checkpoint"
        )


def _failures(layers: list[LayerParity], timesteps: list[TimestepParity], checkpoint: Checkpoint) -> list[str]:
    failures = []
    for row in sorted(layers, key=lambda r: -r.severity):
        if row.passed:
            continue
        failures.append(
            f"layer {row.layer}, worst at timestep {row.worst_timestep:g}: codes differ on {row.code_share:.3%} by up to {row.code_step:g} "
            f"(allowed {MAX_CODE_SHARE:.2%}, {MAX_CODE_STEP}), output by {row.output_error:.1e} (allowed {MAX_OUTPUT_ERROR:.0e}); "
            f"{row.code_elements} codes and {row.output_elements} outputs compared"
        )
    failures += [
        f"timestep {step.timestep:g}: SNR {step.snr_bundle_db:.2f} dB, and the PyTorch forward has {step.snr_reference_db:.2f} dB "
        f"(allowed difference {step.allowed_db} dB)"
        for step in timesteps
        if not step.passed
    ]
    expected = checkpoint.artifact.manifest.timesteps
    missing = sorted(set(expected) - {row.timestep for row in timesteps})
    if missing or not expected:
        failures.append(f"timesteps not compared: {', '.join(f'{t:g}' for t in missing) or 'all'}")
    if not layers:
        failures.append("no layer was compared")
    return failures
