"""Weights as sums of codewords: what a codebook is, and the number format that it gives a weight."""

from __future__ import annotations

from dataclasses import dataclass

from .number import FORMATS, Kind, NumberFormat, register_format

LENGTHS, MOST_BOOKS, ENTRIES = (2, 4, 8), 4, 256
"""Lengths of a codeword, additive books at the most, and codewords of a book: an index is a byte."""

for _bits in (2, 3, 4):
    # A sum of codewords is an INT8 code, and that is what is multiplied; what is stored is an index for each ``length`` of them.
    register_format(NumberFormat(f"VQ{_bits}", _bits, Kind.CODEBOOK, -128, 127, "int8", "INT8", _bits))


@dataclass(frozen=True)
class Codebook:
    """``length`` input weights at a time are the sum of a codeword from each of ``books`` books of 256.

    As AQLM (arXiv 2401.06118) and VQDM (arXiv 2409.00492) have it, but codewords are integers, so that the product stays one of INT8 codes.
    Raises ValueError for what has no format: 2, 3 or 4 bits a weight.
    """

    length: int
    books: int

    def __post_init__(self) -> None:
        if self.length not in LENGTHS or not 1 <= self.books <= MOST_BOOKS or self.books * 8 % self.length or not 2 <= self.bits <= 4:
            raise ValueError(
                f"{self.books} books of codewords of {self.length} weights: lengths are {', '.join(map(str, LENGTHS))}, and "
                f"8 × books / length, the bits of a weight, 2, 3 or 4"
            )

    @property
    def bits(self) -> int:
        """Bits that a weight takes, without the codewords."""
        return 8 * self.books // self.length

    @property
    def format(self) -> NumberFormat:
        """The format of the weights."""
        return FORMATS[f"VQ{self.bits}"]

    def storage_bytes(self, weights: int) -> int:
        """Bytes of the indices of so many weights, and of the codewords."""
        return weights * self.books // self.length + self.books * ENTRIES * self.length

    def pays(self, outputs: int, inputs: int) -> bool:
        """Whether a layer's weight [outputs, inputs] takes fewer bytes so than in INT4, and can be cut into codewords."""
        return inputs % self.length == 0 and self.storage_bytes(outputs * inputs) < outputs * inputs // 2
