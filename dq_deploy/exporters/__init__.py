"""Checkpoint → ONNX bundle, for two targets."""

from .bundle import TARGETS, export

__all__ = ["TARGETS", "export"]
