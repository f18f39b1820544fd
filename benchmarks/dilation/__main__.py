"""Measure what is missing and write the table: every preset, several calibration seeds, one file each."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import torch

from benchmarks.accuracy.settings import model_name
from dq_deploy.console import Output
from dq_deploy.engines.devices.machine import machine_info

from .study import Figures, Study

HERE = Path(__file__).parent


@click.command()
@click.option("--sources", default="builtin:fashion-mnist-unet,builtin:fashion-mnist-dit", show_default=True)
@click.option("--presets", default="w8a8,w6a6,w4a8,w4a4", show_default=True)
@click.option("--seeds", type=click.IntRange(1), default=5, show_default=True, help="Calibration sets.")
@click.option("--steps", type=click.IntRange(1), default=20, show_default=True, help="T.")
@click.option("--relaxations", default="0.5", show_default=True, help="Values of r for the layerwise rule, with commas.")
@click.option("--results", type=click.Path(path_type=Path), default=HERE / "results", help="Folder of the figures; what is there is kept.")
def main(sources: str, presets: str, seeds: int, steps: int, relaxations: str, results: Path) -> None:
    """Compare the rules of weight dilation by the network's SNR before any training."""
    out = Output()
    cells = [(preset, 1000 * index) for index in range(seeds) for preset in presets.split(",")]
    page = _head(sources, seeds)
    for source in sources.split(","):
        study = Study(source, steps, [float(r) for r in relaxations.split(",") if r])
        found = _measured(study, cells, results / model_name(source), out)
        page += [f"## {model_name(source)}", ""]
        for preset in presets.split(","):
            page += _table(preset, [f for f in found if f.preset == preset], list(study.variants()))
    text = "\n".join(page)
    (results.parent / "RESULTS.md").write_text(text)
    out.text(text)


def _measured(study: Study, cells: list[tuple[str, int]], folder: Path, out: Output) -> list[Figures]:
    """The figures of the cells (preset, seed); those that are in the folder with every rule are not measured again."""
    found = {
        cell: figures for cell in cells if (figures := _read(_file(folder, *cell))) and figures.rules.keys() >= study.variants().keys()
    }
    missing = [cell for cell in cells if cell not in found]
    folder.mkdir(parents=True, exist_ok=True)
    with out.progress(f"rules, {folder.name}", len(missing) * len(study.variants())) as advance:
        for cell in missing:
            found[cell] = study.measure(*cell, advance)
            _file(folder, *cell).write_text(found[cell].model_dump_json(indent=1) + "\n")
    return [found[cell] for cell in cells]


def _read(file: Path) -> Figures | None:
    return Figures.model_validate_json(file.read_text()) if file.is_file() else None


def _file(folder: Path, preset: str, seed: int) -> Path:
    return folder / f"{preset}-{seed}.json"


def _head(sources: str, seeds: int) -> list[str]:
    return [
        "# Weight dilation before any training",
        "",
        f"`python -m benchmarks.dilation --sources {sources} --seeds {seeds}`: SNR in dB of the quantized network against",
        "the float one on 8 held-out seeds, median over the timesteps, mean over the calibration seeds; in brackets the gain over no",
        "dilation, ± its standard deviation over the calibration seeds. Judged: what `auto` goes by, the mean over the timesteps on",
        f"4 other seeds. PyTorch {torch.__version__}, {machine_info()['cpu']}.",
        "",
    ]


def _table(preset: str, found: list[Figures], variants: list[str]) -> list[str]:
    lines = [f"### {preset.upper()}, {len(found)} calibration seeds", ""]
    lines += ["| rule | judged | median step | worst step | Δ'x/Δx | dilated tensors |", "|---|---:|---:|---:|---:|---:|"]
    auto = [f.auto() for f in found]
    none = [f.rules["none"] for f in found]
    for name in [*variants, "auto"]:
        chosen = [f.rules[auto[i] if name == "auto" else name] for i, f in enumerate(found)]
        cells = [_gain([c.judged_db for c in chosen], [n.judged_db for n in none])]
        cells += [_gain([reduce(c.snr_db) for c in chosen], [reduce(n.snr_db) for n in none]) for reduce in (np.median, np.min)]
        ratio, dilated = np.mean([c.range_ratio for c in chosen]), np.mean([len(c.dilated) for c in chosen])
        lines.append(f"| {name} | {' | '.join(cells)} | {ratio:.3f} | {dilated:.0f} |")
    layers = sorted({layer for i, f in enumerate(found) for layer in f.rules[auto[i]].dilated})
    share = np.mean([f.rules["none"].unsaturated_share for f in found])
    lines += ["", f"auto took {', '.join(auto)}. Unsaturated input channels: {share:.0%}.", ""]
    lines += ["<details><summary>Tensors that auto dilated for at least one seed</summary>", ""]
    lines += [", ".join(f"`{layer}`" for layer in layers), "", "</details>", ""]
    return lines


def _gain(values: list[float], none: list[float]) -> str:
    difference = np.array(values) - np.array(none)
    spread = f" ± {difference.std(ddof=1):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f} ({difference.mean():+.1f}{spread})"


if __name__ == "__main__":
    main()
