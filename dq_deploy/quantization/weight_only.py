"""Layers whose weights are integers and whose activations stay float: what an engine unpacks inside a float product.

A weight of a linear layer has a scale for each block of its input channels, where engines take blocks; a convolution's has one for each
output channel. Scales are numbers that fp16 has, so that a graph in fp16 holds the very weights of the checkpoint.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from . import numerics
from .layers import QuantizedConv2d, QuantizedWeight

BLOCKS = (128, 64, 32)
"""Lengths of a block that the engines take (docs/engine-patterns.md)."""
_HALF = torch.finfo(torch.float16)


def block_length(wanted: int, channels: int) -> int:
    """The longest block of at most ``wanted`` elements that divides the input channels; 0, a scale for the whole row, where none does."""
    return next((block for block in BLOCKS if block <= wanted and channels % block == 0), 0)


def half_precision(scale: torch.Tensor) -> torch.Tensor:
    """Scales as fp32 that fp16 has exactly: the nearest, but none that is subnormal there."""
    return scale.clamp(_HALF.smallest_normal, _HALF.max).half().float()


class WeightOnlyLinear(QuantizedWeight):
    """Matrix product of float x [..., C] with a weight [O, C] of integer codes, a scale for each ``block`` of C (0: one for all of it).

    While it is trained, ``weight`` is [O · B, block] and ``log_scale`` [O · B], so that a block is what a row is elsewhere. Frozen, codes
    are [O, C] and scales [O, B].
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, bits: int, block: int) -> None:
        self.rows = len(weight)
        super().__init__(weight.reshape(-1, block or weight.shape[1]), bias, bits)
        self.block = block

    def config(self) -> dict[str, Any]:
        """What, beside its tensors, makes this layer."""
        return {"op": "weight-only-linear", "bits": self.bits, "block": self.block}

    def integer_weight(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes as floats [O, C] and scales [O, B]."""
        if self.frozen is not None:
            return self.frozen[0].float(), self.frozen[1]
        codes, scale = super().integer_weight()
        return codes.reshape(self.rows, -1), scale.reshape(self.rows, -1)

    def freeze(self) -> None:
        """Fix the weight to integer codes, with scales that fp16 has."""
        freeze_half(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Activation [N, ..., C] → output [N, ..., O], fp32."""
        codes, scale = self.integer_weight()
        weight = codes.unflatten(1, (scale.shape[1], -1)) * scale[:, :, None]
        return F.linear(x, weight.flatten(1), self.bias)


class WeightOnlyConv2d(QuantizedConv2d):
    """Convolution of float x [N, C, H, W] with integer codes [O, C, kh, kw], a scale [O] for each output channel."""

    def config(self) -> dict[str, Any]:
        """What, beside its tensors, makes this layer."""
        return {**super().config(), "op": "weight-only-conv2d"}

    def freeze(self) -> None:
        """Fix the weight to integer codes, with scales that fp16 has."""
        freeze_half(self)

    def unpacking(self) -> torch.Tensor:
        """What the codes are multiplied with: [O, 1, 1, 1]."""
        codes, scale = self.integer_weight()
        return numerics.per_row(scale, codes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]  # float activations
        """Activation [N, C, H, W] → output [N, O, H', W'], fp32."""
        codes, _ = self.integer_weight()
        return F.conv2d(x, codes * self.unpacking(), self.bias, **self.geometry)


WeightOnly = WeightOnlyLinear | WeightOnlyConv2d


@torch.no_grad()
def freeze_half(layer: WeightOnly) -> None:
    """Round the scales to fp16 first, then the weights to codes of these scales."""
    if layer.frozen is None:
        layer.log_scale.copy_(half_precision(layer.log_scale.exp()).log())
    codes, scale = layer.integer_weight()
    layer.set_frozen(codes.to(torch.int8), half_precision(scale))
