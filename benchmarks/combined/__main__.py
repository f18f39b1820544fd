"""Measure the combinations that are missing and write the tables: ``python -m benchmarks.combined --help``."""

from __future__ import annotations

import math
from pathlib import Path

import click
import numpy as np
import torch

from dq_deploy.console import Output
from dq_deploy.engines.devices.machine import machine_info

from .study import OPTIONS, Figures, Study, Turns, combinations

HERE = Path(__file__).parent
LOWER = ("w4a8", "w4a4")
"""Presets that share the steps with W8A8."""


@click.command()
@click.option("--models", default="dit,unet", show_default=True, help="Built-in models, without fashion-mnist-.")
@click.option("--images", type=click.IntRange(2), default=64, show_default=True)
@click.option(
    "--workspace", type=click.Path(path_type=Path), required=True, help="Folder for checkpoints and bundles; what is there is used."
)
@click.option("--results", type=click.Path(path_type=Path), default=HERE / "results", help="Folder of the figures; what is there is kept.")
@click.option("--report", is_flag=True, help="Only write the tables of what is there.")
def main(models: str, images: int, workspace: Path, results: Path, report: bool) -> None:
    """PSNR of images by schedules of untrained checkpoints against each alone, beside what the steps' measured costs foretell."""
    out = Output()
    page = [
        "# Schedules over timesteps", "",
        f"`python -m benchmarks.combined --workspace DIR`: PSNR in dB of {images} images against the float model's from the same seeds",
        "(mean ± standard error, and the worst image), 20 DDIM steps, nothing trained. Better steps: those of W8A8, or of float beside it.",
        "Foretold: SNR in dB of the final sample, if the costs of its steps, which `quantize` measures one by one on a seed of its own,",
        f"added up. PyTorch {torch.__version__}, {machine_info()['cpu']}.", "",
    ]  # fmt: skip
    for model in models.split(","):
        study = Study(model, workspace, images)
        if not report:
            _measure(study, results / model, out)
        page += _section(model, results / model)
    text = "\n".join(page)
    (results.parent / "RESULTS.md").write_text(text)
    out.text(text)


def _measure(study: Study, folder: Path, out: Output) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    timesteps = study.checkpoint("w8a8").manifest.timesteps
    wanted = combinations(timesteps, LOWER)
    with out.progress(f"schedules of the {study.model}", len(wanted)) as advance:
        for turns in wanted:
            file = folder / f"{_file_name(turns)}.json"
            if not file.is_file():
                file.write_text(study.measure(turns).model_dump_json(indent=1) + "\n")
            advance(1, turns.name)


def _file_name(turns: Turns) -> str:
    return "-".join([turns.members[0], *(f"{s:g}-{m}" for m, s in zip(turns.members[1:], turns.switches, strict=True))])


def _section(model: str, folder: Path) -> list[str]:
    """A row for each combination that was measured, in the order in which they are."""
    cells = [Figures.model_validate_json(file.read_text()) for file in sorted(folder.glob("*.json"))]
    if not cells:
        return []
    order = {turns.name: number for number, turns in enumerate(combinations(cells[0].timesteps, LOWER))}
    options = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in OPTIONS.get(model, {}).items())
    lines = [
        "",
        f"## {model}",
        "",
        f"Quantized with {options or 'the defaults'}, apart from training.",
        "",
        "| the highest timesteps first | better steps | PSNR | worst image | foretold SNR |",
        "|---|---:|---:|---:|---:|",
    ]
    for cell in sorted(cells, key=lambda cell: order.get(cell.name, len(order))):
        error = float(np.std(cell.psnr_db, ddof=1)) / math.sqrt(len(cell.psnr_db))
        better = f"{cell.better} of {len(cell.timesteps)}" if cell.better else ""
        foretold = "" if cell.foretold_db is None else f"{cell.foretold_db:.1f}"
        lines.append(f"| {cell.name} | {better} | {np.mean(cell.psnr_db):.1f} ± {error:.1f} | {min(cell.psnr_db):.1f} | {foretold} |")
    costs = [cell for cell in cells if cell.costs]
    timesteps = sorted(cells[0].timesteps, reverse=True)
    lines += [
        "",
        "Final sample's SNR in dB with only this step quantized:",
        "",
        f"| timestep | {' | '.join(f'{t:g}' for t in timesteps)} |",
    ]
    lines += [f"|---|{'---:|' * len(timesteps)}"]
    for cell in costs:
        lines.append(f"| {cell.name} | {' | '.join(_figure(cell.costs.get(f'{t:g}')) for t in timesteps)} |")
    return lines


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


if __name__ == "__main__":
    main()
