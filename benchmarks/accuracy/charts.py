"""Charts of the comparison, from the committed figures alone: PSNR of every method at every preset, and SNR over the timesteps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .comparison import ModelResults, Row
from .methods import DILATEQUANT, METHODS, Method, method

_CURVES = 6  # more cannot be told apart
_GROUPS = {
    "DilateQuant": "tab:red",
    "a scale for each timestep": "tab:blue",
    "one scale for all timesteps": "tab:gray",
    "outside tools": "tab:orange",
}


def psnr_chart(results: ModelResults, presets: Sequence[str], file: Path) -> None:
    """A panel for each preset: every method's PSNR with its interval, methods in one order for all panels."""
    rows = {preset: {row.name: row for row in own_rows(results, preset)} for preset in presets}
    order = _order(rows)
    if not order:
        return
    figure = Figure(figsize=(2.6 + 2.3 * len(presets), 0.9 + 0.24 * len(order)), layout="constrained")
    panels: Any = figure.subplots(1, len(presets), sharey=True, squeeze=False)[0]
    for axes, preset in zip(panels, presets, strict=True):
        ours = rows[preset].get(DILATEQUANT)
        if ours and ours.psnr:
            axes.axvline(ours.psnr.value, color=_GROUPS["DilateQuant"], linewidth=0.8, alpha=0.5)
        for place, name in enumerate(order):
            if (row := rows[preset].get(name)) and (psnr := row.psnr):
                axes.plot([psnr.low, psnr.high], [place, place], color=_GROUPS[_group(method(name))], linewidth=1.2)
                axes.plot(psnr.value, place, "o", color=_GROUPS[_group(method(name))], markersize=4)
        axes.set_title(preset.upper(), fontsize=10)
        axes.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(order)), [method(name).label for name in order], fontsize=8)
    panels[0].invert_yaxis()
    figure.supxlabel("PSNR of pictures against the float model's [dB], 95% intervals", fontsize=9)
    for group, color in _GROUPS.items():
        panels[0].plot([], [], "o", color=color, markersize=4, label=group)
    figure.legend(loc="outside upper center", ncols=len(_GROUPS), fontsize=8, frameon=False)
    save(figure, file)


def _order(rows: Mapping[str, Mapping[str, Row]]) -> list[str]:
    """Methods that were measured, the best first: by the mean difference to DilateQuant over the presets that a method has."""
    found: dict[str, list[float]] = {}
    for of_preset in rows.values():
        ours = of_preset.get(DILATEQUANT)
        for name, row in of_preset.items():
            found.setdefault(name, []).append(_psnr(row) - _psnr(ours))
    return sorted(found, key=lambda name: -mean(found[name]))


def _psnr(row: Row | None) -> float:
    return row.psnr.value if row and row.psnr else 0.0


def _group(chosen: Method) -> str:
    if chosen.name == DILATEQUANT:
        return "DilateQuant"
    if chosen.tool != "dq-deploy":
        return "outside tools"
    return "one scale for all timesteps" if chosen.options.get("activations") == "static" else "a scale for each timestep"


def snr_chart(results: ModelResults, preset: str, file: Path) -> None:
    """SNR of the network's output at each timestep, DilateQuant and the methods with the best PSNR."""
    rows = [row for row in own_rows(results, preset) if row.snr]
    chosen = [row for row in rows if row.name == DILATEQUANT] + [row for row in rows if row.name != DILATEQUANT][: _CURVES - 1]
    if not chosen:
        return
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes: Any = figure.subplots()
    for row in chosen:
        assert row.result.grid is not None
        assert row.snr is not None
        width = 2.4 if row.name == DILATEQUANT else 1.3
        axes.plot(row.result.grid.timesteps, row.snr, label=method(row.name).label, linewidth=width, marker="o", markersize=3)
    axes.set_xlabel("timestep (sampling runs from right to left)")
    axes.set_ylabel("SNR against float [dB]")
    axes.set_title(f"{results.model}, {preset.upper()}", loc="left", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    save(figure, file)


def own_rows(results: ModelResults, preset: str) -> list[Row]:
    """Measured methods at a preset, each cell once, the best PSNR first."""
    found = [row for m in METHODS if (row := results.row(preset, m.name)) and row.name == m.name and row.psnr]
    return sorted(found, key=lambda row: -_psnr(row))


def save(figure: Figure, file: Path) -> None:
    """Write a figure as PNG, the same bytes for the same figure."""
    file.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(file, metadata={"Software": None}, pil_kwargs={"optimize": True})
