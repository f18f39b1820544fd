"""Quantizers and integer layers: the PyTorch form of what the engines execute.

A quantizer turns a tensor into integer codes with one scale per sample; a layer multiplies codes by codes and only then scales,
exactly as an integer engine does. No module remembers a timestep: it is an argument.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import nn

from . import numerics


class Quantized(NamedTuple):
    """A quantized activation: x ≈ codes · scale."""

    codes: torch.Tensor  # integers minus their zero-point, as floats, shaped as the activation
    scale: torch.Tensor  # [N]: one per sample


class ActivationQuantizer(nn.Module):
    """Temporal Parallel Quantizer (DilateQuant §4.2): tables of one (scale, zero_point) per calibrated timestep.

    ``dilation`` [C] along ``axis`` divides the activation first (Y = (X/s)(s∘W), eq. 10). ``static`` trains one row for all timesteps;
    what a checkpoint stores has T rows either way.
    """

    log_scale: torch.Tensor
    zero_point: torch.Tensor
    boundaries: torch.Tensor
    dilation: torch.Tensor
    frozen_scale: torch.Tensor | None

    def __init__(self, timesteps: torch.Tensor, bits: int, *, symmetric: bool, axis: int, channels: int, fixed: bool = False,
                 static: bool = False) -> None:  # fmt: skip
        super().__init__()
        self.table_rows = len(timesteps)
        rows = 1 if static else self.table_rows
        self.bits, self.symmetric, self.axis, self.fixed, self.static = bits, symmetric, axis, fixed, static
        # The logarithm is what is trained: a scale stays positive, and steps are relative to it.
        self.log_scale = nn.Parameter(torch.zeros(rows, 1), requires_grad=not fixed)
        self.zero_point = nn.Parameter(torch.zeros(rows, 1), requires_grad=not (fixed or symmetric))
        self.register_buffer("boundaries", numerics.midpoints(timesteps))
        self.register_buffer("dilation", torch.ones(channels))
        self.register_buffer("frozen_scale", None, persistent=False)  # a buffer, to follow the module to another device

    def config(self) -> dict[str, Any]:
        """What, beside its tables, makes this quantizer."""
        return {"bits": self.bits, "symmetric": self.symmetric, "axis": self.axis, "channels": len(self.dilation), "fixed": self.fixed}

    @torch.no_grad()
    def set_tables(self, scale: torch.Tensor, zero_point: torch.Tensor, rows: slice = slice(None)) -> None:
        """Set the tables, or some ``rows`` of them, from scale [T] > 0 and zero_point [T]; [1] each when static."""
        self.log_scale[rows] = scale.double().log().float().reshape(-1, 1)
        self.zero_point[rows] = zero_point.reshape(-1, 1)

    @torch.no_grad()
    def scale_table(self) -> torch.Tensor:
        """Scales [T], fp32."""
        scale = self._constant()
        scale = self.log_scale[:, 0].exp() if scale is None else scale
        return scale.expand(self.table_rows).clone()

    @torch.no_grad()
    def zero_point_table(self) -> torch.Tensor:
        """Zero-points [T], int8."""
        qmin, qmax = numerics.code_range(self.bits)
        return self.zero_point[:, 0].round().clamp(qmin, qmax).to(torch.int8).expand(self.table_rows).clone()

    @torch.no_grad()
    def _constant(self) -> torch.Tensor | None:
        """Scales that no training moves [T]: frozen ones, and of a fixed quantizer 2⁻ᵏ of its range [0, 1] in 2ᵇ − 1 steps.

        The latter's logarithm is rounded to that: exp(log(1/255)) is not 1/255.
        """
        if self.frozen_scale is not None or not self.fixed:
            return self.frozen_scale
        steps = 2**self.bits - 1
        exponent = (self.log_scale[:, 0].double() / math.log(2) + math.log2(steps)).round()
        scale: torch.Tensor = (torch.exp2(exponent) / steps).float()
        return scale

    def freeze(self) -> None:
        """Fix the tables to exactly what a checkpoint stores."""
        scale, zero_point = self.scale_table(), self.zero_point_table()
        self.requires_grad_(False)
        self.frozen_scale, self.static = scale, False
        self.zero_point.data = zero_point.float().reshape(-1, 1)

    def rows(self, timestep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and zero-point [N] for timesteps [N]."""
        index = numerics.select_rows(timestep, self.boundaries)
        index = torch.zeros_like(index) if self.static else index
        zero_point = F.embedding(index, self.zero_point)[:, 0]
        scale = self._constant()
        if scale is not None:
            return scale[index], zero_point
        return F.embedding(index, self.log_scale)[:, 0].exp(), zero_point

    def divided(self, x: torch.Tensor) -> torch.Tensor:
        """What is rounded of x [N, ...]: x over its dilation."""
        # Where the dilation is 1 (folded, or never there), multiplying by it would only cost time; on a GPU, so would asking.
        if self.fixed or (self.dilation.device.type == "cpu" and bool((self.dilation == 1).all())):
            return x
        return x * numerics.per_channel(1 / self.dilation, x, self.axis)

    def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> Quantized:
        """Quantize x [N, ...], each sample with the row of its timestep [N]."""
        scale, zero_point = self.rows(timestep)
        x = self.divided(x)
        codes = numerics.quantize(x, numerics.per_row(1 / scale, x), numerics.per_row(zero_point, x), self.bits)
        return Quantized(codes, scale)


