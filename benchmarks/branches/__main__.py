"""Guided networks whose tables serve both halves, against ones with tables for each half; untrained, judged on other seeds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
import torch
from torch.fx import GraphModule

from benchmarks.accuracy.drawing import as_pictures
from benchmarks.networks.network import NAMES, network
from dq_deploy.console import Output
from dq_deploy.decibels import psnr_db
from dq_deploy.progress import silent
from dq_deploy.quantization.calibration.source import Request
from dq_deploy.quantization.calibration.trajectories import Trajectories
from dq_deploy.quantization.checkpoint import freeze
from dq_deploy.quantization.config import QuantizeConfig
from dq_deploy.quantization.graph.calls import as_model
from dq_deploy.quantization.graph.plan import make_plan
from dq_deploy.quantization.initial.initialize import initialize
from dq_deploy.quantization.pipeline import copy_with_quantizers, per_timestep_snr
from dq_deploy.quantization.prepare import Prepared, prepare

_HELD_OUT = 500_000  # the first seed that is judged on
_HALVES = 2
_FIGURES = "figures.json"
_COLUMNS = ("network", "bits", "guidance", "tables", "median SNR", "worst step", "PSNR", "sd over seeds", "gain ± standard error")


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME…")
@click.option("--presets", default="w8a8,w4a4", show_default=True, help="With commas.")
@click.option("--guidance-scale", type=float, default=4.0, show_default=True)
@click.option("--calibration-samples", type=click.IntRange(2), default=16, show_default=True)
@click.option("--steps", type=click.IntRange(2), default=10, show_default=True)
@click.option("--samples", type=click.IntRange(2), default=16, show_default=True, help="Held-out seeds to judge by.")
@click.option("--results", type=click.Path(path_type=Path), default=Path("benchmarks/branches"), show_default=True)
def main(names: tuple[str, ...], presets: str, guidance_scale: float, calibration_samples: int, steps: int, samples: int,
         results: Path) -> None:  # fmt: skip
    """NAME is a built-in or one of benchmarks/networks with classes. What is recorded below --results is not measured again."""
    output, file = Output(), results / _FIGURES
    found: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    options = {"guidance_scale": guidance_scale, "calibration_samples": calibration_samples, "steps": steps, "reference_samples": samples}
    for name in names:
        for preset in presets.split(","):
            key = " ".join([name, preset, *(f"{option}={value}" for option, value in options.items())])
            if key not in found:
                found[key] = {"network": name, "preset": preset, **options, **_measured(name, preset, options)}
                file.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
            output.note(f"{key}: {found[key]['both']['psnr_db']:.2f} and {found[key]['each']['psnr_db']:.2f} dB")
    output.table("untrained", _COLUMNS, [row for entry in found.values() if entry["network"] in names for row in _rows(entry)])


def _measured(name: str, preset: str, options: dict[str, Any]) -> dict[str, Any]:
    config = QuantizeConfig.build(
        preset, **options, dilation="none", rounding="nearest", output_bias=False, iterations=0, max_float_share=0.2
    )
    prepared = _prepared(name, config)
    call, seeds = as_model(prepared.float_graph), range(_HELD_OUT, _HELD_OUT + config.reference_samples)
    data = prepared.calibration.collect(call, range(config.calibration_samples), silent)
    held_out = prepared.calibration.collect(call, seeds, silent)
    expected = _pictures(prepared, call, seeds)
    joint = as_model(_quantized(prepared, config, data))
    parts = [as_model(_quantized(prepared, config, _half(data, half))) for half in range(_HALVES)]

    def each(sample: torch.Tensor, timestep: torch.Tensor, **conditions: torch.Tensor) -> torch.Tensor:
        """The halves of a seed are adjacent."""
        outputs = [
            part(sample[half::_HALVES], timestep[half::_HALVES], **{k: v[half::_HALVES] for k, v in conditions.items()})
            for half, part in enumerate(parts)
        ]
        return torch.stack(outputs, dim=1).flatten(0, 1)

    return {way: _figures(prepared, model, held_out, expected, seeds) for way, model in (("both", joint), ("each", each))}


def _half(data: Trajectories, half: int) -> Trajectories:
    """Those of one half of each seed: with the condition, or without."""
    conditions = {name: value[half::_HALVES] for name, value in data.conditions.items()}
    samples, outputs = data.samples[:, half::_HALVES], data.outputs[:, half::_HALVES]
    return replace(data, samples=samples, outputs=outputs, conditions=conditions, per_seed=1)


def _quantized(prepared: Prepared, config: QuantizeConfig, data: Trajectories) -> GraphModule:
    quantized = copy_with_quantizers(prepared.float_graph, make_plan(prepared.float_graph, config), data.timesteps)
    initialize(prepared.float_graph, quantized, data, config)
    freeze(quantized)
    return quantized


def _figures(prepared: Prepared, model: Any, held_out: Trajectories, expected: Any, seeds: range) -> dict[str, Any]:
    snr = per_timestep_snr(model, held_out)
    psnr = psnr_db(expected, _pictures(prepared, model, seeds)).tolist()
    figures = {"snr_db": snr, "median_snr_db": median(snr), "worst_snr_db": min(snr), "psnr_by_seed": [round(x, 3) for x in psnr]}
    return {**figures, "psnr_db": round(float(np.mean(psnr)), 3)}


@torch.inference_mode()
def _pictures(prepared: Prepared, call: Any, seeds: range) -> Any:
    def answer(samples: torch.Tensor, timestep: float, conditions: Any) -> torch.Tensor:
        inputs = samples.flatten(0, 1)
        output: torch.Tensor = call(inputs, torch.full((len(inputs),), timestep), **conditions)
        return output[None]

    form = prepared.float_graph.meta["output"]
    return as_pictures(prepared.calibration.final_samples(answer, seeds, slice(None), 1, form)[0].numpy())


def _prepared(name: str, config: QuantizeConfig) -> Prepared:
    if name not in NAMES:
        return prepare(f"builtin:{name}", config, Request())
    made = network(name).make()
    null = {parameter: _nothing(values) for parameter, values in made["conditions"].items()}
    request = Request(made["scheduler"], made["sample_shape"], conditions=made["conditions"], null_conditions=null)
    return prepare(made["model"], config, request)


def _nothing(values: torch.Tensor) -> torch.Tensor:
    """The class after the last one [1], or a text [1, L, D] of zeros, as SDXL's is where nothing is given."""
    return torch.zeros_like(values[:1]) if values.is_floating_point() else values.max().reshape(1) + 1


def _rows(entry: dict[str, Any]) -> list[tuple[object, ...]]:
    both = np.array(entry["both"]["psnr_by_seed"])
    rows = []
    for way in ("both", "each"):
        found = entry[way]
        figures = (f"{found[key]:.1f}" for key in ("median_snr_db", "worst_snr_db", "psnr_db"))
        gain = np.array(found["psnr_by_seed"]) - both
        told = f"{gain.mean():+.2f} ± {gain.std(ddof=1) / len(gain) ** 0.5:.2f}"
        rows.append((entry["network"], entry["preset"], entry["guidance_scale"], way, *figures, f"{both.std():.1f}", told))
    return rows


if __name__ == "__main__":
    main()
