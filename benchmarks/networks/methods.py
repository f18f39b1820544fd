"""What is compared on every network, by the names that the accuracy harness has for it."""

from __future__ import annotations

PRESET = "w8a8"
OURS, OURS_STATIC = "gptq-auto-untrained", "gptq-untrained-static"
"""`quantize --iterations 0`, and the same with one scale for all timesteps."""
TABLES, NEAREST = "gptq-untrained", "untrained"
"""Ours with scale tables alone, and that with each weight at its nearest code."""
PEERS = ("onnxruntime", "nncf")
METHODS = (OURS, OURS_STATIC, *PEERS)
MEASURED = (*METHODS, TABLES, NEAREST)
LABELS = {
    OURS: "ours", OURS_STATIC: "ours, static", TABLES: "ours, tables alone", NEAREST: "ours, tables alone, nearest codes",
    "onnxruntime": "`quantize_static`", "nncf": "NNCF",
}  # fmt: skip
