"""How near each contender comes to the float model where a model is used: on trajectories that nobody was calibrated on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from dq_deploy.engines.bench import Contender
from dq_deploy.engines.bench.statistics import snr_db
from dq_deploy.engines.running.runner import TIMESTEP
from dq_deploy.quantization import Checkpoint

from .preparing import HELD_OUT

Inputs = dict[str, np.ndarray[Any, Any]]


def trajectory_snr(contenders: Sequence[Contender], checkpoint: Checkpoint) -> dict[str, dict[str, float]]:
    """Each contender's SNR in dB against the first's, the baseline's: the median over the timesteps, and the worst of them."""
    steps = list(_held_out(checkpoint))
    expected, *others = (_outputs(contender, steps) for contender in contenders)
    found = {}
    for contender, outputs in zip(contenders[1:], others, strict=True):
        values = [snr_db(reference, got) for reference, got in zip(expected, outputs, strict=True)]
        each = [float("inf") if value is None else value for value in values]
        found[contender.name] = {"median": float(np.median(each)), "worst": min(each)}
    return found


def _held_out(checkpoint: Checkpoint) -> Iterator[list[Inputs]]:
    """For each timestep, the inputs of each sample alone: the shape that every engine is compiled for already."""
    reference, sample = checkpoint.reference(), checkpoint.details.inputs[0]
    for timestep, samples in zip(reference.timesteps, reference.samples[:, -HELD_OUT:], strict=True):
        conditions = {name: value[-HELD_OUT:].numpy() for name, value in reference.conditions.items()}
        values = {**conditions, sample: samples.numpy()}
        yield [
            {**{name: value[n : n + 1] for name, value in values.items()}, TIMESTEP: np.asarray(timestep, np.float32)}
            for n in range(HELD_OUT)
        ]


def _outputs(contender: Contender, steps: Sequence[Sequence[Inputs]]) -> list[np.ndarray[Any, Any]]:
    return [np.concatenate([contender.runner.run(inputs) for inputs in samples]) for samples in steps]
