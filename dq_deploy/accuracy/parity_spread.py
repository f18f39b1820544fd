"""How far chance takes the SNRs of two right forwards apart, as the samples given tell it.

Equivalent forwards of a quantized network flip codes near ties, few and rarely, and a flip may move a sample's noise by a decibel. Over
many samples the flips average out; over four they need not, and a fixed bound would fail what is right. Both forwards see the same samples,
so what counts is how the *ratio* of their noise powers scatters from sample to sample: what is wrong in all of them scatters little.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

_ERRORS = 3.0
"""Standard errors that chance is given. With it and the bound, 0.5 dB, right bundles of an 8×8 network fail in 0.6% of the checks or fewer,
by any number of samples, if their flips are three times as heavy as measured; without, four samples fail in 30%."""
_MOST_DB = 3.0
"""The most that chance is given with one sample, by the root of their number: the heaviest flip of a sample that was measured is 1.1 dB."""
_DB = 10 / math.log(10)


@dataclass(frozen=True)
class NoisePowers:
    """‖output − float output‖² of each independent sample [n] at one timestep: of the reference forward, and of what is judged."""

    reference: NDArray[np.float64]
    judged: NDArray[np.float64]

    @property
    def usable(self) -> bool:
        """Whether a ratio can be made of them."""
        sums = (self.reference.sum(), self.judged.sum())
        return bool(np.isfinite(sums).all() and all(sums))


def noise_powers(expected: torch.Tensor, reference: torch.Tensor, judged: torch.Tensor, per_seed: int) -> NoisePowers:
    """From outputs [n·per_seed, …]: the halves of guidance of one seed go together, for they are not independent."""

    def powers(output: torch.Tensor) -> NDArray[np.float64]:
        noise = (output.double() - expected.double()).flatten(1).pow(2).sum(dim=1)
        return noise.unflatten(0, (-1, per_seed)).sum(dim=1).numpy() if len(noise) else noise.numpy()

    return NoisePowers(powers(reference), powers(judged))


def standard_error_db(timesteps: Sequence[NoisePowers]) -> float | None:
    """Standard error of 10·log10(Σ reference / Σ judged) at a timestep: the root of its mean square over the timesteps.

    It is that of a ratio of sums, linearized: 10/ln 10 · √(n/(n−1) · Σ (judged_i/Σ judged − reference_i/Σ reference)²). Flips are rare,
    so that one timestep's few samples may show none: all timesteps are taken together. One sample has no spread, and its differences
    between the timesteps stand in for it; with one timestep as well it is not known: None.
    """
    usable = [row for row in timesteps if row.usable]
    if not usable:
        return None
    count = len(usable[0].reference)
    if count == 1:
        differences = [_DB * np.log(row.reference[0] / row.judged[0]) for row in usable]
        return float(np.std(differences, ddof=1)) if len(differences) > 1 else None
    shares = np.stack([row.judged / row.judged.sum() - row.reference / row.reference.sum() for row in usable])
    return float(_DB * np.sqrt(count / (count - 1) * (shares**2).sum(axis=1).mean()))


def chance_db(standard_error: float | None, samples: int) -> float:
    """What is added to the bound, in dB: three standard errors, and at most 3 dB by the root of the number of samples."""
    if not samples:
        return 0.0
    most = _MOST_DB / math.sqrt(samples)
    return most if standard_error is None else min(_ERRORS * standard_error, most)
