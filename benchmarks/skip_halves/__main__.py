"""Measure what is missing and write the table: every preset, several calibration seeds, one file each."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import torch

from dq_deploy.console import Output
from dq_deploy.engines.devices.machine import machine_info

from .study import Figures, Study

HERE = Path(__file__).parent


@click.command()
@click.option("--source", default="builtin:fashion-mnist-unet", show_default=True)
@click.option("--presets", default="w8a8,w6a6,w4a8,w4a4", show_default=True)
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Calibration sets.")
@click.option("--steps", type=click.IntRange(1), default=20, show_default=True, help="T.")
@click.option("--dilation", default="none", show_default=True, help="The rule of both; `none` compares the quantizers alone.")
@click.option("--results", type=click.Path(path_type=Path), default=HERE / "results", help="Folder of the figures; what is there is kept.")
def main(source: str, presets: str, seeds: int, steps: int, dilation: str, results: Path) -> None:
    """Compare one quantizer over a concatenated skip with one for each half, by the network's SNR before any training."""
    out = Output()
    folder = results / source.rsplit(":", 1)[-1].replace("/", "_") / dilation
    folder.mkdir(parents=True, exist_ok=True)
    cells = [(preset, 1000 * index) for index in range(seeds) for preset in presets.split(",")]
    missing = [cell for cell in cells if not _file(folder, *cell).is_file()]
    if missing:
        study = Study(source, steps, dilation)
        with out.progress("skip halves", len(missing)) as advance:
            for preset, seed in missing:
                _file(folder, preset, seed).write_text(study.measure(preset, seed).model_dump_json(indent=1) + "\n")
                advance(1, f"{preset}, seed {seed}")
    found = [Figures.model_validate_json(_file(folder, *cell).read_text()) for cell in cells]
    out.text(_page(source, dilation, found))


def _file(folder: Path, preset: str, seed: int) -> Path:
    return folder / f"{preset}-{seed}.json"


def _page(source: str, dilation: str, found: list[Figures]) -> str:
    lines = [
        f"`python -m benchmarks.skip_halves --source {source} --dilation {dilation}`: SNR in dB against the float network, mean over the",
        f"calibration seeds; gain of split over joint ± its standard deviation. PyTorch {torch.__version__}, {machine_info()['cpu']}.",
        "",
        "| preset | median step: joint | split | gain | worst step: joint | split | gain |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for preset in dict.fromkeys(f.preset for f in found):
        figures = [f.snr_db for f in found if f.preset == preset]
        cells = []
        for reduce in (np.median, np.min):
            joint, split = (np.array([reduce(f[mode]) for f in figures]) for mode in ("joint", "split"))
            gain = split - joint
            spread = f" ± {gain.std(ddof=1):.2f}" if len(gain) > 1 else ""
            cells += [f"{joint.mean():.2f}", f"{split.mean():.2f}", f"{gain.mean():+.2f}{spread}"]
        lines.append(f"| {preset} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
