"""The report's plots, each a function from data to an ``<svg>`` element."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..engines.bench import BenchResult, BenchRow
from .data import BlockLoss, SnrSeries
from .svg import BLUE, GREY, INK, MUTED, ORANGE, PAPER, SERIES, WIDTH, figure, styled, to_svg

_MARKERS = ("o", "s", "^", "D")


def snr_plot(series: Sequence[SnrSeries]) -> str:
    """SNR against float over the timesteps: before training dashed, the PyTorch forward as a line, bundles as markers on it."""
    with styled():
        canvas = figure(WIDTH, 3.6)
        axes = canvas.add_subplot()
        bundles = 0
        for one in series:
            axes.plot(one.timesteps, one.snr_db, label=one.name, **_snr_style(one.role, bundles))
            bundles += one.role == "bundle"
        axes.set_xlabel("timestep (sampling runs from right to left)")
        axes.set_ylabel("SNR against float [dB]")
        canvas.legend(loc="outside upper left", ncols=min(len(series), 4), borderpad=0, fontsize=9)
        worst = min((min(zip(one.snr_db, one.timesteps, strict=True)), one.name) for one in series)
        return to_svg(canvas, "snr", f"SNR over timesteps; the lowest is {worst[0][0]:.1f} dB at timestep {worst[0][1]:g} ({worst[1]})")


def _snr_style(role: str, bundles: int) -> dict[str, Any]:
    if role == "before":
        return {"color": GREY, "linestyle": "--", "linewidth": 1.4}
    if role == "reference":
        return {"color": BLUE, "linewidth": 2.2}
    colour = SERIES[1 + bundles % (len(SERIES) - 1)]
    size = 7 - 1.5 * (bundles % 3)  # markers that fall on the same point stay visible around each other
    marker = {"marker": _MARKERS[bundles % len(_MARKERS)], "markersize": size, "markerfacecolor": "none"}
    return {**marker, "color": colour, "linestyle": "none", "markeredgewidth": 1.5}


def distillation_plot(rows: Sequence[BlockLoss]) -> str:
    """Each block's held-out loss before and after training, joined by a line; orange where training did not lower it."""
    with styled():
        canvas = figure(WIDTH, 0.9 + 0.2 * len(rows))
        axes = canvas.add_subplot()
        places = np.arange(len(rows))[::-1]
        colours = [BLUE if row.after < row.before else ORANGE for row in rows]
        before, after = [row.before for row in rows], [row.after for row in rows]
        axes.hlines(places, np.minimum(before, after), np.maximum(before, after), colors=colours, linewidth=2.2, alpha=0.55)
        axes.scatter(before, places, facecolors=PAPER, edgecolors=GREY, linewidths=1.4, s=26, zorder=3, label="before")
        for colour, label in ((BLUE, "after"), (ORANGE, "after, not lower")):
            shown = [index for index, found in enumerate(colours) if found == colour]
            axes.scatter([after[i] for i in shown], places[shown], color=colour, s=30, zorder=4, label=label if shown else None)
        axes.set_yticks(places, [row.block for row in rows], fontsize=8)
        axes.set_ylim(-0.8, len(rows) - 0.2)
        axes.grid(visible=False, axis="y")
        if min(before + after) > 0:
            axes.set_xscale("log")
        axes.set_xlabel("held-out loss (mean squared error at the block's output)")
        canvas.legend(loc="outside upper left", ncols=3, borderpad=0, fontsize=9)
        lowered = sum(row.after < row.before for row in rows)
        return to_svg(canvas, "distillation", f"Held-out loss before and after training; lowered in {lowered} of {len(rows)} blocks")


def latency_plot(result: BenchResult) -> str:
    """Time relative to the baseline with its 95% interval, one panel for each batch size; the label gives the median time."""
    batches = list(dict.fromkeys(row.batch for row in result.rows))
    names = list(dict.fromkeys(row.contender for row in result.rows))
    with styled():
        canvas = figure(WIDTH, 0.75 + 0.34 * len(names))
        panels = canvas.subplots(1, len(batches), sharey=True, squeeze=False)[0]
        for axes, batch in zip(panels, batches, strict=True):
            rows = {row.contender: row for row in result.rows if row.batch == batch}
            _latency_panel(axes, [rows[name] for name in names], result.baseline)
            axes.set_title(f"batch {batch}")
        panels[0].set_yticks(range(len(names))[::-1], names, fontsize=9)
        canvas.supxlabel("time relative to the baseline (left is faster)", fontsize=10, color=MUTED)
        return to_svg(canvas, "latency", f"Time relative to {result.baseline} for batch {', '.join(map(str, batches))}")


def _latency_panel(axes: Any, rows: Sequence[BenchRow], baseline: str) -> None:
    places = np.arange(len(rows))[::-1]
    axes.barh(places, [row.ratio for row in rows], color=[_latency_colour(row, baseline) for row in rows], height=0.62)
    # A percentile of medians can lie a rounding error on the wrong side of their median.
    spread = np.abs([[row.ratio - row.ratio_low for row in rows], [row.ratio_high - row.ratio for row in rows]])
    axes.errorbar([row.ratio for row in rows], places, xerr=spread, fmt="none", ecolor=INK, elinewidth=1.1, capsize=2.5)
    axes.axvline(1, color=MUTED, linewidth=1, linestyle=":")
    right = max(row.ratio_high for row in rows)
    for place, row in zip(places, rows, strict=True):
        axes.text(max(row.ratio_high, 1.0) + 0.03 * right, place, f"{row.median_ms:.3g} ms", va="center", fontsize=8.5, color=INK)
    axes.set_xlim(0, 1.3 * max(right, 1.0))
    axes.grid(visible=False, axis="y")


def _latency_colour(row: BenchRow, baseline: str) -> str:
    if row.contender == baseline or row.within_noise:
        return GREY
    return BLUE if row.ratio < 1 else ORANGE
