"""A layer report beside another, usually the float build's: what quantization changed in precision, kernels and bytes.

Layers are matched by name. A quantized graph may run one float layer as two halves (``conv1#h`` and ``conv1#skip``), which are both
compared with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...artifacts.records import Record
from ...errors import UsageError
from . import Contraction, LayerReport, ReportedAttention, kernel_rows


class ComparedLayer(Record):
    """A convolution or matrix product in both builds; None where a build has it not. ``macs``, per sample, are known of planned layers."""

    name: str
    op: str
    macs: int | None
    precision: str | None
    baseline_precision: str | None
    kernel: str | None
    reason: str | None
    planned_format: str | None = None


class BuildTotals(Record):
    """One build in figures; the dictionaries count by precision and by kernel type."""

    backend: str
    version: str
    compute_capability: str | None
    statement: str
    weights_bytes: int
    kernels: int
    kernels_by_type: dict[str, int]
    conv_by_precision: dict[str, int]
    gemm_by_precision: dict[str, int]
    attentions: int = 0
    attentions_fused: int = 0
    activation_bytes: int | None = None


class LayerComparison(Record):
    """Every layer, those in float or not as planned first, and both builds' totals (``baseline`` None: nothing to compare with).

    ``not_fused`` are the attentions that are not one kernel, of an engine that has one for them.
    """

    layers: tuple[ComparedLayer, ...]
    not_fused: tuple[ReportedAttention, ...] = ()
    totals: BuildTotals
    baseline: BuildTotals | None

    @property
    def weights_ratio(self) -> float | None:
        """Bytes of weights over the baseline's."""
        return self.totals.weights_bytes / self.baseline.weights_bytes if self.baseline and self.baseline.weights_bytes else None

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {**self.model_dump(), "weights_ratio": self.weights_ratio}


def compare(reports: Sequence[LayerReport], baselines: Sequence[LayerReport] = ()) -> list[LayerComparison]:
    """Each report beside the baseline's for the same compute capability. Raises UsageError when a baseline has none for one of them."""
    by_capability = {report.compute_capability: report for report in baselines}
    missing = [str(r.compute_capability or "CPU") for r in reports if baselines and r.compute_capability not in by_capability]
    if missing:
        built = ", ".join(str(capability or "CPU") for capability in by_capability)
        raise UsageError(f"the baseline was not built for {', '.join(missing)}, only for {built}", "build it for the same devices")
    return [_compare_one(report, by_capability.get(report.compute_capability)) for report in reports]


def _compare_one(report: LayerReport, baseline: LayerReport | None) -> LayerComparison:
    macs = {name: layer.macs for layer in report.layers for name in layer.nodes}
    theirs = {_layer(c): c for c in baseline.contractions} if baseline else {}
    layers = [
        ComparedLayer(
            name=_layer(c), op=c.op, macs=macs.get(c.node), precision=c.precision, kernel=c.kernel, reason=c.reason,
            planned_format=c.planned_format,
            baseline_precision=float_one.precision if (float_one := theirs.get(_layer(c)) or theirs.get(_whole(c))) else None,
        )
        for c in report.contractions
    ]  # fmt: skip
    return LayerComparison(
        layers=tuple(sorted(layers, key=lambda layer: layer.reason is None)),  # stable: the graph's order otherwise
        not_fused=tuple(report.not_fused()),
        totals=_totals(report),
        baseline=_totals(baseline) if baseline else None,
    )


def _layer(contraction: Contraction) -> str:
    return contraction.node.partition("/")[0]


def _whole(contraction: Contraction) -> str:
    """The layer of which this one is a half."""
    return _layer(contraction).partition("#")[0]


def _totals(report: LayerReport) -> BuildTotals:
    rows = kernel_rows(report)
    by_type: dict[str, int] = {}
    for kind, _, count in rows:
        by_type[kind] = by_type.get(kind, 0) + count
    return BuildTotals(
        backend=report.backend,
        version=report.version,
        compute_capability=report.compute_capability,
        statement=report.statement,
        weights_bytes=report.weights_bytes,
        kernels=sum(by_type.values()),
        kernels_by_type=by_type,
        conv_by_precision=report.by_precision("conv"),
        gemm_by_precision=report.by_precision("gemm"),
        attentions=len(report.attentions),
        attentions_fused=len(report.attentions) - len(report.not_fused()),
        activation_bytes=report.activation_bytes,
    )
