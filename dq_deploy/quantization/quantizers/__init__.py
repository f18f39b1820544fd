"""Quantizers of activations, a kind a file.

To add one: subclass ``ActivationQuantizer`` (``base.py`` says what each method is for), give it a ``kind`` of its own, and ``register`` it.
A plan whose ``quantizer`` is that kind then has it inserted, calibrated, trained, saved and loaded; how it is exported is said in
``exporters/lower``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .base import ActivationQuantizer, Quantized, Trained, computed_scale
from .blocks import BlockQuantizer
from .probabilities import ProbabilityQuantizer
from .static import StaticQuantizer
from .table import TableQuantizer
from .token import TokenQuantizer

QUANTIZERS: dict[str, type[ActivationQuantizer]] = {}
"""Every kind by its name."""


def register(kind: type[ActivationQuantizer]) -> None:
    """Make a kind known."""
    QUANTIZERS[kind.kind] = kind


def kind_of(config: Mapping[str, Any]) -> type[ActivationQuantizer]:
    """The kind of an entry of a checkpoint's graph; those of schema 1 say no name. Raises KeyError."""
    return QUANTIZERS[config.get("kind") or ("probabilities" if config.get("fixed") else "per-timestep")]


for _kind in (TableQuantizer, StaticQuantizer, TokenQuantizer, BlockQuantizer, ProbabilityQuantizer):
    register(_kind)

__all__ = [
    "QUANTIZERS",
    "ActivationQuantizer",
    "BlockQuantizer",
    "ProbabilityQuantizer",
    "Quantized",
    "StaticQuantizer",
    "TableQuantizer",
    "TokenQuantizer",
    "Trained",
    "computed_scale",
    "kind_of",
    "register",
]
