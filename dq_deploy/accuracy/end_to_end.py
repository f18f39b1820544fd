"""End-to-end parity: a bundle or engine against the PyTorch quantized forward, both measured against the float model, at every timestep."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel

from ..decibels import snr_db
from ..engines.running.runner import Runner
from ..progress import Progress, silent
from ..quantization.calibration.trajectories import Trajectories
from ..quantization.checkpoint import Checkpoint
from ..sources.frames import frame_axis
from .parity_spread import NoisePowers, chance_db, noise_powers, standard_error_db

MAX_SNR_DIFFERENCE_DB = {"fp32": 0.5, "fp16": 3.0, "bf16": 3.0}
"""By the type of what is not quantized. Half precision adds an error of its own, which is reported; only a gross one is judged.
To these comes what chance makes of the samples given (parity_spread.py)."""
FLOAT_SNR_DB = {"fp32": 60.0, "fp16": 30.0, "bf16": 15.0}
"""What a float graph must have against the float model where it runs steps of a schedule: its rounding leaves more."""
Model = Callable[[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]], torch.Tensor]


def frames_snr_db(expected: torch.Tensor, got: torch.Tensor, axis: int) -> float:
    """SNR in dB of the differences between frames that follow each other along ``axis`` of outputs [N, C, F, H, W] or [N, F, ...].

    An error that every frame has alike does not flicker.
    """
    return snr_db(expected.diff(dim=axis), got.diff(dim=axis))


class TimestepParity(BaseModel):
    """One timestep: SNR in dB against the float model, and the bundle's relative error (RMS) against both others.

    Of a video ``snr_frames_db`` is the bundle's SNR of what changes between frames; nothing is judged by it.

    ``allowed_db`` is how far the two SNRs may be apart; ``standard_error_db`` is that of their difference, over ``samples`` of noise
    (None: not known). Of a schedule ``member`` is the one that runs it; where that is a float one there is no quantized forward to compare
    with, and ``snr_reference_db`` is None.
    """

    timestep: float
    snr_reference_db: float | None
    snr_bundle_db: float
    error_float: float
    error_reference: float
    snr_optimized_db: float | None = None
    allowed_db: float = MAX_SNR_DIFFERENCE_DB["fp32"]
    standard_error_db: float | None = None
    samples: int = 0
    min_snr_db: float | None = None
    member: str | None = None
    snr_frames_db: float | None = None

    @property
    def difference_db(self) -> float:
        """|bundle's SNR − reference's SNR|; 0 without a reference."""
        return 0.0 if self.snr_reference_db is None else abs(self.snr_bundle_db - self.snr_reference_db)

    @property
    def alike(self) -> bool:
        """Whether it computes what the reference does: within the bound; NaN is a failure."""
        return bool(self.difference_db <= self.allowed_db)

    @property
    def close(self) -> bool:
        """Whether it is as close to the float model as was requested; NaN is not."""
        return self.min_snr_db is None or bool(self.snr_bundle_db >= self.min_snr_db)

    @property
    def passed(self) -> bool:
        """Both."""
        return self.alike and self.close


def relative_error(expected: torch.Tensor, got: torch.Tensor) -> float:
    """‖got − expected‖ / ‖expected‖ of two tensors of any shape, the same."""
    return float((got.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-30))


@torch.no_grad()
def end_to_end(runners: Mapping[str, Runner], checkpoint: Checkpoint, reference: Trajectories, allowed_db: Mapping[str, float],
               *, largest: int | None = None, progress: Progress = silent) -> dict[str, list[TimestepParity]]:  # fmt: skip
    """Compare each runner at every calibrated timestep over all reference samples, ``largest`` at a time where an engine takes no more.

    ``allowed_db`` by runner are the bounds without chance, which is added to them.
    """
    details = checkpoint.details
    axis = frame_axis(details.sample_shape, details.network_config)
    rows: dict[str, list[TimestepParity]] = {name: [] for name in runners}
    noises: dict[str, list[NoisePowers]] = {name: [] for name in runners}
    with progress("end to end", len(reference.timesteps)) as advance:
        for index, timestep in enumerate(reference.timesteps):
            expected, inputs = reference.outputs[index], checkpoint.inputs(reference, index)
            ours = checkpoint.model(*inputs.values())
            feeds = {name: value.numpy() for name, value in inputs.items()}
            for name, runner in runners.items():
                got = _in_parts(runner, feeds, len(expected), largest)
                noises[name].append(noise_powers(expected, ours, got, reference.per_seed))
                rows[name].append(
                    TimestepParity(
                        timestep=float(timestep),
                        snr_reference_db=snr_db(expected, ours),
                        snr_bundle_db=snr_db(expected, got),
                        error_float=relative_error(expected, got),
                        error_reference=relative_error(ours, got),
                        allowed_db=allowed_db[name],
                        snr_frames_db=None if axis is None else frames_snr_db(expected, got, axis),
                    )
                )
            advance(1, f"timestep {float(timestep):g}")
    for name, compared in rows.items():
        _allow_for_chance(compared, noises[name])
    return rows


@torch.no_grad()
def float_end_to_end(runners: Mapping[str, Runner], checkpoint: Checkpoint, reference: Trajectories, required_db: Mapping[str, float],
                     *, largest: int | None = None, progress: Progress = silent) -> dict[str, list[TimestepParity]]:  # fmt: skip
    """As ``end_to_end``, of what is not quantized: each runner against the float model alone, ``required_db`` by runner.

    ``checkpoint`` says what the network is called with.
    """
    rows: dict[str, list[TimestepParity]] = {name: [] for name in runners}
    with progress("end to end, in float", len(reference.timesteps)) as advance:
        for index, timestep in enumerate(reference.timesteps):
            expected = reference.outputs[index]
            feeds = {name: value.numpy() for name, value in checkpoint.inputs(reference, index).items()}
            for name, runner in runners.items():
                got = _in_parts(runner, feeds, len(expected), largest)
                error = relative_error(expected, got)
                rows[name].append(
                    TimestepParity(
                        timestep=float(timestep), snr_reference_db=None, snr_bundle_db=snr_db(expected, got), error_float=error,
                        error_reference=error, min_snr_db=required_db[name], samples=len(expected),
                    )
                )  # fmt: skip
            advance(1, f"timestep {float(timestep):g}")
    return rows


def _allow_for_chance(rows: Sequence[TimestepParity], noises: Sequence[NoisePowers]) -> None:
    error = standard_error_db(noises)
    for row, noise in zip(rows, noises, strict=True):
        row.samples = len(noise.reference)
        row.standard_error_db = error
        row.allowed_db += chance_db(error, row.samples)


def _in_parts(runner: Runner, feeds: Mapping[str, np.ndarray[Any, Any]], count: int, largest: int | None) -> torch.Tensor:
    """One run for every ``largest`` samples, in order."""
    parts = [slice(start, start + (largest or count)) for start in range(0, count, largest or count)]
    return torch.from_numpy(np.concatenate([runner.run({name: value[part] for name, value in feeds.items()}) for part in parts]))
