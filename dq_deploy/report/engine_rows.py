"""What the layer reports of a family's engines say: an engine in a line, and a layer in a word."""

from __future__ import annotations

from collections.abc import Iterator

from ..artifacts import Artifact
from ..engines.build import load_report
from ..engines.layer_report import LayerReport
from .data import EngineRow
from .family import Family


def engine_rows(family: Family) -> list[EngineRow]:
    """A row for each quantized engine and device, with the weights of the float engine built for the same, where one was given."""
    floats = {
        _device(report): report.weights_bytes for engine in family.engines if family.is_float(engine) for report in load_report(engine)
    }
    return [EngineRow.from_summary(name, report.summary(), floats.get(_device(report))) for name, report in _quantized(family)]


def precisions(family: Family) -> dict[str, dict[str, tuple[str, str | None]]]:
    """Engine → layer → what it runs in ("not found": in no kernel), and why that is not as planned."""
    return {
        name: {layer.name: (layer.precision or "not found", layer.reason) for layer in report.layers} for name, report in _quantized(family)
    }


def _quantized(family: Family) -> Iterator[tuple[str, LayerReport]]:
    for engine in family.engines:
        if not family.is_float(engine):
            for report in load_report(engine):
                yield _name(engine, report), report


def _device(report: LayerReport) -> tuple[str, str | None]:
    return report.backend, report.compute_capability


def _name(engine: Artifact, report: LayerReport) -> str:
    capability = report.compute_capability
    return f"{engine.path.resolve().name} · {report.backend} {'CPU' if capability is None else 'sm_' + capability.replace('.', '')}"
