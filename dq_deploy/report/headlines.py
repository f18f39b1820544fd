"""The few figures at the top of the page, from its data."""

from __future__ import annotations

from pathlib import Path
from statistics import mean, median

from ..engines.descriptors.registry import engines
from ..engines.layer_report import formats_in_words
from .data import Headline, ReportData


def headlines(data: ReportData) -> list[Headline]:
    """What was measured, in the order in which a reader asks; what was not is not there."""
    return [*_pictures(data), *_latency(data), *_engines(data), *_parity(data), *_accuracy(data)]


def verdict(data: ReportData) -> str:
    """The page in one sentence: how near, whether it computes what it should, how fast. Empty where nothing of it was measured."""
    parts = []
    if psnr := _psnr(data):
        which = f"the images of {data.pictures.name}" if data.pictures and data.pictures.others else "the quantized images"
        parts.append(f"{which} have {mean(psnr):.1f} dB of PSNR against the float model’s ({min(psnr):.1f} dB at worst)")
    if data.checks:
        failed = [row.bundle for row in data.checks if not row.passed]
        parts.append(f"{', '.join(failed)} failed the check" if failed else "every bundle computes what the checkpoint does")
    parts += [f"the fastest is {found.value} {found.label}" for found in _latency(data)]
    if not parts:
        return ""
    *first, last = parts
    sentence = f"{', '.join(first)}, and {last}" if first else last
    return f"{sentence[0].upper()}{sentence[1:]}."


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
    share = f"timestep {found.worst.span} makes {found.worst.share or 0:.0%} of the steps' separate errors"
    label = f"SNR of the final sample ({found.drawn}); {share}"
    return [Headline(value=f"{found.all_db:.1f} dB", label=label)]


def _psnr(data: ReportData) -> list[float]:
    return (data.pictures.psnr_db if data.pictures else None) or []


def _pictures(data: ReportData) -> list[Headline]:
    rows = data.pictures.rows if data.pictures else []
    found = []
    for row in rows:
        if psnr := row.psnr_db:
            by = f" by {row.name}" if len(rows) > 1 else ""
            label = f"PSNR of {len(psnr)} images{by} from the same seeds; the worst {min(psnr):.1f} dB"
            found.append(Headline(value=f"{mean(psnr):.1f} dB", label=label))
    return found


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
    formats = formats_in_words(best.planned_formats)
    how = f"layers planned in {formats} by the compiler, not run" if best.only_planned else f"planned layers in {formats} kernels"
    planned = f"{best.as_planned} of {best.planned_layers}"
    found = [Headline(value=planned, label=f"{how} ({best.name})", passed=best.as_planned == best.planned_layers)]
    for dtype, ratio in best.ratios.items():
        found.append(Headline(value=f"{ratio:.2f} ×", label=f"the {dtype.upper()} engine’s bytes of weights"))
    return found


def _latency(data: ReportData) -> list[Headline]:
    """The fastest quantized session, by how many times it is as fast as the baseline."""
    if data.latency is None:
        return []
    floats = {row.name for row in data.artifacts if row.is_float}
    latency = data.latency
    rows = [row for row in latency.rows if Path(latency.contenders[row.contender]["path"]).resolve().name not in floats]
    rows = [row for row in rows if row.contender != latency.baseline and "part_of" not in latency.contenders[row.contender]]
    if not rows:
        return []
    best = min(rows, key=lambda row: row.ratio)
    baseline = next(row for row in latency.rows if row.contender == latency.baseline)
    is_float = Path(latency.contenders[latency.baseline]["path"]).resolve().name in floats
    against = f"{_title(baseline.engine)} in float" if is_float else latency.baseline
    here = "CPU" if best.device_median_ms is None else "GPU"
    return [
        Headline(value=f"{1 / best.ratio:.1f} ×", label=f"as fast as {against}, {_title(best.engine)} on this {here} (batch {best.batch})")
    ]


def _title(engine: str) -> str:
    known = engines()
    return known[engine].title if engine in known else engine
