"""Measure the cells that are missing and write the table: ``python -m benchmarks.rounding --help``."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import click
import numpy as np
import torch

from benchmarks.accuracy.settings import model_name
from dq_deploy.console import Output
from dq_deploy.engines.devices.machine import machine_info
from dq_deploy.formats.presets import CODEBOOKS

from .study import Figures, Study

HERE = Path(__file__).parent
ROUNDINGS = ("nearest", "gptq")


@click.command()
@click.option("--sources", default="builtin:fashion-mnist-dit,builtin:fashion-mnist-unet", show_default=True)
@click.option("--presets", default="w4a8,w4a4,w3a8,w2a8,vq3a8,vq2a8,w6a6,w8a8", show_default=True)
@click.option("--iterations", default="0,60", show_default=True, help="Distillation steps for each block, with commas.")
@click.option("--steps", type=click.IntRange(1), default=20, show_default=True, help="T.")
@click.option("--pictures", type=click.IntRange(2), default=24, show_default=True)
@click.option("--calibration-samples", type=click.IntRange(2), default=16, show_default=True)
@click.option("--dilation", default="none", show_default=True)
@click.option("--results", type=click.Path(path_type=Path), default=HERE / "results", help="Folder of the figures; what is there is kept.")
@click.option("--report", is_flag=True, help="Only write the table of what is there.")
def main(sources: str, presets: str, iterations: str, steps: int, pictures: int, calibration_samples: int, dilation: str, results: Path,
         report: bool) -> None:  # fmt: skip
    """Compare nearest codes with GPTQ's by held-out pictures, untrained and trained."""
    out = Output()
    page = [
        "# Rounding of weights", "",
        f"`python -m benchmarks.rounding`: PSNR in dB of {pictures} held-out pictures against the float model's (± standard error),",
        f"{steps} steps, {calibration_samples} calibration samples, dilation {dilation}; in brackets SNR, median / worst timestep.",
        "VQ3A8 and VQ2A8 are codebooks, fitted to the second moments that GPTQ rounds by; layers too small for them have 4 bits.",
        f"PyTorch {torch.__version__}, {machine_info()['cpu']}.", "",
    ]  # fmt: skip
    for source in sources.split(","):
        study = Study(source, steps, pictures, calibration_samples, dilation)
        folder = results / model_name(source)
        every = product(map(int, iterations.split(",")), presets.split(","), ROUNDINGS)
        cells = [(count, preset, rounding) for count, preset, rounding in every if preset not in CODEBOOKS or rounding == "gptq"]
        if not report:
            _measure(study, folder, cells, out)
        page += [f"## {model_name(source)}", "", *_table(folder), ""]
    text = "\n".join(page)
    (results.parent / "RESULTS.md").write_text(text)
    out.text(text)


def _measure(study: Study, folder: Path, cells: list[tuple[int, str, str]], out: Output) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with out.progress(f"rounding, {folder.name}", len(cells)) as advance:
        for steps, preset, rounding in cells:
            file = folder / f"{preset}-{rounding}-{steps}.json"
            if not file.is_file():
                file.write_text(study.measure(preset, rounding, steps).model_dump_json(indent=1) + "\n")
            advance(1, file.stem)


def _table(folder: Path) -> list[str]:
    """A line for each preset and number of iterations, of the cells that are there."""
    found = [Figures.model_validate_json(file.read_text()) for file in sorted(folder.glob("*.json"))]
    lines = ["| bits | iterations | nearest | GPTQ | gain |", "|---|---:|---:|---:|---:|"]
    for preset, steps in sorted({(f.preset, f.iterations) for f in found}):
        pair = {f.rounding: f for f in found if (f.preset, f.iterations) == (preset, steps)}
        gain = _gain(pair["nearest"], pair["gptq"]) if len(pair) == len(ROUNDINGS) else ""
        lines.append(f"| {preset.upper()} | {steps} | {' | '.join(_cell(pair.get(name)) for name in ROUNDINGS)} | {gain} |")
    return lines


def _cell(figures: Figures | None) -> str:
    if figures is None:
        return ""
    return f"{figures.mean:.1f} ± {_error(np.array(figures.psnr_db)):.1f} ({np.median(figures.snr_db):.1f} / {min(figures.snr_db):.1f})"


def _gain(before: Figures, after: Figures) -> str:
    """The paired difference of the pictures' PSNR."""
    difference = np.array(after.psnr_db) - np.array(before.psnr_db)
    return f"{difference.mean():+.1f} ± {_error(difference):.1f}"


def _error(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    return float(values.std(ddof=1) / len(values) ** 0.5)


if __name__ == "__main__":
    main()