class QuantizedWeight(nn.Module):
    """Base of the layers with weights: symmetric per-output-channel codes, trained as floats until frozen."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.weight = nn.Parameter(weight.detach().clone().float())
        self.log_scale = nn.Parameter(numerics.weight_scale(self.weight.detach(), bits).log())
        self.bias = nn.Parameter(bias.detach().clone().float()) if bias is not None else None
        self.frozen: tuple[torch.Tensor, torch.Tensor] | None = None  # codes int8, scale [O]

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        """Frozen codes follow the module to another device too."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.frozen is not None:
            codes, scale = self.frozen
            self.frozen = fn(codes), fn(scale)
        return self

    @torch.no_grad()
    def set_weight(self, weight: torch.Tensor, *, clip: bool = False) -> None:
        """Replace the float weight (after dilation) and derive its scale anew: of its whole range, or ``clip`` it to the least error."""
        self.weight.copy_(weight)
        scale = numerics.clipped_weight_scale if clip else numerics.weight_scale
        self.log_scale.copy_(scale(self.weight, self.bits).log())

    def freeze(self) -> None:
        """Fix the weight to integer codes and drop the float one."""
        with torch.no_grad():
            codes, scale = self.integer_weight()
        self.set_frozen(codes.to(torch.int8), scale.clone())

    def set_frozen(self, codes: torch.Tensor, scale: torch.Tensor) -> None:
        """Take codes int8 [O, ...] and scale [O] from a checkpoint."""
        self.requires_grad_(False)
        self.frozen = (codes, scale)
        self.weight.data = torch.empty(0)

    def integer_weight(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes as floats [O, ...] and scale [O]."""
        if self.frozen is not None:
            return self.frozen[0].float(), self.frozen[1]
        scale = self.log_scale.exp()
        return numerics.quantize_weight(self.weight, scale, self.bits), scale

    def finish(self, y: torch.Tensor, w_scale: torch.Tensor, x_scale: torch.Tensor, axis: int) -> torch.Tensor:
        """Integer sums → output: · (s_w[o] · s_t) + bias, in fp32."""
        y = y * (numerics.per_channel(w_scale, y, axis) * numerics.per_row(x_scale, y))
        return y if self.bias is None else y + numerics.per_channel(self.bias, y, axis)


class QuantizedConv2d(QuantizedWeight):
    """Convolution of codes [N, C, H, W]; padding is added to the zero-point-free codes, so it is the number 0."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, bits: int, stride: list[int], padding: list[int],
                 dilation: list[int], groups: int) -> None:  # fmt: skip
        super().__init__(weight, bias, bits)
        self.stride, self.padding, self.dilation, self.groups = list(stride), list(padding), list(dilation), groups

    @property
    def geometry(self) -> dict[str, Any]:
        """Keyword arguments of the convolution beside its tensors."""
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}

    def config(self) -> dict[str, Any]:
        """What, beside its tensors, makes this layer."""
        return {"op": "conv2d", "bits": self.bits, **self.geometry}

    def forward(self, x: Quantized) -> torch.Tensor:
        """Codes [N, C, H, W] → output [N, O, H', W'], fp32."""
        codes, scale = self.integer_weight()
        y = F.conv2d(x.codes, codes, None, self.stride, self.padding, self.dilation, self.groups)
        return self.finish(y, scale, x.scale, axis=1)


class QuantizedLinear(QuantizedWeight):
    """Matrix product of codes [..., C] with weights [O, C]."""

    def config(self) -> dict[str, Any]:
        """What, beside its tensors, makes this layer."""
        return {"op": "linear", "bits": self.bits}

    def forward(self, x: Quantized) -> torch.Tensor:
        """Codes [N, ..., C] → output [N, ..., O], fp32."""
        codes, scale = self.integer_weight()
        return self.finish(F.linear(x.codes, codes), scale, x.scale, axis=-1)


class QuantizedMatmul(nn.Module):
    """Product of two activations [N, ..., M, K] · [N, ..., K, P], both quantized."""

    def config(self) -> dict[str, Any]:
        """A matrix product has no tensors of its own."""
        return {"op": "matmul"}

    def freeze(self) -> None:
        """Nothing to fix."""

    def forward(self, a: Quantized, b: Quantized) -> torch.Tensor:
        """Product [N, ..., M, P] in fp32; each sample's own two scales."""
        y = torch.matmul(a.codes, b.codes)
        return y * numerics.per_row(a.scale * b.scale, y)
