"""Pictures of the comparison: samples of the same noises side by side, and SNR over the timesteps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .comparison import ModelResults, Row, identity_of
from .measuring import PICTURES
from .methods import DILATEQUANT, METHODS, method
from .settings import model_name
from .workspace import Array, Workspace, load_array

FOLDER = "images"
PRESET = "w4a4"
_COLUMNS = 12
_CURVES = 6  # more cannot be told apart


def draw_all(results: Sequence[ModelResults], work: Path, output: Path) -> list[str]:
    """Draw what this machine has the pictures for; returns all paths there are, relative to ``output``."""
    for one in results:
        _samples(one, work, output / FOLDER / f"{one.model}-samples-{PRESET}.png")
        _snr_curves(one, output / FOLDER / f"{one.model}-snr-{PRESET}.png")
    return [str(path.relative_to(output)) for path in sorted((output / FOLDER).glob("*.png"))]


def _rows(results: ModelResults) -> list[Row]:
    """Measured methods at the hardest preset, each cell once, the best PSNR first."""
    found = [row for m in METHODS if (row := results.row(PRESET, m.name)) and row.name == m.name and row.psnr]
    return sorted(found, key=lambda row: -row.psnr.value if row.psnr else 0.0)


def _samples(results: ModelResults, work: Path, file: Path) -> None:
    if results.float is None:
        return
    base = Workspace(work, results.float.cell.model, results.float.model_sha256)
    panels = [("float", load_array(base.float_folder(results.settings) / PICTURES))]
    for row in _rows(results):
        folder = base.cell_folder(row.result.cell, identity_of(row.result).sha256)
        value = row.psnr.value if row.psnr else float("nan")
        panels.append((f"{method(row.name).label}\n{value:.1f} dB", load_array(folder / PICTURES)))
    drawn = [(label, pictures[:_COLUMNS]) for label, pictures in panels if pictures is not None]
    if len(drawn) < 2:
        return
    figure = Figure(figsize=(1.9 + 0.62 * _COLUMNS, 0.66 * len(drawn)), layout="constrained")
    axes = figure.subplots(len(drawn), 1, squeeze=False)[:, 0]
    for axis, (label, pictures) in zip(axes, drawn, strict=True):
        axis.imshow(_strip(pictures), cmap="gray", vmin=0, vmax=1, aspect="equal", interpolation="nearest")
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=7)
    _save(figure, file)


def _strip(pictures: Array) -> Array:
    """[n, C, H, W] → [H, n·W] or [H, n·W, 3]."""
    strip: Array = np.concatenate(list(pictures.transpose(0, 2, 3, 1)), axis=1)
    return strip[:, :, 0] if strip.shape[2] == 1 else strip


def _snr_curves(results: ModelResults, file: Path) -> None:
    rows = [row for row in _rows(results) if row.snr]
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
    axes.set_title(f"{results.model}, {PRESET.upper()}", loc="left", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    _save(figure, file)


def _save(figure: Figure, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(file, metadata={"Software": None}, pil_kwargs={"optimize": True})


def models_of(cells: Sequence[Any]) -> list[ModelResults]:
    """The results of each model, calibration seed 0."""
    return [ModelResults(model, cells) for model in dict.fromkeys(model_name(cell.cell.model) for cell in cells)]
