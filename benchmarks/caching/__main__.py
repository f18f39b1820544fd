"""Measure the settings that are missing and write the tables: ``python -m benchmarks.caching --help``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np

from dq_deploy.console import Output
from dq_deploy.engines.devices.machine import machine_info

from .study import STEPS, THRESHOLDS, Figures, Study, Times

HERE = Path(__file__).parent


@click.command()
@click.option("--models", default="dit,unet", show_default=True, help="Built-in models, without fashion-mnist-.")
@click.option("--images", type=click.IntRange(2), default=16, show_default=True)
@click.option(
    "--workspace", type=click.Path(path_type=Path), required=True, help="Folder for checkpoints and bundles; what is there is used."
)
@click.option("--results", type=click.Path(path_type=Path), default=HERE / "results", help="Folder of the figures; what is there is kept.")
@click.option("--times", is_flag=True, help="Measure the times too: on a machine that does nothing else.")
@click.option("--rounds", type=click.IntRange(3), default=30, show_default=True, help="Trajectories of each kind that are timed.")
@click.option("--threads", type=click.IntRange(1), help="Of the engine, for the times.  [default: the engine's own]")
@click.option("--report", is_flag=True, help="Only write the tables of what is there.")
def main(
    models: str, images: int, workspace: Path, results: Path, times: bool, rounds: int, threads: int | None, report: bool
) -> None:  # fmt: skip
    """PSNR of W8A8 images against the float model's by thresholds of the cache, beside the whole bundle in as many steps and in fewer."""
    out = Output()
    page = [
        "# Caching across steps", "",
        f"`python -m benchmarks.caching --workspace DIR`: PSNR in dB of {images} images, drawn one at a time, against the float model's in",
        "as many DDIM steps from the same seeds (mean ± standard error, and the worst image). W8A8, nothing trained, calibrated in 20",
        "steps.",
        "Skipped: steps in which only the first block and the last layers ran; saved: the share of multiply-accumulates.",
        f"{machine_info()['cpu']}.",
    ]  # fmt: skip
    for model in models.split(","):
        study = Study(model, workspace, images)
        folder = results / model
        folder.mkdir(parents=True, exist_ok=True)
        if not report:
            _measure(study, folder, out)
        if times:
            _time(study, folder, out, rounds, threads)
        page += section(model, folder)
    text = "\n".join(page) + "\n"
    (results.parent / "RESULTS.md").write_text(text)
    out.text(text)


def _measure(study: Study, folder: Path, out: Output) -> None:
    settings = study.settings()
    with out.progress(f"caching in the {study.model}", len(settings)) as advance:
        for setting in settings:
            file = folder / f"{setting.name}.json"
            if not file.is_file():
                file.write_text(study.measure(setting).model_dump_json(indent=1) + "\n")
            advance(1, setting.name)


def _time(study: Study, folder: Path, out: Output, rounds: int, threads: int | None) -> None:
    with out.progress(f"times of the {study.model}", len(STEPS) * (len(THRESHOLDS) + 1)) as advance:
        for of in STEPS:
            for threshold in (0.0, *THRESHOLDS):
                found = study.timed(of, threshold, rounds=rounds, threads=threads)
                (folder / f"time-{of}-{threshold:g}.json").write_text(found.model_dump_json(indent=1) + "\n")
                advance(1, f"{of} steps, {threshold:g}")


def section(model: str, folder: Path) -> list[str]:
    """The tables of one model: a row for each setting that was measured, and the times, if any were."""
    cells = [Figures.model_validate_json(file.read_text()) for file in folder.glob("[0-9]*.json")]
    times = [Times.model_validate_json(file.read_text()) for file in folder.glob("time-*.json")]
    lines = ["", f"## {model}"] if cells else []
    for of in sorted({cell.of for cell in cells}):
        lines += ["", "| | skipped | saved | PSNR | worst image |", "|---|---:|---:|---:|---:|"]
        lines += [_row(cell) for cell in sorted((cell for cell in cells if cell.of == of), key=_order)]
    if times:
        lines += ["", *_time_rows(times)]
    return lines


def _order(cell: Figures) -> tuple[bool, int, float]:
    return cell.steps != cell.of, -cell.steps, -1.0 if cell.threshold is None else cell.threshold


def _row(cell: Figures) -> str:
    what = f"{cell.steps} steps" if cell.threshold is None else f"{cell.steps} steps, cache {cell.threshold:g}"
    error = float(np.std(cell.psnr_db, ddof=1)) / len(cell.psnr_db) ** 0.5
    shares = "| | |" if cell.threshold is None else f"| {cell.skipped:.0%} | {cell.saved:.0%} |"
    beside = f" (against {cell.of} in float)" if cell.steps != cell.of else ""
    return f"| {what}{beside} {shares} {np.mean(cell.psnr_db):.1f} ± {error:.1f} | {min(cell.psnr_db):.1f} |"


def _time_rows(times: Sequence[Times]) -> list[str]:
    lines = ["Time of a trajectory of one image over that without a cache, in turns (median of the pairs and its 95% interval):", ""]
    lines += ["| | skipped | time |", "|---|---:|---:|"]
    for cell in sorted(times, key=lambda cell: (cell.of, cell.threshold)):
        lines.append(
            f"| {cell.of} steps, cache {cell.threshold:g} | {cell.skipped:.0%} | {cell.ratio:.2f} ({cell.low:.2f} to {cell.high:.2f}) |"
        )
    return lines


if __name__ == "__main__":
    main()
