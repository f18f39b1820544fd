"""Linear layers that multiply FP4 codes, each block of 16 with a scale in E4M3 on either side (NVFP4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch

from ...formats import FP8, NumberFormat
from ...formats.tables import BIAS, BLOCK_SCALE, CODES, PACKED_CODES, WEIGHT_GLOBAL_SCALE
from .. import blocks, numerics
from ..grid import nearest, positions
from ..integrity import check_fp4_weight, read_format
from ..quantizers.base import Quantized
from .blocked import BlockedLinear
from .packing import pack_int4, unpack_int4

_NUMBERS = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, torch.nan])
"""FP4's numbers from 0 up, by their places on its grid; it has no place 8, which 4 bits can say."""
_ROOM = 2.5
"""How much larger than what just covers its block a scale may become: 2 times by ``clipped_weight_scale``, 1.2 times that by GPTQ."""


class Fp4Linear(BlockedLinear):
    """Product of x [N, ..., C] with a weight [O, C], both of FP4 codes times g · s_b (``quantization/blocks.py``).

    A float engine multiplies what both stand for, block by block, and sums in fp32. So does this.
    """

    kind = "fp4-linear"
    global_scale: torch.Tensor

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, fmt: NumberFormat) -> None:
        super().__init__(weight, bias, fmt, fmt.block)
        self.register_buffer("global_scale", torch.ones(()))
        self._set_global_scale()

    def _set_global_scale(self) -> None:
        self.global_scale.fill_(blocks.global_scale(float(self.weight.detach().abs().amax()), _ROOM))

    @torch.no_grad()
    def set_weight(self, weight: torch.Tensor, *, clip: bool = False) -> None:
        """As ``QuantizedWeight`` says."""
        super().set_weight(weight.reshape(self.weight.shape), clip=clip)
        self._set_global_scale()

    def settled(self, scale: torch.Tensor) -> torch.Tensor:
        """As ``QuantizedWeight`` says: significands of E4M3. Only what is far too small or too large for its layer is moved later."""
        mantissa, exponent = torch.frexp(scale)
        return torch.ldexp((mantissa * 16).round() / 16, exponent)  # 3 bits behind the first

    def integer_weight(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes as floats [O, C] and scales [O, B]."""
        if self.frozen is not None:
            return self.stored.codes.float(), self.stored.scale
        exact = self.log_scale.exp()
        scale = nearest(exact.detach() / self.global_scale, FP8).clamp(min=blocks.LEAST_SCALE) * self.global_scale
        if torch.is_grad_enabled():
            scale = scale * (exact / exact.detach())  # times 1: the straight-through estimator
        codes = numerics.quantize_weight(self.weight, scale, self.format)
        return codes.reshape(self.out_channels, -1), scale.reshape(self.out_channels, -1)

    @classmethod
    def from_tensors(cls, name: str, config: Mapping[str, Any], tensors: dict[str, torch.Tensor], bias: str) -> Self:
        """As ``QuantizedLayer`` says."""
        fmt = read_format(name, config)
        at = unpack_int4(tensors.pop(f"{name}.{PACKED_CODES}"), config["shape"])
        tensors[f"{name}.{CODES}"] = _NUMBERS[at.abs().long()].copysign(at).to(torch.float8_e4m3fn)
        check_fp4_weight(name, tensors, fmt, bias=bias)
        layer = cls(torch.zeros(len(at), fmt.block), tensors.get(bias), fmt)
        layer.global_scale.copy_(tensors[f"{name}.{WEIGHT_GLOBAL_SCALE}"])
        layer.set_frozen(tensors[f"{name}.{CODES}"], tensors[f"{name}.{BLOCK_SCALE}"].float() * layer.global_scale)
        return layer

    def tensors(self) -> dict[str, torch.Tensor]:
        """As ``QuantizedLayer`` says: codes as their places on the grid of FP4, −7 to 7, two to a byte."""
        at = positions(self.stored.codes.float(), self.format).to(torch.int8)
        stored = {PACKED_CODES: pack_int4(at), BLOCK_SCALE: self.block_scale(), WEIGHT_GLOBAL_SCALE: self.global_scale}
        return stored | ({} if self.bias is None else {BIAS: self.bias})

    def block_scale(self) -> torch.Tensor:
        """Scales of the blocks [O, B] of the frozen weight, in E4M3."""
        return (self.stored.scale / self.global_scale).to(torch.float8_e4m3fn)

    def forward(self, x: Quantized) -> torch.Tensor:
        """Codes [N, ..., C] → output [N, ..., O], fp32."""
        return self.float_product(x.codes * x.scale, self.unpacked())
