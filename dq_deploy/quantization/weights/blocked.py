"""Linear layers whose weights have a scale for each block of input channels.

Of those whose weight alone is integers an engine unpacks it inside a float product.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from ...formats import PER_CHANNEL, Granularity, NumberFormat, ScaleSource, Scheme
from .base import QuantizedWeight
from .footprint import Footprint, TokenFootprint

BLOCKS = (128, 64, 32)
"""Lengths of a block that the engines take (benchmarks/patterns/RESULTS.md)."""


def block_length(most: int, channels: int) -> int:
    """The longest block of at most ``most`` elements that divides the input channels; 0, one scale for all of them, where none does."""
    return next((block for block in BLOCKS if block <= most and channels % block == 0), 0)


class BlockedLinear(QuantizedWeight):
    """Base of a weight [O, C] with a scale for each ``block`` of C (0: one for all of it).

    While it is trained, ``weight`` is [O · B, block] and ``log_scale`` [O · B]: each block is treated as an output channel.
    Frozen, codes are [O, C] and scales [O, B].
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, fmt: NumberFormat, block: int) -> None:
        self.out_channels = len(weight)
        super().__init__(weight.reshape(-1, block or weight.shape[1]), bias, fmt)
        self.scheme = Scheme(Granularity.BLOCK, ScaleSource.CONSTANT, symmetric=True, block=block) if block else PER_CHANNEL

    @property
    def block(self) -> int:
        """Input channels that share a scale; 0: all of them."""
        return self.scheme.block

    def integer_weight(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes as floats [O, C] and scales [O, B]."""
        if self.frozen is not None:
            return self.frozen.codes.float(), self.frozen.scale
        codes, scale = super().integer_weight()
        return codes.reshape(self.out_channels, -1), scale.reshape(self.out_channels, -1)

    @property
    def footprint(self) -> Footprint:
        """As ``QuantizedWeight`` says: a token."""
        return TokenFootprint()

    def matrix(self) -> torch.Tensor:
        """As ``QuantizedWeight`` says: [O, C]."""
        return self.weight.reshape(self.out_channels, -1)

    def float_product(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """X [..., C], weight [O, C] → [..., O]."""
        return F.linear(x, weight, self.bias)

    def unpacked(self) -> torch.Tensor:
        """The weight [O, C] that its codes and scales stand for, fp32."""
        codes, scale = self.integer_weight()
        weight: torch.Tensor = codes.unflatten(1, (scale.shape[1], -1)) * scale[:, :, None]
        return weight.flatten(1)


class WeightOnlyLinear(BlockedLinear):
    """Matrix product of float x [..., C] with a weight of integer codes."""

    kind = "weight-only-linear"
    weight_only = True

    def config(self) -> dict[str, Any]:
        """What, beside its tensors, makes this layer."""
        return super().config() | {"block": self.block}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Activation [N, ..., C] → output [N, ..., O], fp32."""
        return self.float_product(x, self.unpacked())
