"""The verdict of a check: what it rests on, and the sentence for everything that fails."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, Field

from ..artifacts.final_error import FinalError
from ..errors import AccuracyGateError
from .bisect import Bisection
from .end_to_end import TimestepParity
from .local import MAX_CODE_STEP, LayerParity
from .regions import RegionParity
from .sizes import SizeParity


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
    them. Where sizes are free, all this is at one ``size`` (height x width), and ``sizes`` are the others.
    Of a schedule they are its members', each at the timesteps that it runs, and names begin with the member's folder.
    """

    bundle: str
    target: str
    dtype: str
    layers: list[LayerParity]
    timesteps: list[TimestepParity]
    engines: list[EngineParity] = Field(default_factory=list)
    regions: list[RegionParity] = Field(default_factory=list)
    size: str = ""
    sizes: list[SizeParity] = Field(default_factory=list)
    failures: list[str]
    bisection: Bisection | None = None
    final_error: FinalError | None = None
    clipped: dict[str, list[float]] = Field(default_factory=dict)

    def __bool__(self) -> bool:
        return not self.failures

    def __str__(self) -> str:
        if self.failures:
            return f"{self.bundle} fails the check: {'; '.join(self.failures[:3])}"
        worst = self.worst_timestep
        return f"{self.bundle} passes the check" + (f", worst timestep {worst.timestep:g}: {worst.snr_bundle_db:.1f} dB" if worst else "")

    @property
    def worst_layer(self) -> LayerParity | None:
        """The layer closest to, or farthest beyond, the local bounds; None when none was compared."""
        return max(self.layers, key=lambda row: row.severity, default=None)

    @property
    def shown_timesteps(self) -> list[TimestepParity]:
        """Those of the graph as it is written, or of the first engine where there is none: of an engine that is checked on its own."""
        return self.timesteps or next((engine.timesteps for engine in self.engines), [])

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


def failures_of(layers: Sequence[LayerParity], regions: Sequence[RegionParity], steps: Mapping[str, Sequence[TimestepParity]],
                timesteps: Sequence[float]) -> list[str]:  # fmt: skip
    """What fails, worst layers first; ``steps`` by engine ("": the bundle itself) must have a row for each of ``timesteps``."""
    empty = ["nothing was compared"] if not steps else ["no layer was compared"] if "" in steps and not layers else []
    return [*_layers(layers), *(line for at, rows in steps.items() for line in _steps(at, rows, timesteps)), *empty, *_regions(regions)]


def _layers(layers: Sequence[LayerParity]) -> Iterator[str]:
    for row in sorted(layers, key=lambda r: -r.severity):
        if not row.passed:
            yield (
                f"layer {row.layer}, worst at timestep {row.worst_timestep:g}: {row.code_mismatches} of {row.code_elements} codes differ "
                f"by up to {row.code_step:g} (allowed {row.allowed_mismatches}, {MAX_CODE_STEP}), output by {row.output_error:.1e} "
                f"(allowed {row.allowed_error:.0e}); {row.output_elements} outputs compared"
            )


def _steps(engine: str, rows: Sequence[TimestepParity], timesteps: Sequence[float]) -> Iterator[str]:
    at = f"{engine}, " if engine else ""
    yield from (f"{at}timestep {step.timestep:g}: {_why(step)}" for step in rows if not step.passed)
    missing = sorted(set(timesteps) - {row.timestep for row in rows})
    if missing or not timesteps:
        yield f"{at}timesteps not compared: {', '.join(f'{t:g}' for t in missing) or 'all'}"


def _regions(rows: Sequence[RegionParity]) -> Iterator[str]:
    for row in rows:
        if not row.passed:
            where = "the output" if row.value == "out_sample" else row.value
            missing = f"; the graph does not compute {row.node}" if row.node else ""
            yield f"float part before {where}, fed {row.inputs}: {row.error:.1e} times what rounding allows{missing}"


def _why(step: TimestepParity) -> str:
    if not step.alike:
        return (
            f"SNR {step.snr_bundle_db:.2f} dB, and the PyTorch forward has {step.snr_reference_db:.2f} dB "
            f"(allowed difference {step.allowed_db:.2f} dB over {step.samples} samples)"
        )
    return f"SNR {step.snr_bundle_db:.2f} dB, and {step.min_snr_db:g} dB are required"
