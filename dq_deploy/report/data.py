"""What a report shows: the page's one block of data, and what ``--format json`` prints. What was not measured is empty or None."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from ..artifacts.details import BlockLoss, FloatLayer, KeptState
from ..artifacts.final_error import FinalError
from ..artifacts.records import Record
from ..artifacts.scale_tables import ScaleTable
from ..engines.bench import BenchResult
from ..engines.layer_report import LayerReport, formats_in_words, undocumented
from ..errors import AccuracyGateError

SCHEMA_VERSION = 1


class Headline(Record):
    """A figure in large type. ``passed`` colours it; None: there is no verdict in it."""

    value: str
    label: str
    passed: bool | None = None


class Fact(Record):
    """A row of the summary: what was measured, and whether a check passed (None: there is no verdict in it)."""

    label: str
    value: str
    passed: bool | None = None


class DrawnRow(Record):
    """Pictures by one artefact, each a PNG as a ``data:`` address; ``bits`` of its weights and activations in words.

    ``consistency_db`` is of videos alone: PSNR of the differences between their frames. Without a float model nothing is compared.
    """

    artefact: str
    bits: str = ""
    engine: str
    quantized: list[str]
    psnr_db: list[float] | None = None
    consistency_db: list[float] | None = None

    @property
    def name(self) -> str:
        """Who drew it."""
        return f"{self.artefact} ({self.bits})" if self.bits else self.artefact


class Pictures(DrawnRow):
    """Pairs from the same seeds: ``expected`` is by the float model, None where there is none; ``others`` by weights of other widths."""

    seed: int
    steps: int
    expected: list[str] | None = None
    labels: list[int] | None = None
    prompts: list[str] | None = None
    others: list[DrawnRow] = Field(default_factory=list)

    @property
    def rows(self) -> list[DrawnRow]:
        """Those of every artefact that drew."""
        return [self, *self.others]


class Layer(Record):
    """A quantized layer. ``output_db`` [T]: SNR of its output against the float model's; None where that was not measured.

    ``format`` is the number format that it is planned to multiply in, where that is not what its bits say. ``precisions`` are what it runs
    in by engine, and ``reasons`` why that is not as planned.
    """

    name: str
    op: str
    macs: int
    weight_bits: int | None
    activation_bits: int
    format: str | None = None
    quantizers: list[str]
    output_db: list[float | None] | None = None
    precisions: dict[str, str] = Field(default_factory=dict)
    reasons: dict[str, str] = Field(default_factory=dict)


class SnrSeries(Record):
    """SNR in dB against the float model, one value for each timestep. ``role`` decides how it is drawn."""

    name: str
    timesteps: list[float]
    snr_db: list[float | None]
    role: Literal["before", "reference", "bundle"] = "bundle"

    @model_validator(mode="after")
    def _same_length(self) -> SnrSeries:
        if len(self.timesteps) != len(self.snr_db):
            raise ValueError(f"{self.name}: {len(self.timesteps)} timesteps and {len(self.snr_db)} values")
        return self


class CheckRow(Record):
    """The verdict of ``check`` on a bundle."""

    bundle: str
    target: str
    dtype: str
    passed: bool
    layers: int
    timesteps: int
    allowed_db: float
    largest_difference_db: float | None
    worst_layer: str | None
    failures: list[str]


class ScheduleRow(Record):
    """A schedule, step by step [T]: who runs it, the SNR of its output, and of the final sample if only it is quantized (None: not known).

    A step that is run in float costs the final sample nothing, and has no ``only_db``.
    """

    name: str
    timesteps: list[float]
    members: list[str]
    snr_db: list[float]
    only_db: list[float | None]


class DilationRow(Record):
    """A ``DilatedInput`` under the ``rule`` that was chosen, and the largest factor that its quantizer multiplies by itself.

    ``largest_s`` is 1 where the factors are ``folded_into`` others or where nothing is dilated.
    """

    quantizer: str
    rule: str
    unsaturated_share: float
    dilated_share: float
    range_ratio: float
    error_ratio: float
    largest_s: float
    folded_into: list[str]


class EngineRow(Record):
    """An engine's layer report in a line. ``statement`` says who chose the kernels, and that nothing was executed if so.

    ``float_weights``: bytes of weights of the float engines for the same device, by the type of their floats ("fp16", "fp32").
    """

    name: str
    bits: str = ""
    """In words, of most layers: W4A8."""
    statement: str
    kernels: int
    planned_int8: int
    as_planned: int
    planned_layers: int
    planned_formats: dict[str, int] = Field(default_factory=dict)
    """Number format → planned layers."""
    conv_by_precision: dict[str, int]
    gemm_by_precision: dict[str, int]
    weights_bytes: int
    file_bytes: int
    float_weights: dict[str, int] = Field(default_factory=dict)
    attentions: int = 0
    attentions_fused: int = 0
    undocumented: list[str] = Field(default_factory=list)
    """What is planned and the engine's vendor does not document, in sentences."""

    @property
    def ratios(self) -> dict[str, float]:
        """Bytes of weights over those of each float engine."""
        return {dtype: self.weights_bytes / size for dtype, size in self.float_weights.items() if size}

    @property
    def only_planned(self) -> bool:
        """Whether the kernels are a compiler's plan for a device that is not here."""
        return "not executed" in self.statement

    @property
    def planned(self) -> str:
        """How many planned layers run in their planned number format, and in which, and how many attentions are one kernel, in words."""
        layers = f"{self.as_planned} of {self.planned_layers} in {formats_in_words(self.planned_formats)}"
        return f"{layers}; {self.attentions_fused} of {self.attentions} attentions in one kernel" if self.attentions else layers

    @classmethod
    def from_report(cls, name: str, report: LayerReport, file_bytes: int, float_weights: Mapping[str, int],
                    instructions: Sequence[str] | None = None, bits: str = "") -> EngineRow:  # fmt: skip
        """With the size of the engine's file, the weights of the float engines to compare with, and ``bits`` in words.

        ``instructions`` of a CPU's engine.
        """
        summary = report.summary()
        fields = {field: summary[field] for field in cls.model_fields if field in summary}
        said = undocumented([report], instructions)
        return cls(name=name, bits=bits, file_bytes=file_bytes, float_weights=dict(float_weights), undocumented=said, **fields)


