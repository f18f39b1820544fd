"""The signal-to-noise ratio of a network's output, for the quantization and for what judges it afterwards."""

from __future__ import annotations

import math

import torch

from ..decibels import ratio_db


def snr_db(expected: torch.Tensor, got: torch.Tensor) -> float:
    """10·log10(‖expected‖² / ‖got − expected‖²), within ±150; NaN where there is nothing to compare, or the error is no finite number."""
    if not expected.numel():
        return math.nan
    noise = float((got.double() - expected.double()).pow(2).sum())
    return ratio_db(float(expected.double().pow(2).sum()), noise)
