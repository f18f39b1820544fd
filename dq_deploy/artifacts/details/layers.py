"""Layers and quantizers, as a checkpoint, a graph and an engine speak of them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from ...formats import CODES, FP16, NumberFormat, ScaleSource, of_bits
from ..records import Open


def _known_bits(bits: int) -> int:
    if bits not in CODES and bits != FP16.bits:
        raise ValueError(f"{bits} bits are neither codes ({min(CODES)} to {max(CODES)}) nor floats ({FP16.bits})")
    return bits


class Product(Open):
    """A convolution, linear layer or matrix product; ``macs`` are multiply-accumulates per sample."""

    name: str
    op: str
    macs: int = Field(ge=0)


class FloatLayer(Product):
    """A layer left in float, and why."""

    reason: str


class WeightCodebook(Open):
    """Of a weight that is made of codewords: how many weights a codeword has, and how many are summed (``formats.codebook``)."""

    length: int
    books: int


class QuantizedLayer(Product):
    """A quantized layer: its bits (no weight: a product of two activations), and the quantizers that it reads (none: floats).

    ``format`` is the number format that it is planned to multiply in, where that is not what its bits say.

    ``widths``: bits to which its weight can be sliced, ``weight_bits`` first.
    """

    weight_bits: int | None = Field(default=None, ge=2, le=8)
    activation_bits: Annotated[int, AfterValidator(_known_bits)]
    weight_block: int = 0
    weight_codebook: WeightCodebook | None = None
    format: str | None = None
    widths: list[int] = Field(default_factory=list)
    quantizers: list[str]

    @property
    def activation_format(self) -> NumberFormat:
        """What its activations are."""
        return of_bits(self.activation_bits, self.format)


class LoweredLayer(QuantizedLayer):
    """The same in a graph: ``output`` is a value's name, ``input`` too where its activations stay float."""

    output: str
    input: str | None = None
    weight_storage: str | None = None


class QuantizerEntry(Open):
    """An activation quantizer of a checkpoint and the layers that read it. ``source``: its scales are computed, or rows of a table.

    ``block``: channels that share a computed scale, which needs no table; 0: all of a token. ``zero_points``: they are computed too.
    """

    name: str
    layers: list[str]
    source: ScaleSource = ScaleSource.TABLE
    block: int = 0
    zero_points: bool = False


class QuantizerSite(Open):
    """A quantizer where a graph has it: the values that it reads and gives, and how it pads.

    ``block`` and ``zero_points`` are as ``QuantizerEntry`` has them.
    """

    name: str
    input: str
    codes: str
    pads: list[int]
    code_type: Literal["INT8", "UINT8", "FLOAT8E4M3FN", "FLOAT4E2M1"]
    source: ScaleSource = ScaleSource.TABLE
    block: int = 0
    zero_points: bool = False


class BitsOfWork(Open):
    """Bits, and the share of the multiply-accumulates in layers that have them; ``format`` as ``QuantizedLayer`` has it."""

    weight_bits: int
    activation_bits: int
    format: str | None = None
    share: float