class ArtifactRow(Record):
    """An artefact that the report is about: a folder's name, what it is, and the hash that its children refer to it by."""

    name: str
    kind: str
    what: str
    is_float: bool
    bytes: int
    manifest_sha256: str
    tools: dict[str, str]


class ReportData(Record):
    """Everything on the page. ``commands`` are shown as they are typed, ``versions`` are name → version."""

    schema_version: int = SCHEMA_VERSION
    title: str = "dq-deploy report"
    subtitle: str = ""
    headlines: list[Headline] = Field(default_factory=list)
    summary: list[Fact] = Field(default_factory=list)
    pictures: Pictures | None = None
    timesteps: list[float] = Field(default_factory=list)
    layers: list[Layer] = Field(default_factory=list)
    float_layers: list[FloatLayer] = Field(default_factory=list)
    error_samples: int = 0
    """Network inputs behind each layer's figures."""
    activation_db: dict[str, list[float | None]] = Field(default_factory=dict)
    """By quantizer: SNR [T] of its codes against what it read."""
    clipped: dict[str, list[float]] = Field(default_factory=dict)
    """By quantizer: the share of held-out values [T] that are outside of what its codes can say; one that clips nothing is not there."""
    clipped_known: bool = False
    """Whether that was measured when the checkpoint was made."""
    tables: dict[str, ScaleTable] = Field(default_factory=dict)
    final_error: FinalError | None = None
    snr: list[SnrSeries] = Field(default_factory=list)
    checks: list[CheckRow] = Field(default_factory=list)
    schedules: list[ScheduleRow] = Field(default_factory=list)
    distillation: list[BlockLoss] = Field(default_factory=list)
    kept_state: KeptState | None = None
    dilation: list[DilationRow] = Field(default_factory=list)
    dilation_rules: dict[str, float] = Field(default_factory=dict)
    """Mean SNR in dB of the network under each rule that was tried, before any training."""
    latency: BenchResult | None = None
    engines: list[EngineRow] = Field(default_factory=list)
    artifacts: list[ArtifactRow] = Field(default_factory=list)
    options: dict[str, Any] = Field(default_factory=dict)
    """Every option of the quantization, as its manifest has it."""
    notes: list[str] = Field(default_factory=list)
    commands: list[str] = Field(default_factory=list)
    versions: dict[str, str] = Field(default_factory=dict)

    def enforce(self) -> None:
        """Raise AccuracyGateError when a bundle does not compute what its checkpoint does."""
        failed = [row for row in self.checks if not row.passed]
        if failed:
            raise AccuracyGateError("; ".join(f"{row.bundle}: {row.failures[0]}" for row in failed))
