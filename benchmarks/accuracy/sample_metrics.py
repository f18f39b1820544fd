"""What sets a quantized model's pictures apart from the float model's, drawn from the same noises: one number for each sample."""

from __future__ import annotations

from typing import Any

import numpy as np

from dq_deploy.decibels import ratio_db
from dq_deploy.errors import ArtifactError, UsageError

Array = np.ndarray[Any, Any]


def feature_distance(expected: Array, features: Array) -> Array:
    """Squared distance [n] of each sample's features [n, d] to those of the float picture of its noise.

    In units of the mean squared distance between two float pictures of different noises: 0 is the same picture, 1 an unrelated one.
    """
    if expected.shape != features.shape or len(expected) < 2:
        raise UsageError(f"features of shape {list(features.shape)} cannot be compared with {list(expected.shape)}")
    expected, features = expected.astype(np.float64), features.astype(np.float64)
    # The mean over pairs i ≠ j of |f_i − f_j|² is twice the unbiased variance, summed over the features.
    unrelated = 2 * expected.var(axis=0, ddof=1).sum()
    if not unrelated > 0:
        raise ArtifactError("all float pictures have the same features: nothing can be measured against them")
    distances: Array = ((features - expected) ** 2).sum(axis=1) / unrelated
    return distances


def snr_by_timestep(power: Array, error: Array) -> Array:
    """SNR in dB [T] from each sample's summed squares [T, n] of the float output and of the difference to it; at most 150."""
    return np.array([ratio_db(float(signal), float(noise)) for signal, noise in zip(power.sum(axis=1), error.sum(axis=1), strict=True)])
