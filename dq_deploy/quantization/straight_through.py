"""Rounding and clipping as one differentiable step each: the gradients of the straight-through estimator, without its chain of small ones.

Autograd through ``round``, ``clamp`` with bounds that are trained, and the broadcasts between them keeps half a dozen tensors of the
activation's size and passes over each. Here the input and one mask are kept. LSQ (arXiv 1902.08153) §2 has the gradients; they are the
same on the grid of a floating-point format, whose rounding is as flat.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from ..formats import NumberFormat
from .grid import nearest


class QuantizeActivation(torch.autograd.Function):
    """y = clamp(round(x · u), qmin − z, qmax − z) with z = round(zero_point); u = 1/scale and z broadcast over x.

    In a floating-point format, which has no zero-points, y is the number nearest to x · u.
    ∂y/∂x = u and ∂y/∂u = x where nothing is clipped, ∂y/∂z = −1 where something is.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, inverse_scale: torch.Tensor, zero_point: torch.Tensor, fmt: NumberFormat) -> torch.Tensor:
        """Codes minus the zero-point [...], shaped as ``x``."""
        if not fmt.floating:
            (qmin, qmax), z = fmt.code_range(), torch.round(zero_point)
            rounded = (x * inverse_scale).round_()
            codes = torch.clamp(rounded, qmin - z, qmax - z)
            inside = codes == rounded
        else:
            codes, inside = _on_grid(x * inverse_scale, fmt)
        # Often nothing is clipped, and then the mask is worth no pass over the gradient. On a GPU, asking would cost more than the pass.
        clipped = x.device.type != "cpu" or not bool(inside.all())
        ctx.save_for_backward(x, inverse_scale, inside if clipped else None)
        ctx.zero_shape = zero_point.shape
        return codes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of x [...], the inverse scale and the zero-point, each in its shape."""
        (grad,) = grads
        x, inverse_scale, inside = ctx.saved_tensors
        passed = grad if inside is None else grad * inside
        grad_scale = (passed * x).sum_to_size(inverse_scale.shape) if ctx.needs_input_grad[1] else None
        grad_zero = None
        if ctx.needs_input_grad[2]:
            grad_zero = grad.new_zeros(ctx.zero_shape) if inside is None else (passed - grad).sum_to_size(ctx.zero_shape)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = passed * inverse_scale if inside is None else passed.mul_(inverse_scale)
        return grad_x, grad_scale, grad_zero, None


class QuantizeWeight(torch.autograd.Function):
    """y = clamp(round(w / s), qmin, qmax), s broadcast over w: ∂y/∂w = 1/s and ∂y/∂s = −w/s² where nothing is clipped.

    In a floating-point format y is the number nearest to w / s.
    """

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, scale: torch.Tensor, fmt: NumberFormat) -> torch.Tensor:
        """Codes [O, ...], shaped as ``weight``."""
        if not fmt.floating:
            rounded = (weight / scale).round_()
            codes = rounded.clamp(*fmt.code_range(narrow=True))
            inside = codes == rounded
        else:
            codes, inside = _on_grid(weight / scale, fmt)
        ctx.save_for_backward(weight, scale, inside)
        return codes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of the weight [O, ...] and its scale [O, 1, ...]."""
        weight, scale, inside = ctx.saved_tensors
        passed = grads[0] * inside / scale
        grad_scale = (passed * weight / -scale).sum_to_size(scale.shape) if ctx.needs_input_grad[1] else None
        return passed if ctx.needs_input_grad[0] else None, grad_scale, None


def _on_grid(x: torch.Tensor, fmt: NumberFormat) -> tuple[torch.Tensor, torch.Tensor]:
    """The nearest numbers of a format whose range is symmetric [...], and where nothing was clipped."""
    return nearest(x, fmt), x.abs() <= fmt.unclipped_range()[1]
