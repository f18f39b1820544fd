"""The ways in which a bundle's graph writes scales.

``qdq``: constant scales in Q/DQ, a table's arithmetic around them; TensorRT, TensorRT-RTX, OpenVINO and ONNX Runtime run it.
``onnxruntime``: scales as values of the graph, for ONNX Runtime alone.
"""

from __future__ import annotations

TARGETS = ("qdq", "onnxruntime")
_FORMER = {"tensorrt": "qdq"}


def target_name(name: str) -> str:
    """A target's name of today, of one of before, which users and manifests may still say; any other name as it is."""
    return _FORMER.get(name, name)
