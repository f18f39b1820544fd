"""Confidence intervals by resampling. Two methods that drew from the same noises are compared on the same resamples: paired."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dq_deploy.errors import UsageError

Array = np.ndarray[Any, Any]
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate with the ends of its confidence interval."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether a difference with this interval is told from none. NaN is not."""
        return self.low > 0 or self.high < 0


def resamples(count: int, replicates: int, seed: int) -> Array:
    """Indices [replicates, count] drawn with replacement; a function of the arguments alone, so that methods share them.

    Raises UsageError for fewer than two values, whose spread nobody knows.
    """
    if count < 2 or replicates < 1:
        raise UsageError(f"{count} value(s) and {replicates} resample(s) give no confidence interval", "draw at least 2 samples")
    return np.random.default_rng([seed, count]).integers(0, count, (replicates, count))


def interval(value: float, replicates: Sequence[float] | Array, confidence: float = CONFIDENCE) -> Interval:
    """The percentile interval of replicated estimates around ``value``."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.asarray(replicates, dtype=np.float64), [tail, 1 - tail])
    return Interval(float(value), float(low), float(high))


def mean_interval(values: Sequence[float] | Array, *, replicates: int = 2000, seed: int = 0) -> Interval:
    """Mean of one value per sample [n]."""
    values = np.asarray(values, dtype=np.float64)
    return interval(values.mean(), values[resamples(len(values), replicates, seed)].mean(axis=1))


def paired_difference(a: Sequence[float] | Array, b: Sequence[float] | Array, *, replicates: int = 2000, seed: int = 0) -> Interval:
    """Mean of a − b, where a[i] and b[i] are of the same noise. Raises UsageError when the lengths differ."""
    if len(a) != len(b):
        raise UsageError(f"{len(a)} values cannot be paired with {len(b)}", "compare cells of the same sample count")
    return mean_interval(np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64), replicates=replicates, seed=seed)


def replicated_difference(value_a: float, a: Sequence[float] | Array, value_b: float, b: Sequence[float] | Array) -> Interval:
    """The difference a − b of estimates that are not means (a Fréchet distance), from their replicates over the same resamples.

    Raises UsageError when the numbers of replicates differ.
    """
    if len(a) != len(b):
        raise UsageError(f"{len(a)} replicates cannot be paired with {len(b)}", "compare cells of the same settings")
    return interval(value_a - value_b, np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64))
