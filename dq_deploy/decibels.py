"""SNR and PSNR in dB, by one rule for what is equal, empty or not finite: numbers that JSON can hold."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import ArtifactError, UsageError

if TYPE_CHECKING:
    import torch

Array = np.ndarray[Any, Any]
CEILING_DB = 150.0
"""What no noise at all gets; no float32 forward comes near it."""
FLOOR_DB = -CEILING_DB
"""What noise beside a signal of zero gets."""
PSNR_CEILING_DB = 100.0
"""What equal pictures get; past it, float rounding is all that is compared."""


def ratio_db(signal: float, noise: float) -> float:
    """10·log10(signal / noise) of two powers, within floor and ceiling; NaN where one is not a finite number."""
    if not (math.isfinite(noise) and math.isfinite(signal)):
        return math.nan
    if noise == 0:
        return CEILING_DB
    return min(CEILING_DB, max(FLOOR_DB, 10 * math.log10(signal / noise))) if signal / noise > 0 else FLOOR_DB


def floored(db: float) -> float:
    """An SNR to judge by, in dB: what is not finite is as far off as anything."""
    return FLOOR_DB if math.isnan(db) else db


def snr_db(expected: torch.Tensor, got: torch.Tensor) -> float:
    """10·log10(‖expected‖² / ‖got − expected‖²) of any shape, within ±150; NaN where nothing is compared or the error is not finite."""
    if not expected.numel():
        return math.nan
    noise = float((got.double() - expected.double()).pow(2).sum())
    return ratio_db(float(expected.double().pow(2).sum()), noise)


def psnr_db(expected: Array, pictures: Array) -> Array:
    """PSNR [n] of pictures [n, ...] against ``expected``, values in [0, 1]; at most 100 dB.

    Raises UsageError for different shapes and ArtifactError for a NaN or an infinity.
    """
    if expected.shape != pictures.shape:
        raise UsageError(f"pictures of shape {list(pictures.shape)} cannot be compared with {list(expected.shape)}")
    if not np.isfinite(pictures).all():
        raise ArtifactError(f"NaN or Inf in {int((~np.isfinite(pictures)).reshape(len(pictures), -1).any(axis=1).sum())} pictures")
    error = ((expected.astype(np.float64) - pictures) ** 2).reshape(len(expected), -1).mean(axis=1)
    psnr: Array = -10 * np.log10(error.clip(min=10 ** (-PSNR_CEILING_DB / 10)))
    return psnr
