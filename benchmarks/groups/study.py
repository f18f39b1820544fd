"""A network quantized with the layers that each rule raises, judged on seeds and prompts that nothing was chosen or calibrated on."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.networks.network import scheduler_of
from dq_deploy.decibels import snr_db
from dq_deploy.errors import UsageError
from dq_deploy.progress import silent
from dq_deploy.quantization import load_checkpoint, quantize
from dq_deploy.quantization.bits.aspects import PREDICTION, Aspect, condition_effect, frame_changes
from dq_deploy.quantization.bits.choose import choose_bits
from dq_deploy.quantization.calibration.source import Request
from dq_deploy.quantization.calibration.trajectories import Model, Trajectories
from dq_deploy.quantization.config import QuantizeConfig
from dq_deploy.quantization.graph.calls import as_model
from dq_deploy.quantization.prepare import Prepared, prepare

from . import garments

RULES = ("snr", "decoupled")
_HELD_OUT = 500_000  # the first seed that is judged on


@dataclass(frozen=True)
class Subject:
    """A network [N, C, ...] and its prompts [P, L, D]: those to calibrate under, and others to judge under."""

    model: torch.nn.Module
    scheduler: Any
    shape: tuple[int, ...]
    prompts: torch.Tensor
    held_out: torch.Tensor
    frame_axis: int | None


def subject(name: str) -> Subject:
    """``garments``, trained. Raises UsageError for another one, and where it is not trained."""
    if name != "garments":
        raise UsageError(f"unknown network '{name}'", "networks: garments")
    prompts = garments.every_prompt()
    return Subject(garments.trained(), scheduler_of("velocity"), garments.SHAPE, prompts[::2], prompts[1::2], 2)


def measured(name: str, preset: str, budget: str, rule: str, options: dict[str, Any]) -> dict[str, Any]:
    """What ``rule`` raises within ``budget``, and how near the network then comes to its float model: SNR in dB of each aspect."""
    own, samples = subject(name), options["samples"]
    given = {"encoder_hidden_states": own.prompts}
    request = Request(own.scheduler, own.shape, conditions=given, null_conditions=_nothing(given))
    choices = {key: options[key] for key in ("guidance_scale", "calibration_samples", "steps")}
    choices |= {"dilation": "none", "iterations": 0, "max_float_share": 0.5, "preset": preset}
    common = {"scheduler": own.scheduler, "sample_shape": own.shape, "conditions": given, "null_conditions": _nothing(given), **choices}
    choice = choose_bits(own.model, budget, sensitivity=rule, **common)
    prepared = prepare(own.model, QuantizeConfig.build(**choices), request)
    with tempfile.TemporaryDirectory() as folder:
        quantize(own.model, Path(folder) / "c", keep=choice.keep, final_samples=0, **common)
        quantized = as_model(load_checkpoint(Path(folder) / "c").model)
    seeds = range(_HELD_OUT, _HELD_OUT + samples)
    held_out: Any = replace(prepared.calibration, examples={"encoder_hidden_states": own.held_out})  # type: ignore[type-var]
    data = held_out.collect(as_model(prepared.float_graph), seeds, silent)
    expected, drawn = (_drawn(prepared, held_out, call, seeds) for call in (as_model(prepared.float_graph), quantized))
    aspects = [PREDICTION, condition_effect(2, own.shape[0])] + ([frame_changes(own.frame_axis)] if own.frame_axis else [])
    by_seed = [snr_db(a, b) for a, b in zip(expected, drawn, strict=True)]
    found = {"raised": sorted(choice.keep), "weights": choice.weights_bytes / choice.float_bytes, "final": by_seed}
    if own.frame_axis:
        axis = own.frame_axis - 1
        found["final, between frames"] = [snr_db(a.diff(dim=axis), b.diff(dim=axis)) for a, b in zip(expected, drawn, strict=True)]
    return {**found, **{aspect.name: _median_db(quantized, data, aspect) for aspect in aspects}}


def _nothing(given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(value[:1]) for name, value in given.items()}


@torch.no_grad()
def _median_db(quantized: Model, data: Trajectories, aspect: Aspect) -> float:
    """SNR in dB of an aspect of the output, the median over the timesteps."""
    found = []
    for row, timestep in enumerate(data.timesteps):
        got = quantized(data.samples[row], timestep.repeat(data.samples.shape[1]), **data.given(row))
        found.append(snr_db(aspect.of(data.outputs[row]), aspect.of(got)))
    return median(found)


@torch.inference_mode()
def _drawn(prepared: Prepared, source: Any, call: Model, seeds: range) -> torch.Tensor:
    """Final samples [n, ...], with guidance."""

    def answer(samples: torch.Tensor, timestep: float, conditions: Any) -> torch.Tensor:
        inputs = samples.flatten(0, 1)
        given = {name: value.flatten(0, 1) for name, value in conditions.items()}
        return call(inputs, torch.full((len(inputs),), timestep), **given)[None]

    drawn: torch.Tensor = source.final_samples(answer, seeds, slice(None), 1, prepared.float_graph.meta["output"])[0]
    return drawn
