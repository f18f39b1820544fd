"""Layers of a quantized graph, a form of weight a file.

To add one: subclass ``QuantizedWeight`` (``base.py`` says what each method is for), give it a ``kind`` of its own, and ``register`` it.
It is made of (weight, bias, format, **options): of a convolution its stride, padding, dilation and groups, and what ``options`` the planned
layer has. A planned layer whose ``form`` is that kind then becomes one; how it is exported is said in ``exporters/lower``.
"""

from __future__ import annotations

from .base import QuantizedLayer, QuantizedWeight
from .blocked import BlockedLinear, WeightOnlyLinear
from .codebook import CodebookConv2d, CodebookLinear, CodebookWeight
from .fp4 import Fp4Linear
from .per_channel import QuantizedConv2d, QuantizedLinear
from .products import QuantizedMatmul
from .unpacked_conv import WeightOnlyConv2d

LAYERS: dict[str, type[QuantizedLayer]] = {}
"""Every kind by its name."""


def register(kind: type[QuantizedLayer]) -> None:
    """Make a kind known."""
    LAYERS[kind.kind] = kind


for _kind in (
    QuantizedConv2d, QuantizedLinear, QuantizedMatmul, WeightOnlyConv2d, WeightOnlyLinear, CodebookConv2d, CodebookLinear, Fp4Linear,
):  # fmt: skip
    register(_kind)

__all__ = [
    "LAYERS",
    "BlockedLinear",
    "CodebookConv2d",
    "CodebookLinear",
    "CodebookWeight",
    "Fp4Linear",
    "QuantizedConv2d",
    "QuantizedLayer",
    "QuantizedLinear",
    "QuantizedMatmul",
    "QuantizedWeight",
    "WeightOnlyConv2d",
    "WeightOnlyLinear",
    "register",
]
