"""Bits of weights and of activations by name."""

from __future__ import annotations

PRESETS: dict[str, tuple[int, int]] = {
    "w8a8": (8, 8), "w6a6": (6, 6), "w4a8": (4, 8), "w4a4": (4, 4), "w4a16": (4, 16), "vq3a8": (3, 8), "vq2a8": (2, 8),
}  # fmt: skip
"""Name → (weight bits, activation bits), as ``formats.of_bits`` understands them."""

CODEBOOKS = {"vq2a8": {"length": 8, "books": 2}, "vq3a8": {"length": 8, "books": 3}}
"""Of the presets whose weights are sums of codewords: the options of their codebook (``formats.codebook``)."""
