"""Networks quantized with each number format and source of activation scales, untrained, judged on seeds that nothing was fitted to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
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
from dq_deploy.commands.options import parse_keep
from dq_deploy.console import Output
from dq_deploy.decibels import psnr_db
from dq_deploy.formats import FP8, Activations, ScaleSource
from dq_deploy.progress import silent
from dq_deploy.quantization.bits.format_choice import choose_formats, take_formats
from dq_deploy.quantization.calibration.source import Request
from dq_deploy.quantization.calibration.trajectories import Trajectories
from dq_deploy.quantization.checkpoint import freeze
from dq_deploy.quantization.choices import Rotation
from dq_deploy.quantization.config import QuantizeConfig
from dq_deploy.quantization.graph.blocks import assign_blocks
from dq_deploy.quantization.graph.calls import as_model
from dq_deploy.quantization.graph.modules import named_quantizers
from dq_deploy.quantization.graph.plan import plan_with_branches
from dq_deploy.quantization.initial.initialize import initialize
from dq_deploy.quantization.initial.rotation_choice import choose_rotations, take_rotations
from dq_deploy.quantization.initial.scale_choice import choose_scales, take_choices
from dq_deploy.quantization.pipeline import copy_with_quantizers, per_timestep_snr
from dq_deploy.quantization.prepare import Prepared, prepare
from dq_deploy.quantization.quantizers import StaticQuantizer
from dq_deploy.quantization.rounding.layerwise import round_weights

_HELD_OUT = 500_000  # the first seed that is judged on
_FIGURES = "figures.json"
_COLUMNS = ("network", "bits", "scales", "rotation", "median SNR", "worst step", "PSNR", "sd over seeds", "per token")


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME…")
@click.option("--presets", default="w8a8", show_default=True, help="With commas.")
@click.option("--scales", default=",".join(Activations), show_default=True, help="With commas.")
@click.option("--dilation", default="none", show_default=True, help="preset: what each preset takes.")
@click.option("--rounding", type=click.Choice(["nearest", "gptq"]), default="nearest", show_default=True)
@click.option(
    "--rotation", type=click.Choice([r.value for r in Rotation]), default="none", show_default=True, help="As quantize --rotation."
)
@click.option("--keep", multiple=True, metavar="PATTERN=BITS|float", help="As quantize --keep.")
@click.option(
    "--formats",
    type=click.Choice(["chosen", "all"]),
    default="chosen",
    show_default=True,
    help="Of nvfp4: FP8 for the layers that lose most, or FP4 for all that can.",
)
@click.option(
    "--attention",
    type=click.Choice(["preset", "fp8"]),
    default="preset",
    show_default=True,
    help="Of fp8: leave attention in float, as the preset does, or give it FP8 codes with a constant scale for each operand.",
)
@click.option("--low-rank", type=click.IntRange(0), default=0, show_default=True, help="As quantize --low-rank.")
@click.option("--calibration-samples", type=click.IntRange(2), default=8, show_default=True)
@click.option("--steps", type=click.IntRange(2), default=10, show_default=True)
@click.option("--samples", type=click.IntRange(2), default=8, show_default=True, help="Held-out seeds to judge by.")
@click.option("--results", type=click.Path(path_type=Path), default=Path("benchmarks/activations"), show_default=True)
def main(names: tuple[str, ...], presets: str, scales: str, dilation: str, rounding: str, rotation: str, keep: tuple[str, ...],
         formats: str, attention: str, low_rank: int,
         calibration_samples: int, steps: int, samples: int, results: Path) -> None:  # fmt: skip
    """NAME is a built-in or one of benchmarks/networks. SNR of the network's output over the steps, and PSNR of the final samples, in dB.

    What is recorded in the folder of --results is not measured again.
    """
    output, file = Output(), results / _FIGURES
    found: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    options: dict[str, Any] = {
        "dilation": dilation,
        "calibration_samples": calibration_samples,
        "steps": steps,
        "reference_samples": samples,
    }
    options |= {"rounding": rounding} if rounding != "nearest" else {}  # the others were measured before there was a choice
    options |= {"rotation": rotation} if rotation != "none" else {}
    options |= {"keep": dict(map(parse_keep, keep))} if keep else {}
    options |= {"attention": attention} if attention != "preset" else {}
    options |= {"low_rank": low_rank} if low_rank else {}
    options |= {"formats": formats} if formats != "chosen" else {}
    for name in names:
        wanted = [(p, s) for p in presets.split(",") for s in scales.split(",") if _key(name, p, s, options) not in found]
        for preset, chosen, figures in _measured(name, wanted, options):
            found[_key(name, preset, chosen, options)] = {"network": name, "preset": preset, "scales": chosen, **options, **figures}
            file.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
            output.note(f"{name} {preset} {chosen}: PSNR {figures['psnr_db']:.2f}, worst step {figures['worst_snr_db']:.2f}")
    output.table("untrained", _COLUMNS, [_row(entry) for entry in found.values() if entry["network"] in names])


def _key(name: str, preset: str, scales: str, options: dict[str, Any]) -> str:
    return " ".join([name, preset, scales, *(f"{key}={value}" for key, value in options.items())])


def _measured(name: str, wanted: list[tuple[str, str]], options: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Figures of each preset and source of scales, all from the same trajectories."""
    if not wanted:
        return
    given = {"rounding": "nearest", **options, "max_float_share": 0.2, "iterations": 0}
    choose, low_rank = given.pop("formats", "chosen") == "chosen", given.pop("low_rank", 0)
    in_fp8 = given.pop("attention", "preset") == "fp8"
    given |= {"dilation": None} if given["dilation"] == "preset" else {}
    config = QuantizeConfig.build(**given)
    by_halves = {config.skip_halves: _prepared(name, config)}
    prepared = by_halves[config.skip_halves]
    call = as_model(prepared.float_graph)
    data = prepared.calibration.collect(call, range(config.calibration_samples), silent)
    seeds = range(_HELD_OUT, _HELD_OUT + config.reference_samples)
    held_out = prepared.calibration.collect(call, seeds, silent)
    expected = _pictures(prepared, prepared.float_graph, seeds)
    for preset, scales in wanted:
        chosen = QuantizeConfig.build(preset, activations=scales, **given)
        if chosen.skip_halves not in by_halves:
            by_halves[chosen.skip_halves] = _prepared(name, chosen)
        prepared, chosen = by_halves[chosen.skip_halves], chosen.model_copy(update={"low_rank": low_rank})  # branches are in a copy
        snr, pictures, share = _quantized(prepared, chosen, data, held_out, seeds, choose=choose, in_fp8=in_fp8)
        psnr = psnr_db(expected, pictures).tolist()
        figures = {"snr_db": snr, "median_snr_db": median(snr), "worst_snr_db": min(snr), "psnr_by_seed": [round(x, 3) for x in psnr]}
        yield preset, scales, {**figures, "per_token": round(share, 3), "psnr_db": round(float(np.mean(psnr)), 3)}


