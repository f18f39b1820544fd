"""Ratios of powers in dB that are always numbers, as JSON needs them."""

from __future__ import annotations

import math

CEILING_DB = 150.0
"""What no noise at all gets; no float32 forward comes near it."""
FLOOR_DB = -CEILING_DB
"""What noise beside a signal of zero gets."""


def ratio_db(signal: float, noise: float) -> float:
    """10·log10(signal / noise) of two powers, within floor and ceiling; NaN where one is no finite number."""
    if not (math.isfinite(noise) and math.isfinite(signal)):
        return math.nan
    if noise == 0:
        return CEILING_DB
    return min(CEILING_DB, max(FLOOR_DB, 10 * math.log10(signal / noise))) if signal / noise > 0 else FLOOR_DB
