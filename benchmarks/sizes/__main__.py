"""Accuracy and time of free sizes: ``python -m benchmarks.sizes --help``."""

from __future__ import annotations

from pathlib import Path
from statistics import median

import click
import torch

from benchmarks.accuracy.settings import model_name
from dq_deploy.commands.bench import show_bench
from dq_deploy.console import Output
from dq_deploy.engines.devices.machine import machine_info
from dq_deploy.quantization import QuantizeConfig

from .study import Figures, measure, options, timed

_SPEED = "## Speed"
HERE = Path(__file__).parent


@click.command()
@click.option("--source", default="builtin:fashion-mnist-unet", show_default=True)
@click.option("--sizes", default="32x32,40x32,48x48", show_default=True, help="The first is the one that is timed.")
@click.option("--presets", default="w8a8,w4a8", show_default=True)
@click.option("--steps", type=click.IntRange(1), default=20, show_default=True, help="T.")
@click.option("--calibration-samples", type=click.IntRange(6), default=24, show_default=True)
@click.option("--speed", is_flag=True, help="Time the free bundle against a fixed one instead, on OpenVINO and ONNX Runtime.")
@click.option("--runs", default=200, show_default=True, help="Timed runs of each.")
def main(source: str, sizes: str, presets: str, steps: int, calibration_samples: int, speed: bool, runs: int) -> None:
    """Compare tables that all sizes share with each size's own; or, with --speed, the time of free and fixed sizes."""
    out = Output()
    chosen = QuantizeConfig.build(sizes=sizes.split(",")).sizes
    if speed:
        settings = options(calibration_samples, 4, "w8a8")
        show_bench(timed(source, chosen, settings, ["openvino", "onnxruntime"], runs), out)
        return
    page = [
        "# Free sizes: shared tables", "",
        f"`python -m benchmarks.sizes --sizes {sizes} --presets {presets} --steps {steps} --calibration-samples",
        f"{calibration_samples}`:",
        f"{model_name(source)}, SNR in dB of the output against the float model's on 8 held-out seeds, median / worst step. The checkpoint",
        "of all sizes has its samples dealt to them, each size's own checkpoint has as many for itself. GPTQ, nothing trained.",
        f"PyTorch {torch.__version__}, {machine_info()['cpu']}.", "",
    ]  # fmt: skip
    speed_as_noted = "".join((HERE / "RESULTS.md").read_text().partition(_SPEED)[1:])  # --speed prints it
    for preset in presets.split(","):
        found = measure(source, chosen, options(calibration_samples, steps, preset))
        page += [f"## {preset.upper()}", "", *_table(found), ""]
        text = "\n".join(page)
        (HERE / "RESULTS.md").write_text(text + speed_as_noted)
    out.text(text)


def _table(found: list[Figures]) -> list[str]:
    lines = ["| height × width | tables of all sizes | its own | difference of the means |", "|---|---:|---:|---:|"]
    for row in found:
        own = "not calibrated" if row.own_db is None else _cell(row.own_db)
        difference = "" if row.own_db is None else f"{_mean(row.shared_db) - _mean(row.own_db):+.2f}"
        lines.append(f"| {row.size} | {_cell(row.shared_db)} | {own} | {difference} |")
    return lines


def _mean(snr: list[float]) -> float:
    return sum(snr) / len(snr)


def _cell(snr: list[float]) -> str:
    return f"{median(snr):.1f} / {min(snr):.1f}"


if __name__ == "__main__":
    main()
