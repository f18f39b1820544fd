"""RESULTS.md and its picture, from the results of the runs."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch

from dq_deploy.console import Output
from dq_deploy.engines.devices.machine import machine_info

from .study import KINDS, Setting

mpl.use("Agg")
from matplotlib import pyplot as plt

_METRICS = {"snr_mean_db": "mean SNR over the timesteps", "psnr_mean_db": "PSNR of final pictures"}


def time_to(runs: list[dict[str, Any]], metric: str, level: float) -> float | None:
    """CPU seconds at which a curve first reaches ``level``, between two runs by the logarithm of time; None if it never does."""
    for before, after in pairwise(runs):
        low, high = before[metric], after[metric]
        if low < level <= high:
            share = (level - low) / (high - low)
            return float(np.exp((1 - share) * np.log(before["cpu_s"]) + share * np.log(after["cpu_s"])))
    return runs[0]["cpu_s"] if runs and runs[0][metric] >= level else None


def write_report(results: Path, setting: Setting, page: Path, out: Output) -> None:
    """Write the page and the picture beside it."""
    runs = [json.loads(path.read_text()) for path in sorted(results.glob("*.json"))]
    curves = {kind: sorted((r for r in runs if "snr_db" in r and r["kind"] == kind and r["iterations"]), key=lambda r: r["cpu_s"])
              for kind in KINDS}  # fmt: skip
    start = next(r for r in runs if "snr_db" in r and not r["iterations"])
    memory = {r["kind"]: r for r in runs if "peak_bytes" in r}
    _draw(curves, start, page.with_name("curves.png"))
    ratio = memory["block"]["peak_bytes"] / memory["end-to-end"]["peak_bytes"]
    rows = "\n".join(_row(run) for run in [start, *curves["block"], *curves["end-to-end"]])
    verdicts = "\n".join(_verdict(curves, metric) for metric in _METRICS)
    page.write_text(f"""# Block-wise against end-to-end distillation

`python -m benchmarks.distillation`: `{setting.source}`, {setting.preset.upper()}, batch {setting.batch_size}, {setting.calibration_samples}
trajectories of 20 steps. Both start from the same initialized network, calibration data and options; only what is trained at once differs.
{torch.get_num_threads()} thread, {machine_info()["cpu"]}, PyTorch {torch.__version__}. One seed.

## Peak memory

Resident memory at its peak (`VmHWM`) minus what was resident when model, graphs and calibration data had been loaded, each kind in a
process of its own, two iterations. The values between the blocks lie in files that are read with plain reads, so the system's cache of them
is not a part of it.

| | above the loaded model | ratio |
|---|---:|---:|
| block by block | {memory["block"]["peak_bytes"] / 1e6:.0f} MB | {ratio:.2f} |
| end to end | {memory["end-to-end"]["peak_bytes"] / 1e6:.0f} MB | 1 |

Wanted: ≤ 0.5; the paper has 0.34.

## Quality over time

Each row is a run of its own with its own cosine schedule. CPU seconds of the distillation alone (the machine was shared, and CPU time
depends least on that). SNR of the network's output and PSNR of final pictures are against the float network, from {setting.pictures} noises
that were never calibrated on.

| distillation | iterations | CPU time | mean SNR | worst step | PSNR |
|---|---:|---:|---:|---:|---:|
{rows}

![curves](curves.png)

{verdicts}
""")
    out.text(page.read_text())


def _row(run: dict[str, Any]) -> str:
    name = run["kind"] if run["iterations"] else "none"
    return (
        f"| {name} | {run['iterations']} | {run['cpu_s']:.0f} s | {run['snr_mean_db']:.2f} dB | {min(run['snr_db']):.2f} dB"
        f" | {run['psnr_mean_db']:.2f} dB |"
    )


def _verdict(curves: dict[str, list[dict[str, Any]]], metric: str) -> str:
    """What the goal of a third of the time came to."""
    best = max(curves["end-to-end"], key=lambda r: r[metric])
    level, name = best[metric], _METRICS[metric]
    reached = time_to(curves["block"], metric, level)
    if reached is None:
        top = max(curves["block"], key=lambda r: r[metric])
        return (
            f"- {name}: end-to-end's best, {level:.2f} dB in {best['cpu_s']:.0f} s, was not reached block by block"
            f" (best {top[metric]:.2f} dB in {top['cpu_s']:.0f} s). Goal of 3 × less time: missed."
        )
    first = time_to(curves["end-to-end"], metric, level) or best["cpu_s"]
    goal = "met" if first / reached >= 3 else "missed"
    times = f"{level:.2f} dB took {first:.0f} s end to end and {reached:.0f} s block by block"
    return f"- {name}: {times}, {first / reached:.1f} × less. Goal of 3 ×: {goal}."


def _draw(curves: dict[str, list[dict[str, Any]]], start: dict[str, Any], path: Path) -> None:
    figure, axes = plt.subplots(1, len(_METRICS), figsize=(10, 3.6), constrained_layout=True)
    for axis, (metric, label) in zip(axes, _METRICS.items(), strict=True):
        for kind, runs in curves.items():
            axis.plot([r["cpu_s"] for r in runs], [r[metric] for r in runs], marker="o", label=kind)
        axis.axhline(start[metric], color="grey", linestyle=":", label="not distilled")
        axis.set(xscale="log", xlabel="CPU seconds of distillation", ylabel=f"{label} (dB)")
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
