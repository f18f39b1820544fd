"""Checkpoint → ONNX bundle, for two targets; and the lint of any quantized ONNX graph.

Names are imported when first used: the lint needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..formats.target import TARGETS

if TYPE_CHECKING:
    from .bundle import export

__all__ = ["TARGETS", "export"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    value = getattr(import_module(".bundle", __name__), name)
    globals()[name] = value
    return value
