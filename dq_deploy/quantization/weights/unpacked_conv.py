"""A convolution whose weight alone is integers, a scale for each output channel; it is unpacked in front of a float product."""

from __future__ import annotations

import torch

from .. import numerics
from .per_channel import QuantizedConv2d


class WeightOnlyConv2d(QuantizedConv2d):
    """Convolution of float x [N, C, H, W] with integer codes [O, C, kh, kw], a scale [O] for each output channel."""

    kind = "weight-only-conv2d"
    weight_only = True

    def unpacking(self) -> torch.Tensor:
        """What the codes are multiplied with: [O, 1, 1, 1]."""
        codes, scale = self.integer_weight()
        return numerics.per_channel(scale, codes, 0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]  # float activations
        """Activation [N, C, H, W] → output [N, O, H', W'], fp32."""
        codes, _ = self.integer_weight()
        return self.float_product(x, codes * self.unpacking())
