"""Measure the cells that are missing and write the table: ``python -m benchmarks.widths --help``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import click
import numpy as np

from benchmarks.accuracy.settings import model_name
from benchmarks.rounding.study import Study
from dq_deploy.console import Output

from .study import Figures, measure

HERE = Path(__file__).parent


@click.command()
@click.option("--sources", default="builtin:fashion-mnist-dit,builtin:fashion-mnist-unet", show_default=True)
@click.option("--nested", default="8,6,4,3", show_default=True, help="Widths of each nested checkpoint, with semicolons between.")
@click.option("--iterations", default="0", show_default=True, help="Distillation steps for each block, with commas.")
@click.option("--steps", type=click.IntRange(1), default=20, show_default=True, help="T.")
@click.option("--pictures", type=click.IntRange(2), default=24, show_default=True)
@click.option("--calibration-samples", type=click.IntRange(2), default=16, show_default=True)
@click.option("--results", type=click.Path(path_type=Path), default=HERE / "results", help="Folder of the figures; what is there is kept.")
@click.option("--report", is_flag=True, help="Only write the table of what is there.")
def main(sources: str, nested: str, iterations: str, steps: int, pictures: int, calibration_samples: int, results: Path,
         report: bool) -> None:  # fmt: skip
    """Compare the widths of one checkpoint with a checkpoint for each, by held-out pictures; activations have 8 bits."""
    out = Output()
    several = [tuple(map(int, widths.split(","))) for widths in nested.split(";")]
    alone = [(bits,) for bits in sorted({bits for widths in several for bits in widths}, reverse=True)]
    page = [
        "# Widths", "",
        f"`python -m benchmarks.widths`: PSNR in dB of {pictures} held-out pictures against the float model's ± standard error, {steps}",
        f"steps, {calibration_samples} calibration samples, 8-bit activations, GPTQ, no dilation; in brackets SNR, median and worst step.",
        "Gain: the width of a checkpoint of several over the checkpoint for it alone, picture by picture.", "",
    ]  # fmt: skip
    for source in sources.split(","):
        study, folder = Study(source, steps, pictures, calibration_samples, "none"), results / model_name(source)
        for count in map(int, iterations.split(",")):
            if not report:
                _measure(study, folder, [*alone, *several], count, out)
            page += [f"## {model_name(source)}, {count} iterations a block", "", *_table(folder, several, count), ""]
    text = "\n".join(page)
    (results.parent / "RESULTS.md").write_text(text)
    out.text(text)


def _measure(study: Study, folder: Path, cells: Iterable[Sequence[int]], iterations: int, out: Output) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    cells = list(cells)
    with out.progress(f"widths, {folder.name}", len(cells)) as advance:
        for widths in cells:
            file = _file(folder, widths, iterations)
            if not file.is_file():
                file.write_text(measure(study, widths, iterations).model_dump_json(indent=1) + "\n")
            advance(1, file.stem)


def _file(folder: Path, widths: Sequence[int], iterations: int) -> Path:
    return folder / f"{'-'.join(map(str, widths))}-{iterations}.json"


def _table(folder: Path, several: Sequence[Sequence[int]], iterations: int) -> list[str]:
    """A line for each width that was measured alone, and a column for each checkpoint of several."""
    found = {w: _read(_file(folder, w, iterations)) for w in several}
    names = " | ".join(f"of {','.join(map(str, w))} | gain" for w in several)
    lines = [f"| weights | dedicated | {names} |", f"|---|---:|{'---:|' * 2 * len(several)}"]
    for bits in sorted({bits for widths in several for bits in widths}, reverse=True):
        alone = _read(_file(folder, (bits,), iterations))
        cells = [_cell(alone, bits)]
        for figures in found.values():
            cells += [_cell(figures, bits), _gain(alone, figures, bits)]
        lines.append(f"| {bits} bits | {' | '.join(cells)} |")
    return lines


def _read(file: Path) -> Figures | None:
    return Figures.model_validate_json(file.read_text()) if file.is_file() else None


def _cell(figures: Figures | None, bits: int) -> str:
    if figures is None or bits not in figures.psnr_db:
        return ""
    psnr, snr = np.array(figures.psnr_db[bits]), figures.snr_db[bits]
    return f"{psnr.mean():.1f} ± {_error(psnr):.1f} ({np.median(snr):.1f} / {min(snr):.1f})"


def _gain(alone: Figures | None, nested: Figures | None, bits: int) -> str:
    if alone is None or nested is None or bits not in nested.psnr_db:
        return ""
    difference = np.array(nested.psnr_db[bits]) - np.array(alone.psnr_db[bits])
    return f"{difference.mean():+.1f} ± {_error(difference):.1f}"


def _error(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    return float(values.std(ddof=1) / len(values) ** 0.5)


if __name__ == "__main__":
    main()
