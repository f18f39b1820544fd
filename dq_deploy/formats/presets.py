"""Options of a quantization by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def _integers(weight_bits: int, activation_bits: int, **more: Any) -> dict[str, Any]:
    return {"weight_bits": weight_bits, "activation_bits": activation_bits, **more}


# The last layer's rounding is the output's own error: a float of 3 bits makes more of it there than all other layers (docs/fp8.md).
_FP8 = {"activation_bits": 8, "products": "fp8", "keep": {"@last": "float"}}
PRESETS: dict[str, Mapping[str, Any]] = {
    "w8a8": _integers(8, 8),
    "w6a6": _integers(6, 6),
    "w4a8": _integers(4, 8),
    "w4a4": _integers(4, 4),
    "w4a16": _integers(4, 16),
    "vq3a8": _integers(3, 8, codebook={"length": 8, "books": 3}),
    "vq2a8": _integers(2, 8, codebook={"length": 8, "books": 2}),
    "fp8": {**_FP8, "weight_bits": 8, "dilation": "none", "skip_halves": "joint"},
    "w4a8-fp8": {**_FP8, "weight_bits": 4},
    "nvfp4": {**_FP8, "weight_bits": 4, "activation_bits": 4, "products": "nvfp4", "dilation": "none", "skip_halves": "joint"},
}
"""Name → what it fills in of ``QuantizeConfig``; bits as ``formats.of_bits`` understands them."""

CODEBOOKS = tuple(name for name, filled in PRESETS.items() if "codebook" in filled)
"""The presets whose weights are sums of codewords (``formats.codebook``)."""

NAMED_BY = {"weight_bits": None, "activation_bits": None, "products": "int8", "codebook": None}
"""The options that tell a preset from the others, and what one is that does not say."""


def preset_of(options: Mapping[str, Any]) -> str | None:
    """The preset whose numbers ``options`` ask for; None where none has them."""

    def named(filled: Mapping[str, Any]) -> list[Any]:
        return [filled.get(name, default) for name, default in NAMED_BY.items()]

    return next((name for name, filled in PRESETS.items() if named(filled) == named(options)), None)
