"""What a report shows. Every section is optional: what is not given is not shown."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..artifacts.scale_tables import ScaleTable
from ..engines.bench import BenchResult

__all__ = [
    "BlockLoss",
    "DilationRow",
    "EngineRow",
    "Fact",
    "ReportData",
    "ScaleTable",
    "SnrSeries",
]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Fact(_Part):
    """A row of the summary: what was measured, what was wanted, and whether it was reached (None: nothing was asked)."""

    label: str
    value: str
    wanted: str = ""
    passed: bool | None = None


class SnrSeries(_Part):
    """SNR in dB against the float model, one value for each timestep. ``role`` decides how it is drawn."""

    name: str
    timesteps: list[float]
    snr_db: list[float]
    role: Literal["before", "reference", "bundle"] = "bundle"

    @model_validator(mode="after")
    def _same_length(self) -> SnrSeries:
        if len(self.timesteps) != len(self.snr_db):
            raise ValueError(f"{self.name}: {len(self.timesteps)} timesteps and {len(self.snr_db)} values")
        return self


class BlockLoss(_Part):
    """Held-out distillation loss of a block before and after its training."""

    block: str
    before: float
    after: float
    iterations: int


class DilationRow(_Part):
    """What dilation did to a quantizer's input: ``range_ratio`` is its dilated range over the plain one."""

    quantizer: str
    rule: str
    unsaturated_share: float
    range_ratio: float


class EngineRow(_Part):
    """An engine's layer report in a line."""

    name: str
    statement: str
    kernels: int
    planned_int8: int
    planned_layers: int
    conv_by_precision: dict[str, int]
    gemm_by_precision: dict[str, int]
    weights_bytes: int
    float_weights_bytes: int | None = None

    @classmethod
    def from_summary(cls, summary: Mapping[str, Any], float_weights_bytes: int | None = None) -> EngineRow:
        """From ``LayerReport.summary()``, with the weights of the float engine to compare with."""
        capability = summary["compute_capability"]
        return cls(
            name=f"{summary['backend']} {'cpu' if capability is None else 'sm_' + capability.replace('.', '')}",
            float_weights_bytes=float_weights_bytes,
            **{field: summary[field] for field in cls.model_fields if field in summary},
        )


class ReportData(_Part):
    """Everything on the page. ``grid`` is a PNG; ``commands`` are shown as they are to be typed; ``versions`` are name → version."""

    title: str = "dq-deploy report"
    subtitle: str = ""
    summary: list[Fact] = Field(default_factory=list)
    grid: Path | None = None
    grid_caption: str = ""
    snr: list[SnrSeries] = Field(default_factory=list)
    tables: dict[str, ScaleTable] = Field(default_factory=dict)
    distillation: list[BlockLoss] = Field(default_factory=list)
    dilation: list[DilationRow] = Field(default_factory=list)
    latency: BenchResult | None = None
    engines: list[EngineRow] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
    commands: list[str] = Field(default_factory=list)
    versions: dict[str, str] = Field(default_factory=dict)
