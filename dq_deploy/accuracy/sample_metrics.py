"""What sets a quantized model's pictures apart from the float model's, drawn from the same noises: one number for each sample."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import ArtifactError, UsageError

Array = np.ndarray[Any, Any]
PSNR_CAP_DB = 100.0
"""Equal pictures have an infinite PSNR; past this one, float rounding is all that is compared."""


def psnr_db(expected: Array, pictures: Array) -> Array:
    """PSNR [n] of pictures [n, ...] against ``expected``, values in [0, 1]; at most 100 dB.

    Raises UsageError for different shapes and ArtifactError for a NaN or an infinity.
    """
    if expected.shape != pictures.shape:
        raise UsageError(f"pictures of shape {list(pictures.shape)} cannot be compared with {list(expected.shape)}")
    if not np.isfinite(pictures).all():
        raise ArtifactError(f"NaN or Inf in {int((~np.isfinite(pictures)).reshape(len(pictures), -1).any(axis=1).sum())} pictures")
    error = ((expected.astype(np.float64) - pictures) ** 2).reshape(len(expected), -1).mean(axis=1)
    psnr: Array = -10 * np.log10(error.clip(min=10 ** (-PSNR_CAP_DB / 10)))
    return psnr


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
    noise = error.sum(axis=1)
    ratio = power.sum(axis=1) / noise.clip(min=1e-300)
    snr: Array = np.minimum(10 * np.log10(ratio.clip(min=1e-15)), 150.0)
    return snr
