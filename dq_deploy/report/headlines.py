"""The few figures at the top of the page, from its data."""

from __future__ import annotations

from pathlib import Path
from statistics import mean, median

from ..engines.layer_report import formats_in_words
from .data import Headline, ReportData


def headlines(data: ReportData) -> list[Headline]:
    """What was measured, in the order in which a reader asks; what was not is not there."""
    return [*_accuracy(data), *_pictures(data), *_parity(data), *_engines(data), *_latency(data)]


def _accuracy(data: ReportData) -> list[Headline]:
    reference = next((series for series in data.snr if series.role == "reference"), None)
    if reference is None:
        return []
    pairs = [(value, t) for value, t in zip(reference.snr_db, reference.timesteps, strict=True) if value is not None]
    if not pairs:
        return []
    worst, timestep = min(pairs)
    return [
        Headline(value=f"{median(value for value, _ in pairs):.1f} dB", label="SNR against the float model, median timestep"),
        Headline(value=f"{worst:.1f} dB", label=f"SNR at the worst timestep, {timestep:g}"),
        *_final(data),
    ]


def _final(data: ReportData) -> list[Headline]:
    found = data.final_error
    if found is None or found.all_db is None or found.worst is None:
        return []
    label = f"SNR of the final sample; timestep {found.worst.span} makes {found.worst.share or 0:.0%} of the steps' separate errors"
    return [Headline(value=f"{found.all_db:.1f} dB", label=label)]


def _pictures(data: ReportData) -> list[Headline]:
    psnr = data.pictures.psnr_db if data.pictures else None
    if not psnr:
        return []
    return [Headline(value=f"{mean(psnr):.1f} dB", label=f"PSNR of {len(psnr)} pictures from the same seeds; the worst {min(psnr):.1f} dB")]


def _parity(data: ReportData) -> list[Headline]:
    if not data.checks:
        return []
    passed = sum(row.passed for row in data.checks)
    label = "bundles compute what the checkpoint does, layer by layer and step by step"
    return [Headline(value=f"{passed} of {len(data.checks)}", label=label, passed=passed == len(data.checks))]


def _engines(data: ReportData) -> list[Headline]:
    if not data.engines:
        return []
    best = max(data.engines, key=lambda row: row.as_planned)
    found = [
        Headline(
            value=f"{best.as_planned} of {best.planned_layers}",
            label=f"planned layers in {formats_in_words(best.planned_formats)} kernels ({best.name})",
            passed=best.as_planned == best.planned_layers,
        )
    ]
    if best.float_weights_bytes:
        found.append(Headline(value=f"{best.weights_bytes / best.float_weights_bytes:.2f} ×", label="the float engine's bytes of weights"))
    return found


def _latency(data: ReportData) -> list[Headline]:
    if data.latency is None:
        return []
    floats = {row.name for row in data.artifacts if row.is_float}
    latency = data.latency
    rows = [row for row in latency.rows if Path(latency.contenders[row.contender]["path"]).resolve().name not in floats]
    rows = [row for row in rows if row.contender != latency.baseline]
    if not rows:
        return []
    best = min(rows, key=lambda row: row.ratio)
    return [Headline(value=f"{best.ratio:.2f} ×", label=f"the time of {latency.baseline} at batch {best.batch} ({best.contender})")]
