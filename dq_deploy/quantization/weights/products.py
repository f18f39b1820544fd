"""Products of two activations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch

from .. import numerics
from ..quantizers.base import Quantized
from .base import QuantizedLayer


class QuantizedMatmul(QuantizedLayer):
    """Product of two activations [N, ..., M, K] · [N, ..., K, P], both quantized. It has no tensors of its own."""

    kind = "matmul"

    @classmethod
    def from_tensors(cls, name: str, config: Mapping[str, Any], tensors: dict[str, torch.Tensor], bias: str) -> Self:  # noqa: ARG003
        """As ``QuantizedLayer`` says."""
        return cls()

    def forward(self, a: Quantized, b: Quantized) -> torch.Tensor:
        """Product [N, ..., M, P] in fp32; each sample's own two scales."""
        y = torch.matmul(a.codes, b.codes)
        return y * numerics.per_sample(a.scale * b.scale, y)
