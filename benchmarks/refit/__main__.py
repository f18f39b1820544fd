"""Measure what is missing and write the table: ``python -m benchmarks.refit --help``."""

from __future__ import annotations

from pathlib import Path

import click

from dq_deploy.console import Output
from dq_deploy.engines.devices.machine import machine_info

from .adapter import RANK, STEPS, STYLE
from .study import PRESETS, WAYS, Figures, Study, row

HERE = Path(__file__).parent


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Folder of Fashion-MNIST's IDX files, to train the LoRA on.")
@click.option("--images", type=click.IntRange(2), default=16, show_default=True)
@click.option("--weights", default="1", show_default=True, help="How many times the LoRA is added.")
@click.option(
    "--workspace", type=click.Path(path_type=Path), required=True, help="Folder for the LoRA and the checkpoints; what is there is used."
)
@click.option("--results", type=click.Path(path_type=Path), default=HERE / "results", help="Folder of the figures; what is there is kept.")
@click.option("--report", is_flag=True, help="Only write the table of what is there.")
def main(data: Path, images: int, weights: str, workspace: Path, results: Path, report: bool) -> None:
    """PSNR and SNR of a LoRA in the built-in UNet: refitted into the checkpoint without it, quantized again, and not at all."""
    out, study = Output(), Study(workspace, images, data)
    workspace.mkdir(parents=True, exist_ok=True)
    results.mkdir(parents=True, exist_ok=True)
    for weight in () if report else map(float, weights.split(",")):
        for preset in PRESETS:
            for way in WAYS:
                name = Figures(preset=preset, weight=weight, way=way, psnr_db=[], snr_db=[]).name
                file = results / f"{name}.json"
                if not file.is_file():
                    file.write_text(study.measure(preset, weight, way, out.progress).model_dump_json(indent=1) + "\n")
        (results / f"float-{weight:g}.txt").write_text(f"{study.changed_db(weight):.1f}\n")
    text = "\n".join([*_head(images), *section(results)]) + "\n"
    (results.parent / "RESULTS.md").write_text(text)
    out.text(text)


def _head(images: int) -> list[str]:
    return [
        "# Refitting a LoRA", "",
        f"`python -m benchmarks.refit --data DIR --workspace DIR`: the built-in UNet with a LoRA of rank {RANK}, trained for {STEPS} steps",
        f"on Fashion-MNIST's \"{STYLE}\". PSNR in dB of {images} images in 20 DDIM steps against the float model with the LoRA, from the",
        "same seeds (mean ± standard error, and the worst image); SNR in dB of the predictions (median over the timesteps), on the",
        "held-out samples of the checkpoint that was quantized again. Nothing trained, no dilation, 8 calibration samples, GPTQ unless it",
        "says nearest.",
        f"{machine_info()['cpu']}.",
    ]  # fmt: skip


def section(results: Path) -> list[str]:
    """A table for each format and weight of the LoRA that was measured."""
    cells = [Figures.model_validate_json(file.read_text()) for file in sorted(results.glob("*.json"))]
    lines: list[str] = []
    for weight, preset in sorted({(cell.weight, cell.preset) for cell in cells}, key=lambda pair: (pair[0], PRESETS.index(pair[1]))):
        changed = results / f"float-{weight:g}.txt"
        beside = f"; without the LoRA the float model's images have {changed.read_text().strip()} dB" if changed.is_file() else ""
        lines += ["", f"## {preset.upper()}, LoRA × {weight:g}{beside}", ""]
        lines += ["| | PSNR | worst image | SNR | |", "|---|---:|---:|---:|---|"]
        chosen = [cell for cell in cells if (cell.weight, cell.preset) == (weight, preset)]
        lines += [row(cell) for cell in sorted(chosen, key=lambda cell: WAYS.index(cell.way))]
    return lines


if __name__ == "__main__":
    main()
