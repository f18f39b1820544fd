"""What is compared on every network, by the names that the accuracy harness has for it."""

from __future__ import annotations

PRESET = "w8a8"
OURS, OURS_STATIC = "gptq-auto-untrained", "gptq-untrained-static"
"""`quantize --iterations 0`, and the same with one scale for all timesteps."""
TABLES, NEAREST = "gptq-untrained", "untrained"
"""Ours with scale tables alone, and that with each weight at its nearest code."""
PEERS = ("onnxruntime", "nncf")
MATRYOSHKA = "matryoshka-untrained"
TRAINED = "dilatequant"
"""Trained from the nearest codes, which is what `quantize` did before it had GPTQ."""
METHODS = (OURS, OURS_STATIC, *PEERS)
MEASURED = (*METHODS, TABLES, NEAREST)
FEW_BITS = (NEAREST, TRAINED, TABLES, OURS, MATRYOSHKA)
"""What is compared where weights have few bits."""
FEW_BITS_PRESETS = ("w4a8", "w3a8", "vq3a8", "vq2a8")
FEW_BITS_LABELS = {
    NEAREST: "nearest codes",
    TRAINED: "nearest, trained",
    TABLES: "GPTQ, tables alone",
    OURS: "GPTQ",
    MATRYOSHKA: "of 8, 6, 4 and 3 bits",
}
LABELS = {
    OURS: "ours", OURS_STATIC: "ours, static", TABLES: "ours, tables alone", NEAREST: "ours, tables alone, nearest codes",
    "onnxruntime": "`quantize_static`", "nncf": "NNCF",
}  # fmt: skip
