"""What a list of times says, and how surely."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...decibels import ratio_db

Floats = NDArray[np.floating[Any]]
_RESAMPLES = 2000
_CONFIDENCE = 95.0


@dataclass(frozen=True)
class Ratio:
    """Median of the paired ratios and its 95% bootstrap interval."""

    value: float
    low: float
    high: float

    @property
    def within_noise(self) -> bool:
        """Whether "equally fast" cannot be excluded."""
        return self.low <= 1.0 <= self.high


def paired_ratio(times: Floats, baseline: Floats, seed: int = 0) -> Ratio:
    """``times`` [R] over ``baseline`` [R], taken in the same R rounds.

    Each round's ratio is taken first: whatever slows the machine for a while slows both, and cancels.
    """
    ratios = times / baseline
    picks = np.random.default_rng(seed).integers(0, len(ratios), size=(_RESAMPLES, len(ratios)))
    tail = (100 - _CONFIDENCE) / 2
    low, high = np.percentile(np.median(ratios[picks], axis=1), [tail, 100 - tail])
    return Ratio(float(np.median(ratios)), float(low), float(high))


def snr_db(reference: Floats, value: Floats) -> float | None:
    """Signal-to-noise ratio of ``value`` against ``reference`` in dB; None when they are equal."""
    noise = float(np.sum((value.astype(np.float64) - reference) ** 2))
    return None if noise == 0 else ratio_db(float(np.sum(reference.astype(np.float64) ** 2)), noise)
