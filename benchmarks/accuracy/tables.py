"""Markdown tables of the comparison."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.accuracy.bootstrap import Interval, paired_difference
from dq_deploy.console import duration
from dq_deploy.formats.presets import CODEBOOKS

from .comparison import ModelResults, Row
from .methods import ALONE, COMPONENTS, DILATEQUANT, DILATIONS, METHODS, PRESETS, SLICED, WIDTHS, method
from .results import CellResult, HeadlineFigures, RivalFigures
from .settings import FLOAT

MISSING = "…"
"""A cell that was not measured yet."""
NOT_COMPARED = ""
_YES, _NO = "✓", "–"


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are set to the right."""
    lines = ["| " + " | ".join(columns) + " |", "|---|" + "---:|" * (len(columns) - 1)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def with_interval(found: Interval | None, digits: int = 2) -> str:
    """``12.34 (11.90–12.80)``."""
    if found is None:
        return MISSING
    return f"{found.value:.{digits}f} ({found.low:.{digits}f}–{found.high:.{digits}f})"


def difference(found: Interval | None, digits: int = 2, *, more_is_better: bool = True) -> str:
    """A signed difference with its interval; ▲ better and ▼ worse where zero lies outside of it, = where it does not."""
    if found is None:
        return NOT_COMPARED
    better = (found.value > 0) == more_is_better
    mark = "=" if not found.excludes_zero else "▲" if better else "▼"
    return f"{mark} {found.value:+.{digits}f} ({found.low:+.{digits}f} … {found.high:+.{digits}f})"


def preset_table(results: ModelResults, preset: str) -> str:
    """Every method at a preset, DilateQuant first and the others by their PSNR."""
    names = list(dict.fromkeys(results.representative(preset, m.name) for m in METHODS if m.compared(preset, results.family)))
    rows = {name: results.row(preset, name) for name in names}
    if not any(rows.values()):
        return "Not measured yet."
    order = sorted(names, key=lambda name: (name != DILATEQUANT, -_psnr(rows[name])))
    final = any(row and row.final for row in rows.values())
    columns = ["method", *(["final sample's SNR, dB"] if final else []), "PSNR, dB", "against DilateQuant", "SNR, dB: median step",
               "worst step", "feature distance", "Fréchet, classifier", "against float", "wall time", "memory above the model"]  # fmt: skip
    cells = [_preset_row(name, rows[name], final=final) for name in order]
    if any(row and row.dearest for row in rows.values()):  # cells from before it was measured have none
        columns.append("dearest step")
        cells = [[*cell, (row.dearest if (row := rows[name]) else None) or MISSING] for name, cell in zip(order, cells, strict=True)]
    return markdown(columns, cells)


def _psnr(row: Row | None) -> float:
    return row.psnr.value if row and row.psnr else -1e9


def _preset_row(name: str, row: Row | None, *, final: bool) -> list[str]:
    label = f"**{method(name).label}**" if name == DILATEQUANT else method(name).label
    if row is None:
        return [label, *[MISSING] * (10 if final else 9)]
    cost = row.result.cost
    return [
        label,
        *([with_interval(row.final, 1)] if final else []),
        with_interval(row.psnr),
        difference(row.psnr_difference),
        with_interval(row.snr_median, 1),
        MISSING if row.snr is None else f"{min(row.snr):.1f}",
        with_interval(row.feature, 4),
        NOT_COMPARED if row.frechet is None else with_interval(row.frechet) + _drawn_by(row.result.rival),
        difference(row.frechet_difference, more_is_better=False),
        MISSING if cost is None else duration(cost.wall_s),
        MISSING if cost is None else _memory(row.result),
    ]


def _memory(result: CellResult) -> str:
    assert result.cost is not None
    cost = result.cost
    return f"{cost.gpu_peak_mib:.0f} MiB VRAM" if cost.gpu_peak_mib else f"{max(0.0, cost.peak_mib - cost.loaded_mib):.0f} MiB"


def components_table(results: ModelResults, presets: Sequence[str]) -> str:
    """All on/off combinations of dilation (WD), per-timestep tables (TPQ) and block distillation (BKD): PSNR at each preset."""
    rows = [
        [" ".join(_YES if on else _NO for on in switches), method(name).label, *(_psnr_cell(results, preset, name) for preset in presets)]
        for switches, name in COMPONENTS.items()
    ]
    return markdown(["WD TPQ BKD", "also called", *(p.upper() for p in presets)], rows)


def dilations_table(results: ModelResults, presets: Sequence[str]) -> str:
    """The dilation rules, everything else as in DilateQuant: PSNR at each preset, difference to the error-aware rule."""
    labels = dict(zip(DILATIONS, ("none", "the paper's (asymmetric)", "symmetric", "SmoothQuant's factors", "error-aware"), strict=True))
    return markdown(
        ["dilation", *(p.upper() for p in presets)],
        [[labels[name], *(_psnr_cell(results, preset, name, compare=True) for preset in presets)] for name in DILATIONS],
    )


def formats_table(results: ModelResults, presets: Sequence[str]) -> str:
    """What each preset's numbers cost where everything else is alike: PSNR of the methods that all of them have."""
    names = [m.name for m in METHODS if set(presets) <= set(m.presets)]
    return markdown(
        ["preset", *(method(name).label for name in names)],
        [[preset.upper(), *(_psnr_cell(results, preset, name) for name in names)] for preset in presets],
    )


def widths_table(results: ModelResults) -> str | None:
    """Weights of few bits, nothing trained: a checkpoint for each width, and one for all of them sliced to it; codebooks."""
    rows = []
    for preset in (*WIDTHS, *CODEBOOKS):
        alone, child = (results.cell(preset, name) for name in (ALONE, SLICED))
        if alone is None and child is None:
            continue
        pair = [found.grid.psnr_db if found and found.grid else None for found in (child, alone)]
        gain = difference(paired_difference(pair[0], pair[1])) if pair[0] and pair[1] else NOT_COMPARED
        rows.append([preset.upper(), *(_psnr_and_snr(results, preset, name) for name in (ALONE, SLICED)), gain])
    return (
        markdown(["preset", "a checkpoint for it alone", "of 8, 6, 4 and 3 bits", "of several against one, PSNR"], rows) if rows else None
    )


def prompted_table(results: ModelResults) -> str:
    """What was measured of a text pipeline, preset by preset, the best PSNR first."""
    rows: list[tuple[str, Row | None]] = [("float", results.float_row())]
    for preset in dict.fromkeys((*WIDTHS, *PRESETS, *CODEBOOKS)):
        own = [row for m in METHODS if (row := results.row(preset, m.name)) and row.name == m.name]
        rows += [(f"{preset.upper()}, {method(row.name).label}", row) for row in sorted(own, key=lambda row: -_psnr(row))]
    columns = ["", "PSNR, dB", "final sample's SNR, dB", "feature distance", "class recognised", "Fréchet, classifier", "against float",
               "CPU time"]  # fmt: skip
    return markdown(columns, [[label, *_prompted_row(row)] for label, row in rows if row])


def _prompted_row(row: Row) -> list[str]:
    share = row.recognised and Interval(*(100 * v for v in (row.recognised.value, row.recognised.low, row.recognised.high)))
    cost, is_float = row.result.cost, row.name == FLOAT
    return [
        *([NOT_COMPARED] * 3 if is_float else [with_interval(row.psnr), with_interval(row.final, 1), with_interval(row.feature, 4)]),
        MISSING if share is None else with_interval(share, 0) + "%",
        with_interval(row.frechet) + _drawn_by(row.result.rival),
        difference(row.frechet_difference, more_is_better=False),
        duration(cost.cpu_s) if cost else NOT_COMPARED,
    ]


def _psnr_and_snr(results: ModelResults, preset: str, name: str) -> str:
    row = results.row(preset, name) if results.cell(preset, name) else None
    if row is None or row.psnr is None:
        return MISSING if preset in method(name).presets else NOT_COMPARED
    snr = "" if row.snr_median is None or row.snr is None else f" ({row.snr_median.value:.1f} / {min(row.snr):.1f})"
    return f"{row.psnr.value:.2f}{snr}"


def _psnr_cell(results: ModelResults, preset: str, name: str, *, compare: bool = False) -> str:
    row = results.row(preset, name)
    if row is None or row.psnr is None:
        return MISSING
    return " ".join(filter(None, [f"{row.psnr.value:.2f}", difference(row.psnr_difference) if compare else ""]))


def headline_table(results: ModelResults, presets: Sequence[str]) -> str | None:
    """Inception FID and KID where they were measured."""
    rows: list[tuple[str, Row | None]] = [("float", results.float_row())]
    for preset in presets:
        found = {name: results.row(preset, name) for name in (m.name for m in METHODS)}
        rows += [(f"{preset.upper()}, {method(name).label}", row) for name, row in found.items() if row and row.name == name]
    measured = [(label, row) for label, row in rows if row and row.fid]
    if not measured:
        return None
    measured = [(label + _drawn_by(row.result.headline), row) for label, row in measured]
    return markdown(
        ["", "FID", "against float", "KID × 1000"],
        [[label, with_interval(row.fid), difference(row.fid_difference, more_is_better=False), _kid(row)] for label, row in measured],
    )


def _drawn_by(figures: HeadlineFigures | RivalFigures | None) -> str:
    return " (drawn in INT8 by OpenVINO)" if figures and figures.drawn_by == "openvino" else ""


def _kid(row: Row) -> str:
    if row.kid is None:
        return MISSING
    return with_interval(Interval(*(1000 * v for v in (row.kid.value, row.kid.low, row.kid.high))))


def seeds_table(results: Sequence[ModelResults]) -> str | None:
    """Mean PSNR of cells that were measured from several calibration seeds."""
    keys = list(dict.fromkeys(key for one in results for key in one.cells))
    rows = []
    for preset, name in keys:
        values = [r.psnr.value for one in results if (preset, name) in one.cells and (r := one.row(preset, name)) and r.psnr]
        if len(values) > 1:
            spread = f"{min(values):.2f} … {max(values):.2f}"
            rows.append([f"{preset.upper()}, {method(name).label}", str(len(values)), f"{sum(values) / len(values):.2f}", spread])
    return markdown(["", "seeds", "mean PSNR, dB", "least … most"], rows) if rows else None
