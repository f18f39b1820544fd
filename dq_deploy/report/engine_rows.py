"""What the layer reports of the engines say: an engine in a line, and a layer in a word."""

from __future__ import annotations

from collections.abc import Iterator

from ..artifacts import Artifact
from ..artifacts.details import EngineDetails
from ..artifacts.layer_bits import bits_in_words
from ..engines.build.engine import load_report
from ..engines.layer_report import LayerReport
from ..engines.loading.engine_files import engine_bytes
from .artifacts import ReportedArtifacts
from .data import EngineRow


def engine_rows(artifacts: ReportedArtifacts) -> list[EngineRow]:
    """A row for each quantized engine and device, with the weights of the float engines built for the same, where some were given."""
    floats: dict[tuple[str, str | None], dict[str, int]] = {}
    for engine in artifacts.engines:
        if artifacts.is_float(engine):
            for report in load_report(engine):
                floats.setdefault(_device(report), {})[engine.details.dtype] = report.weights_bytes
    rows = []
    for engine, report in _quantized(artifacts):
        size = engine_bytes(engine, report.compute_capability)
        built_on = engine.details.built_on
        instructions = built_on.instructions if built_on else None
        bits, against = bits_in_words(engine) or "", floats.get(_device(report), {})
        rows.append(EngineRow.from_report(_name(engine, report), report, size, against, instructions, bits))
    return rows


def precisions(artifacts: ReportedArtifacts) -> dict[str, dict[str, tuple[str, str | None]]]:
    """Engine → layer → what it runs in ("not found": in no kernel), and why that is not as planned."""
    found: dict[str, dict[str, tuple[str, str | None]]] = {}
    for engine, report in _quantized(artifacts):
        fused = {name: (attention.precision or "", None) for attention in report.attentions if attention.fused for name in attention.layers}
        found[_name(engine, report)] = {layer.name: (layer.precision or "not found", layer.reason) for layer in report.layers} | fused
    return found


def _quantized(artifacts: ReportedArtifacts) -> Iterator[tuple[Artifact[EngineDetails], LayerReport]]:
    for engine in artifacts.engines:
        if not artifacts.is_float(engine):
            for report in load_report(engine):
                yield engine, report


def _device(report: LayerReport) -> tuple[str, str | None]:
    return report.backend, report.compute_capability


def _name(engine: Artifact, report: LayerReport) -> str:
    capability = report.compute_capability
    return f"{engine.path.resolve().name} · {report.backend} {'CPU' if capability is None else 'sm_' + capability.replace('.', '')}"
