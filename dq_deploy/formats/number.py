"""Number formats: what the numbers of a tensor are, and what they take to store.

Add one with ``register_format``; plans, quantizers, weights and checkpoints then take it as they take INT8. An integer format needs no
more, nor does a floating-point one. What is neither also needs its rounding in ``quantization/grid.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import prod
from typing import Any


class Kind(StrEnum):
    """What a code stands for: itself, a floating-point number, or an entry of a codebook."""

    INTEGER = "integer"
    FLOAT = "float"
    CODEBOOK = "codebook"


@dataclass(frozen=True)
class NumberFormat:
    """A kind of number: ``bits`` of information each, from ``lowest`` to ``largest``.

    ``torch_dtype`` and ``onnx_type`` name the types that hold it, in PyTorch and, as a stored constant, in ONNX. A value takes
    ``container_bits`` of storage, two or more share a byte where these are less than 8.
    """

    name: str
    bits: int
    kind: Kind
    lowest: float
    largest: float
    torch_dtype: str
    onnx_type: str
    container_bits: int
    mantissa_bits: int = 0
    least_exponent: int = 0
    """Of a floating-point format: stored bits of the significand, and the exponent of its smallest normal number."""
    block: int = 0
    """Numbers along the inputs of a product that share a scale, a byte of its own that is stored beside them; 0: no such scales."""

    @property
    def floating(self) -> bool:
        """Whether its numbers are floats, which lie the denser the smaller they are."""
        return self.kind is Kind.FLOAT

    @property
    def scaled(self) -> bool:
        """Whether its numbers stand for others by a scale: integers do, and floats too narrow to do without."""
        return not self.floating or self.bits <= 8

    @property
    def last_step(self) -> float:
        """How far the largest number is from the one below."""
        return 2.0 ** (math.floor(math.log2(self.largest)) - self.mantissa_bits) if self.floating else 1.0

    @property
    def integer(self) -> bool:
        """Whether codes are integers that are multiplied as such."""
        return self.kind is Kind.INTEGER

    @property
    def packed(self) -> bool:
        """Whether several values share a byte of storage."""
        return self.container_bits < 8

    def code_range(self, *, narrow: bool = False) -> tuple[float, float]:
        """Smallest and largest code; ``narrow`` (weights) drops what is below minus the largest, to be symmetric."""
        return (-self.largest if narrow else self.lowest), self.largest

    def unclipped_range(self) -> tuple[float, float]:
        """What rounding alone takes to a code, half a step beyond the smallest and the largest; what is outside is clipped."""
        low, high = self.code_range()
        return low - self.last_step / 2, high + self.last_step / 2

    def storage_bytes(self, shape: Sequence[int]) -> int:
        """Bytes that a tensor of ``shape`` takes in a file or an engine, scales of blocks among them."""
        return -(-prod(shape) * self.container_bits // 8) + (-(-prod(shape) // self.block) if self.block else 0)

    def record(self) -> dict[str, Any]:
        """The format as a checkpoint's graph names it: the codes of schema 1 by their bits, others by their name."""
        return {"bits": self.bits} if CODES.get(self.bits) is self else {"format": self.name}


FORMATS: dict[str, NumberFormat] = {}
"""Every format by its name."""


def register_format(added: NumberFormat) -> NumberFormat:
    """Make a format known by its name. Raises ValueError where another has it."""
    known = FORMATS.setdefault(added.name, added)
    if known != added:
        raise ValueError(f"another number format is called {added.name}")
    return known


PLANE = 8
"""Weights that a byte of a bit plane is of."""
_CHANNEL_BYTES = 12  # scale, bias, and the sum of the weights that a zero-point needs


def in_planes(fmt: NumberFormat, weights: int) -> bool:
    """Whether so many weights beside INT8 activations are stored as bit planes, which take less than their container.

    Of integers of fewer bits than INT4 has (docs/decisions/bit-planes.md).
    """
    return fmt.integer and fmt.bits < fmt.container_bits < 8 and weights % PLANE == 0


def layer_bytes(fmt: NumberFormat, weights: int, channels: int, *, planes: bool = True) -> int:
    """Bytes in an engine of a layer with so many weights and output channels; ``planes``: its products are of integers."""
    if planes and in_planes(fmt, weights):
        return weights // PLANE * fmt.bits + _CHANNEL_BYTES * channels
    return fmt.storage_bytes([weights]) + _CHANNEL_BYTES * channels


def _integer(bits: int) -> NumberFormat:
    # Engines have containers of 4 and of 8 bits: what is between runs, and is stored, in the next wider one.
    container = 4 if bits <= 4 else 8
    largest = 2 ** (bits - 1) - 1
    return register_format(NumberFormat(f"INT{bits}", bits, Kind.INTEGER, -largest - 1, largest, "int8", f"INT{container}", container))


def _float(name: str, bits: int, mantissa: int, exponent: int, largest: float, dtype: str, onnx_type: str) -> NumberFormat:
    return register_format(NumberFormat(name, bits, Kind.FLOAT, -largest, largest, dtype, onnx_type, bits, mantissa, exponent))


INT2, INT3, INT4, INT5, INT6, INT7, INT8 = (_integer(bits) for bits in range(2, 9))
FP32 = _float("FP32", 32, 23, -126, (2 - 2.0**-23) * 2.0**127, "float32", "FLOAT")
FP16 = _float("FP16", 16, 10, -14, 65504.0, "float16", "FLOAT16")
BF16 = _float("BF16", 16, 7, -126, (2 - 2.0**-7) * 2.0**127, "bfloat16", "BFLOAT16")
FP8 = _float("FP8", 8, 3, -6, 448.0, "float8_e4m3fn", "FLOAT8E4M3FN")
"""E4M3 without infinities (arXiv 2209.05433): 4 bits of exponent, 3 of the significand, from 2^-9 to 448 on either side of 0."""
FP4 = register_format(NumberFormat("FP4", 4, Kind.FLOAT, -6.0, 6.0, "float8_e4m3fn", "FLOAT4E2M1", 4, 1, 0, block=16))
"""E2M1: ±0, 0.5, 1, 1.5, 2, 3, 4, 6 (Open Compute Project, Microscaling Formats, v1.0, 5.3.3), each block of 16 with a scale in E4M3:
NVFP4. torch has no type for single ones; E4M3 holds every one of them."""
CODES = {found.bits: found for found in (INT2, INT3, INT4, INT5, INT6, INT7, INT8)}
"""Integer codes by their bits: what schema 1 knows."""


_FLOATS = {"fp8": (FP8,), "fp4": (FP4,), "nvfp4": (FP4, FP8)}
"""Of each name of products whose codes are floats: the formats, by their bits. Integers of other bits are weights beside them."""


def of_bits(bits: int, products: str | None = None) -> NumberFormat:
    """What ``bits`` mean on the command line and in a manifest: integer codes of 2 to 8 bits, or float activations (16).

    In ``products`` of "fp8" 8 bits are those of a float, in "fp4" 4, in "nvfp4" both. Which float type 16 bits have is chosen at export.
    Raises KeyError for another number.
    """
    found = next((fmt for fmt in _FLOATS.get(products or "", ()) if fmt.bits == bits), None)
    return found or (FP16 if bits == FP16.bits else CODES[bits])


def recorded(entry: Mapping[str, Any]) -> NumberFormat:
    """The format of codes that an entry of a checkpoint's graph has; the inverse of ``NumberFormat.record``. Raises KeyError."""
    return FORMATS[entry["format"]] if "format" in entry else CODES[entry["bits"]]
