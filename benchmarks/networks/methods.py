"""What is compared on every network, by the names that the accuracy harness has for it."""

from __future__ import annotations

PRESET = "w8a8"
OURS, OURS_STATIC = "untrained", "untrained-static"
GPTQ, GPTQ_STATIC = "gptq-untrained", "gptq-untrained-static"
"""The same with the default rounding."""
PEERS = ("onnxruntime", "nncf")
METHODS = (OURS, OURS_STATIC, *PEERS)
MEASURED = (*METHODS, GPTQ, GPTQ_STATIC)
LABELS = {
    OURS: "ours", OURS_STATIC: "ours, static", GPTQ: "ours, GPTQ", GPTQ_STATIC: "ours, GPTQ, static", "onnxruntime": "`quantize_static`",
    "nncf": "NNCF",
}  # fmt: skip