def _quantized(
    prepared: Prepared, config: QuantizeConfig, data: Trajectories, held_out: Trajectories, seeds: range, *, choose: bool, in_fp8: bool
) -> tuple[list[float], Any, float]:
    graph = deepcopy(prepared.float_graph, {id(tensor): tensor for tensor in prepared.float_graph.buffers()})
    plan = plan_with_branches(graph, config)
    assign_blocks(graph, plan)  # of the nodes that branches added too
    for layer in plan.layers if in_fp8 else ():
        if layer.op == "matmul" and layer.activation_format is FP8:
            layer.float_reason, layer.quantizer, layer.probabilities = None, StaticQuantizer.kind, False
    if choose and any(layer.activation_format.block for layer in plan.quantized):
        take_formats(plan, choose_formats(replace(prepared, config=config, float_graph=graph, plan=plan), data), config)
    if config.activations is Activations.AUTO:
        take_choices(plan, choose_scales(graph, plan, data, config))
    if config.rotation is not Rotation.NONE:
        take_rotations(graph, plan.layers, choose_rotations(graph, plan, data, config))
    quantized = copy_with_quantizers(graph, plan, data.timesteps)
    initialize(graph, quantized, data, config)
    round_weights(quantized, data, config)
    freeze(quantized)
    computed = [quantizer.source is ScaleSource.COMPUTED and not quantizer.format.block for _, quantizer in named_quantizers(quantized)]
    return per_timestep_snr(as_model(quantized), held_out), _pictures(prepared, quantized, seeds), sum(computed) / len(computed)


@torch.inference_mode()
def _pictures(prepared: Prepared, graph: GraphModule, seeds: range) -> Any:
    call = as_model(graph)

    def answer(samples: torch.Tensor, timestep: float, conditions: Any) -> torch.Tensor:
        inputs = samples.flatten(0, 1)
        only = {name: value[0] for name, value in conditions.items()}  # of one run
        return call(inputs, torch.full((len(inputs),), timestep), **only)[None]

    form = prepared.float_graph.meta["output"]
    return as_pictures(prepared.calibration.final_samples(answer, seeds, slice(None), 1, form)[0].numpy())


def _prepared(name: str, config: QuantizeConfig) -> Prepared:
    if name not in NAMES:
        return prepare(f"builtin:{name}", config, Request())
    made = network(name).make()
    return prepare(made["model"], config, Request(made["scheduler"], made["sample_shape"], conditions=made.get("conditions")))


def _row(entry: dict[str, Any]) -> tuple[object, ...]:
    figures = (f"{entry[key]:.1f}" for key in ("median_snr_db", "worst_snr_db", "psnr_db"))
    spread, share = f"{np.std(entry['psnr_by_seed']):.1f}", f"{entry['per_token']:.0%}"
    return entry["network"], entry["preset"], entry["scales"], entry.get("rotation", "none"), *figures, spread, share


if __name__ == "__main__":
    main()
