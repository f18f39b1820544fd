"""Scale tables drawn over the timesteps: all of them in one map, and those that move most as curves. Needs neither torch nor an engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator
from numpy.typing import NDArray

from ..artifacts.scale_tables import ScaleTable
from .svg import BLUE, MUTED, ORANGE, WIDTH, figure

_CURVES = 6
_MOST_LABELS = 20
# Differences beyond a factor of 4 are all drawn alike: the eye cannot compare them, and one wild row would bleach the others.
_MOST_OCTAVES = 2.0


def draw_map(tables: Mapping[str, ScaleTable]) -> Figure:
    """Every quantizer's scale relative to its own median, a row for each in network order, a column for each timestep.

    Call it inside a style.
    """
    names = list(tables)
    timesteps = next(iter(tables.values())).timesteps
    octaves = np.stack([_octaves(tables[name]) for name in names])
    limit = float(np.clip(np.abs(octaves).max(), 0.5, _MOST_OCTAVES))
    canvas = figure(WIDTH, 1.3 + 0.155 * len(names))
    axes = canvas.add_subplot()
    image = axes.imshow(octaves, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
    axes.grid(visible=False)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    shown = range(0, len(timesteps), -(-len(timesteps) // _MOST_LABELS))
    axes.set_xticks(shown, [f"{timesteps[i]:g}" for i in shown])
    axes.set_xlabel("timestep")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    ticks = np.linspace(-limit, limit, 5)
    # A fixed height in inches: a map of many rows must not get a colour bar as tall as itself.
    bar = canvas.colorbar(image, ax=axes, location="top", aspect=60, pad=0.015, shrink=0.6, anchor=(0.0, 0.0), ticks=ticks)
    bar.ax.set_xticklabels([f"×{2**tick:.2g}" for tick in ticks])
    bar.set_label("scale relative to the quantizer's own median", color=MUTED, fontsize=9)
    bar.outline.set_visible(False)
    return canvas


def draw_curves(tables: Mapping[str, ScaleTable], most: int = _CURVES) -> Figure:
    """The quantizers whose scale moves most over the timesteps, in their own units, with their zero-points where these are not 0.

    Call it inside a style.
    """
    chosen = sorted(tables, key=lambda name: -_spread(tables[name]))[:most]
    columns = min(3, len(chosen))
    lines = -(-len(chosen) // columns)
    canvas = figure(WIDTH, max(1.9 * lines, 2.4))
    panels = canvas.subplots(lines, columns, squeeze=False)
    for axes in panels.flat[len(chosen) :]:
        axes.set_visible(False)
    for axes, name in zip(panels.flat, chosen, strict=False):
        table = tables[name]
        axes.plot(table.timesteps, table.scales, color=BLUE, linewidth=1.8, marker=".", markersize=4)
        _decades(axes)
        axes.set_title(_short(name) + (" (clipping ratio)" if table.per_token else ""), fontsize=8)
        axes.tick_params(labelsize=8)
        if any(table.zero_points):
            other = axes.twinx()
            other.step(table.timesteps, table.zero_points, color=ORANGE, linewidth=1, where="mid")
            other.set_ylim(-128, 127)
            other.grid(visible=False)
            other.tick_params(labelsize=7, labelcolor=ORANGE)
    canvas.supxlabel("timestep", fontsize=9, color=MUTED)
    return canvas


def _decades(axes: Any) -> None:
    """A logarithmic axis with plain numbers at 1, 2 and 5: scale tables seldom span a whole decade."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))


def _octaves(table: ScaleTable) -> NDArray[np.float64]:
    scales = np.log2(np.asarray(table.scales, np.float64))
    result: NDArray[np.float64] = scales - np.median(scales)
    return result


def _spread(table: ScaleTable) -> float:
    return max(table.scales) / min(table.scales)


def _short(name: str, most: int = 38) -> str:
    """The end of a long module path: that is where names differ."""
    return name if len(name) <= most else "…" + name[-most + 1 :]
