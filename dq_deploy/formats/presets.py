"""Bits of weights and of activations by name."""

from __future__ import annotations

PRESETS: dict[str, tuple[int, int]] = {"w8a8": (8, 8), "w6a6": (6, 6), "w4a8": (4, 8), "w4a4": (4, 4), "w4a16": (4, 16)}
"""Name → (weight bits, activation bits), as ``formats.of_bits`` understands them."""
