"""What is compared on every network, by the names that the accuracy harness has for it."""

from __future__ import annotations

PRESET = "w8a8"
OURS, OURS_STATIC = "untrained", "untrained-static"
PEERS = ("onnxruntime", "nncf")
METHODS = (OURS, OURS_STATIC, *PEERS)
LABELS = {OURS: "ours", OURS_STATIC: "ours, static", "onnxruntime": "`quantize_static`", "nncf": "NNCF"}
