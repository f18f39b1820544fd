"""Measure what is missing and write the table: every preset, several calibration seeds, one file each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import click
import numpy as np
import torch

from benchmarks.accuracy.bootstrap import mean_interval
from dq_deploy.console import Output
from dq_deploy.engines.devices.machine import machine_info

from .study import OWN, WAYS, Cell, Figures, Study

HERE = Path(__file__).parent
_FEWEST_FIRST = WAYS[::-1]
_NONE, _MOST = WAYS[-1], WAYS[0]


@click.command()
@click.option("--source", default="builtin:fashion-mnist-unet", show_default=True)
@click.option("--presets", default="w8a8,w4a4", show_default=True)
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Calibration sets.")
@click.option("--steps", type=click.IntRange(2), default=20, show_default=True, help="DDIM steps that the tables are made for.")
@click.option("--results", type=click.Path(path_type=Path), default=HERE / "results", help="Folder of the figures; what is there is kept.")
def main(source: str, presets: str, seeds: int, steps: int, results: Path) -> None:
    """What rows between the calibrated ones are worth under schedules that the tables were not made for."""
    out = Output()
    study = Study(source, steps)
    cells = [(preset, 1000 * index) for index in range(seeds) for preset in presets.split(",")]
    results.mkdir(parents=True, exist_ok=True)
    missing = [cell for cell in cells if not _file(results, *cell).is_file()]
    # Tables made for each schedule itself show what transfer costs at all: once is enough for that.
    each = 1 + len(WAYS) * len(study.schedules)
    total = sum(each + len(study.schedules) * (seed == 0) for _, seed in missing)
    with out.progress("schedules", total) as advance:
        for preset, seed in missing:
            cell = study.measure(preset, seed, own=seed == 0, advance=advance)
            _file(results, preset, seed).write_text(cell.model_dump_json() + "\n")
    found = [Cell.model_validate_json(_file(results, *cell).read_text()) for cell in cells]
    page = _page(source, steps, found)
    (results.parent / "RESULTS.md").write_text(page)
    out.text(page)


def _file(folder: Path, preset: str, seed: int) -> Path:
    return folder / f"{preset}-{seed}.json"


def _page(source: str, steps: int, cells: list[Cell]) -> str:
    lines = [
        "# Tables made for one schedule, used with another",
        "",
        f"`python -m benchmarks.schedules --source {source} --steps {steps}`: tables calibrated on {steps} DDIM steps, no dilation, no",
        "distillation, used with the schedule in the table. The gaps between the calibrated timesteps are divided into as many parts as",
        f"the column says: 1 is the nearest calibrated row, {_MOST} what a checkpoint is used with. SNR in dB of the quantized network",
        "against the float one on 8 held-out trajectories of the schedule, PSNR of 16 final pictures against the float model's from the",
        f"same noises. Mean over the calibration seeds; gain of {_MOST} over 1 with its standard deviation over them, and for PSNR also",
        "with the 95% interval of a paired bootstrap over all pictures. Own tables: calibrated on the schedule itself, calibration seed 0.",
        f"PyTorch {torch.__version__}, {machine_info()['cpu']}.",
        "",
    ]
    for preset in dict.fromkeys(cell.preset for cell in cells):
        chosen = [cell for cell in cells if cell.preset == preset]
        lines += [f"## {preset.upper()}, {len(chosen)} calibration seeds", ""]
        lines += [f"| schedule | figure | {' | '.join(_FEWEST_FIRST)} | gain | own tables |", f"|---|---|{'---:|' * len(WAYS)}---|---:|"]
        for schedule in chosen[0].schedules:
            lines += _rows(schedule, [cell.schedules[schedule] for cell in chosen])
        lines.append("")
    return "\n".join(lines)


_FIGURES: dict[str, Callable[[Figures], float]] = {
    "SNR, median timestep": lambda f: float(np.median(f.snr_db)),
    "SNR, worst timestep": lambda f: float(np.min(f.snr_db)),
    "SNR, mean over timesteps": lambda f: float(np.mean(f.snr_db)),
    "PSNR of pictures": lambda f: float(np.mean(f.psnr_db)),
}


def _rows(schedule: str, found: list[dict[str, Figures]]) -> Iterable[str]:
    for figure, reduce in _FIGURES.items():
        by_way = {way: np.array([reduce(ways[way]) for ways in found]) for way in _FEWEST_FIRST}
        gain = by_way[_MOST] - by_way[_NONE]
        spread = f" ± {gain.std(ddof=1):.2f}" if len(gain) > 1 else ""
        if figure.startswith("PSNR"):
            pairs = np.concatenate([np.array(ways[_MOST].psnr_db) - np.array(ways[_NONE].psnr_db) for ways in found])
            interval = mean_interval(pairs)
            spread += f" [{interval.low:+.2f}, {interval.high:+.2f}]"
        own = [reduce(ways[OWN]) for ways in found if OWN in ways]
        name = schedule if figure == next(iter(_FIGURES)) else ""
        means = " | ".join(f"{values.mean():.2f}" for values in by_way.values())
        yield f"| {name} | {figure} | {means} | {gain.mean():+.2f}{spread} | {f'{own[0]:.2f}' if own else ''} |"


if __name__ == "__main__":
    main()
