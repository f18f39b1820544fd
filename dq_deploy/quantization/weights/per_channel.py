"""Products of integer activations and integer weights, a scale for each output channel.

A layer multiplies codes by codes and only then scales, exactly as an integer engine does.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
import torch.nn.functional as F

from ...formats import NumberFormat
from ..quantizers.base import Quantized
from .base import QuantizedWeight


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
    def footprint(self) -> Hashable:
        """As ``QuantizedWeight`` says: the kernel's places."""
        return ("conv2d", *self.weight.shape[2:], *self.stride, *self.padding, *self.dilation, self.groups)

    def columns(self, x: torch.Tensor) -> torch.Tensor:
        """As ``QuantizedWeight`` says: patches, K = C/g · kh · kw."""
        kernel, dilation, padding, stride = map(tuple, (self.weight.shape[2:], self.dilation, self.padding, self.stride))
        patches: torch.Tensor = F.unfold(x, kernel, dilation, padding, stride).unflatten(1, (self.groups, -1))  # [N, g, K, P]
        return patches.permute(1, 0, 3, 2)

    def float_product(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """X [N, C, H, W], weight [O, C/g, kh, kw] → [N, O, H', W']."""
        return F.conv2d(x, weight, self.bias, **self.geometry)

    def forward(self, x: Quantized) -> torch.Tensor:
        """Codes [N, C, H, W] → output [N, O, H', W'], fp32."""
        codes, scale = self.integer_weight()
        return self.finish(F.conv2d(x.codes, codes, None, **self.geometry), scale, x.scale)


def tokens(x: torch.Tensor) -> torch.Tensor:
    """X [N, ..., C] → [1, N, P, C]."""
    return x.reshape(1, len(x), -1, x.shape[-1])


class QuantizedLinear(QuantizedWeight):
    """Matrix product of codes [..., C] with weights [O, C]."""

    kind = "linear"

    @property
    def footprint(self) -> Hashable:
        """As ``QuantizedWeight`` says: a token."""
        return "linear"

    def columns(self, x: torch.Tensor) -> torch.Tensor:
        """As ``QuantizedWeight`` says: tokens."""
        return tokens(x)

    def float_product(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """X [..., C], weight [O, C] → [..., O]."""
        return F.linear(x, weight, self.bias)

    def forward(self, x: Quantized) -> torch.Tensor:
        """Codes [N, ..., C] → output [N, ..., O], fp32."""
        codes, scale = self.integer_weight()
        return self.finish(F.linear(x.codes, codes), scale, x.scale)
