"""Pictures of the comparison: samples of the same noises side by side, and charts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from .charts import own_rows, psnr_chart, save, snr_chart
from .comparison import ModelResults, identity_of
from .drawing import as_pictures
from .measuring import SAMPLES
from .methods import INTEGER_PRESETS, method
from .settings import model_name
from .workspace import Array, Workspace, load_array

FOLDER = "images"
PRESET = "w4a4"
_COLUMNS = 12


def draw_all(results: Sequence[ModelResults], work: Path, output: Path) -> list[str]:
    """Draw what this machine has the pictures for; returns all paths there are, relative to ``output``."""
    for one in results:
        if one.prompted:  # few rows, and samples are latents
            continue
        _samples(one, work, output / FOLDER / f"{one.model}-samples-{PRESET}.png")
        snr_chart(one, PRESET, output / FOLDER / f"{one.model}-snr-{PRESET}.png")
        psnr_chart(one, list(INTEGER_PRESETS), output / FOLDER / f"{one.model}-psnr.png")
    return [str(path.relative_to(output)) for path in sorted((output / FOLDER).glob("*.png"))]


def _samples(results: ModelResults, work: Path, file: Path) -> None:
    if results.float is None:
        return
    base = Workspace(work, results.float.cell.model, results.float.model_sha256)
    panels = [("float", load_array(base.float_folder(results.settings) / SAMPLES))]
    for row in own_rows(results, PRESET):
        folder = base.cell_folder(row.result.cell, identity_of(row.result).sha256)
        value = row.psnr.value if row.psnr else float("nan")
        panels.append((f"{method(row.name).label}\n{value:.1f} dB", load_array(folder / SAMPLES)))
    drawn = [(label, as_pictures(samples[:_COLUMNS])) for label, samples in panels if samples is not None]
    if len(drawn) < 2 or drawn[0][1].ndim != 4 or drawn[0][1].shape[1] not in (1, 3):  # latents are not pictures
        return
    figure = Figure(figsize=(1.9 + 0.62 * _COLUMNS, 0.66 * len(drawn)), layout="constrained")
    axes = figure.subplots(len(drawn), 1, squeeze=False)[:, 0]
    for axis, (label, pictures) in zip(axes, drawn, strict=True):
        axis.imshow(_strip(pictures), cmap="gray", vmin=0, vmax=1, aspect="equal", interpolation="nearest")
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_anchor("E")  # the spare width is the labels'
        axis.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=7)
    save(figure, file)


def _strip(pictures: Array) -> Array:
    """[n, C, H, W] → [H, n·W] or [H, n·W, 3]."""
    strip: Array = np.concatenate(list(pictures.transpose(0, 2, 3, 1)), axis=1)
    return strip[:, :, 0] if strip.shape[2] == 1 else strip


def models_of(cells: Sequence[Any]) -> list[ModelResults]:
    """The results of each model, calibration seed 0."""
    return [ModelResults(model, cells) for model in dict.fromkeys(model_name(cell.cell.model) for cell in cells)]
