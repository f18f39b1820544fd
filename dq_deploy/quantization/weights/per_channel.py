"""Products of integer activations and integer weights, a scale for each output channel.

A layer multiplies codes by codes and only then scales, exactly as an integer engine does.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from ...formats import NumberFormat
from ..quantizers.base import Quantized
from .base import QuantizedWeight
from .footprint import Footprint, PatchFootprint, TokenFootprint


class QuantizedConv2d(QuantizedWeight):
    """Convolution of codes [N, C, H, W]; padding is added to the zero-point-free codes, so it is the number 0."""

    kind = "conv2d"
    channel_axis = 1

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, fmt: NumberFormat, stride: list[int], padding: list[int],
                 dilation: list[int], groups: int) -> None:  # fmt: skip
        super().__init__(weight, bias, fmt)
        self.stride, self.padding, self.dilation, self.groups = list(stride), list(padding), list(dilation), groups

    @property
    def geometry(self) -> dict[str, Any]:
        """Keyword arguments of the convolution beside its tensors."""
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}

    def config(self) -> dict[str, Any]:
        """What, beside its tensors, makes this layer."""
        return super().config() | self.geometry

    @property
    def footprint(self) -> Footprint:
        """As ``QuantizedWeight`` says: the kernel's places."""
        kernel, stride, padding, dilation = map(tuple, (self.weight.shape[2:], self.stride, self.padding, self.dilation))
        return PatchFootprint(kernel, stride, padding, dilation, self.groups)

    def float_product(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """X [N, C, H, W], weight [O, C/g, kh, kw] → [N, O, H', W']."""
        return F.conv2d(x, weight, self.bias, **self.geometry)

    def forward(self, x: Quantized) -> torch.Tensor:
        """Codes [N, C, H, W] → output [N, O, H', W'], fp32."""
        codes, scale = self.integer_weight()
        return self.finish(F.conv2d(x.codes, codes, None, **self.geometry), scale, x.scale)


class QuantizedLinear(QuantizedWeight):
    """Matrix product of codes [..., C] with weights [O, C]."""

    kind = "linear"

    @property
    def footprint(self) -> Footprint:
        """As ``QuantizedWeight`` says: a token."""
        return TokenFootprint()

    def float_product(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """X [..., C], weight [O, C] → [..., O]."""
        return F.linear(x, weight, self.bias)

    def forward(self, x: Quantized) -> torch.Tensor:
        """Codes [N, ..., C] → output [N, ..., O], fp32."""
        codes, scale = self.integer_weight()
        return self.finish(F.linear(x.codes, codes), scale, x.scale)
