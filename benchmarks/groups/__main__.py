"""The command: train the network of moving garments, or judge the rules of ``--sensitivity``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from dq_deploy.console import Output
from dq_deploy.errors import DqDeployError

from . import garments
from .study import RULES, measured

_FIGURES = "figures.json"
_ASPECTS = ("the prediction", "what the condition changes", "what changes between frames", "final", "final, between frames")


@click.group()
def main() -> None:
    """``--sensitivity decoupled`` against ``snr``: which layers they raise, and what that costs."""


@main.command()
@click.option("--minutes", type=click.FloatRange(0, min_open=True), default=15.0, show_default=True, help="Beyond what it had.")
def train(minutes: float) -> None:
    """Train the network of moving garments on one thread, from where it was left. Its weights lie in the user's cache."""
    torch.set_num_threads(1)
    output = Output()
    try:
        output.note(f"{garments.train(minutes, output.progress)} steps")
    except DqDeployError as error:
        output.error(error)
        sys.exit(error.exit_code)


@main.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME…")
@click.option("--presets", default="w4a8", show_default=True, help="With commas.")
@click.option("--budgets", default="0.16x,0.18x,0.2x", show_default=True, help="With commas.")
@click.option("--guidance-scale", type=float, default=3.0, show_default=True)
@click.option("--calibration-samples", type=click.IntRange(2), default=8, show_default=True)
@click.option("--steps", type=click.IntRange(2), default=10, show_default=True)
@click.option("--samples", type=click.IntRange(2), default=16, show_default=True, help="Held-out seeds to judge by.")
@click.option("--results", type=click.Path(path_type=Path), default=Path("benchmarks/groups"), show_default=True)
def measure(names: tuple[str, ...], presets: str, budgets: str, guidance_scale: float, calibration_samples: int, steps: int, samples: int,
            results: Path) -> None:  # fmt: skip
    """NAME is garments. What is recorded below --results is not measured again."""
    torch.set_num_threads(1)
    output, file = Output(), results / _FIGURES
    found: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    options = {"guidance_scale": guidance_scale, "calibration_samples": calibration_samples, "steps": steps, "samples": samples}
    rows = []
    try:
        for name, preset, budget in ((n, p, b) for n in names for p in presets.split(",") for b in budgets.split(",")):
            entries = []
            for rule in RULES:
                key = " ".join([name, preset, budget, rule, *(f"{option}={value}" for option, value in options.items())])
                if key not in found:
                    found[key] = measured(name, preset, budget, rule, options)
                    file.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
                entries.append(found[key])
                rows.append((name, preset, budget, rule, *_row(found[key], entries[0])))
    except DqDeployError as error:
        output.error(error)
        sys.exit(error.exit_code)
    columns = ("network", "preset", "budget", "rule", "weights", "raised", "others than snr", *_ASPECTS, "gain ± standard error")
    output.table("SNR in dB", columns, rows)


def _row(entry: dict[str, Any], first: dict[str, Any]) -> tuple[str, ...]:
    figures = (f"{np.mean(entry[name]):.1f}" if name in entry else "" for name in _ASPECTS)
    gain = np.array(entry["final"]) - np.array(first["final"])
    told = f"{gain.mean():+.2f} ± {gain.std(ddof=1) / len(gain) ** 0.5:.2f}"
    others = len(set(entry["raised"]) - set(first["raised"]))
    return f"{entry['weights']:.3f}", str(len(entry["raised"])), str(others), *figures, told


if __name__ == "__main__":
    main()
