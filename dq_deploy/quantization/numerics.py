"""The arithmetic that every stage keeps to: pure functions on tensors, no configuration, no state.

ONNX's convention throughout: q = clip(round(x / scale) + zero_point, qmin, qmax), rounding half to even. In a floating-point format q is
the nearest of its numbers, saturated at the ends, and there are no zero-points.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..formats import CODES, NumberFormat
from .grid import nearest
from .straight_through import QuantizeActivation, QuantizeWeight

_HALF = torch.finfo(torch.float16)


def not_finite(values: torch.Tensor) -> list[int]:
    """Which of ``values`` [N, ...] have NaN or Inf somewhere.

    A sum has NaN or Inf where any of its terms does, and takes a twentieth of the time that looking at each takes; one that only
    overflows is looked at too.
    """
    if bool(torch.isfinite(values.sum())):
        return []
    bad: list[int] = (~torch.isfinite(values.flatten(1))).any(dim=1).nonzero()[:, 0].tolist()
    return bad


def midpoints(timesteps: torch.Tensor | Sequence[float]) -> torch.Tensor:
    """Boundaries [T-1] between the rows of a table whose calibrated timesteps [T] ascend, computed and rounded in fp32."""
    t = torch.as_tensor(timesteps, dtype=torch.float32)
    return (t[1:] + t[:-1]) / 2


def select_table_rows(timestep: torch.Tensor, boundaries: torch.Tensor) -> torch.Tensor:
    """Row of the calibrated timestep nearest to each input timestep: [N] of any dtype → int64 [N].

    By value in fp32; a midpoint goes to the smaller timestep. Compare and sum, because ``torch.bucketize`` exports to a hundred nodes.
    """
    return (timestep.reshape(-1, 1).float() > boundaries).sum(dim=1)


def quantize(x: torch.Tensor, inverse_scale: torch.Tensor, zero_point: torch.Tensor, fmt: NumberFormat) -> torch.Tensor:
    """Codes of ``x`` [...] in a format, minus their zero-point, as floats [...]: clip(round(x / s) + z) − z. All tensors broadcast.

    Differentiable in x, the scale and the zero-point (STE for both roundings; a clipped element passes no gradient to x).
    """
    if torch.is_grad_enabled() and (x.requires_grad or inverse_scale.requires_grad or zero_point.requires_grad):
        codes: torch.Tensor = QuantizeActivation.apply(x, inverse_scale, zero_point, fmt)  # type: ignore[no-untyped-call]
        return codes
    if fmt.floating:
        return nearest(x * inverse_scale, fmt)
    z, (qmin, qmax) = torch.round(zero_point), fmt.code_range()
    # In place, on a product that is nobody else's: a third less time than clamping a new tensor to bounds of its own.
    return (x * inverse_scale).round_().add_(z).clamp_(qmin, qmax).sub_(z)


def quantize_weight(weight: torch.Tensor, scale: torch.Tensor, fmt: NumberFormat) -> torch.Tensor:
    """Codes of a weight [O, ...] with a scale [O] for each output channel, as floats; differentiable in both, as ``quantize`` is."""
    shaped = per_channel(scale, weight, 0)
    if torch.is_grad_enabled() and (weight.requires_grad or scale.requires_grad):
        codes: torch.Tensor = QuantizeWeight.apply(weight, shaped, fmt)  # type: ignore[no-untyped-call]
        return codes
    return nearest(weight / shaped, fmt, narrow=True)


def sliced(codes: torch.Tensor, scale: torch.Tensor, fmt: NumberFormat, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The ``bits`` most significant bits of a weight's codes [O, ...] in a wider format, rounded by the next, and their scale [O].

    q_r = clip(round(q / 2^(b − r))) with scale s · 2^(b − r) (Matryoshka quantization, arXiv 2502.06786, eq. 6); a tie goes to the even
    code, and the clip keeps codes symmetric. Differentiable in the codes, as ``quantize_weight`` is.
    """
    step = torch.full_like(scale.detach(), 2.0 ** (fmt.bits - bits))
    return quantize_weight(codes, step, CODES[bits]), scale * step


def affine_parameters(low: torch.Tensor, high: torch.Tensor, fmt: NumberFormat, *, symmetric: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero-point that cover [low, high] (widened to contain 0) with all codes of a format.

    A range too small to divide by (a constant-zero activation) gets scale 1 and zero-point 0: its codes are 0, and so is what an engine
    makes of them, without a correction that cancels only almost.
    """
    qmin, qmax = fmt.code_range()
    low, high = low.clamp(max=0).float(), high.clamp(min=0).float()
    scale = torch.maximum(-low, high) / qmax if symmetric else (high - low) / (qmax - qmin)
    nothing = scale < torch.finfo(torch.float32).tiny * 1e6
    scale = torch.where(nothing, torch.ones_like(scale), scale)
    zero_point = torch.zeros_like(scale) if symmetric else (qmin - low / scale).round().clamp(qmin, qmax)
    return scale, torch.where(nothing, torch.zeros_like(zero_point), zero_point)


def weight_scale(weight: torch.Tensor, fmt: NumberFormat) -> torch.Tensor:
    """Symmetric per-output-channel scale [O] of a weight [O, ...]; an all-zero channel gets scale 1."""
    absmax = weight.flatten(1).abs().amax(dim=1).float()
    scale = absmax / fmt.code_range(narrow=True)[1]
    return torch.where(scale < torch.finfo(torch.float32).tiny * 1e6, torch.ones_like(scale), scale)


def clipped_weight_scale(weight: torch.Tensor, fmt: NumberFormat) -> torch.Tensor:
    """As ``weight_scale``, [O, ...] → [O], with each channel's range shrunk, by half at most, to the least squared error of its weights.

    In a floating-point format, which loses next to nothing below its largest number, it is widened: with how a channel's weights lie
    between two powers of two its error varies by half a decibel.
    """
    flat = weight.flatten(1).float()
    largest = weight_scale(weight, fmt)
    best, best_error = largest, torch.full_like(largest, torch.inf)
    for shrink in torch.linspace(1.0, 0.5, 21).tolist():
        scale = (largest / shrink if fmt.floating else largest * shrink)[:, None]
        error = (nearest(flat / scale, fmt, narrow=True) * scale - flat).pow(2).sum(dim=1)
        best = torch.where(error < best_error, scale[:, 0], best)
        best_error = torch.minimum(error, best_error)
    return best


def half_precision(scale: torch.Tensor) -> torch.Tensor:
    """Scales of any shape as fp32 that fp16 has exactly: the nearest, but none that is subnormal there.

    A graph in fp16 then holds the very weights of the checkpoint.
    """
    return scale.clamp(_HALF.smallest_normal, _HALF.max).half().float()


def per_sample(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """[N] → [N, 1, ..., 1] with as many dimensions as ``like``; what has as many already stays as it is."""
    return values if values.dim() == like.dim() else values.reshape(-1, *[1] * (like.dim() - 1))


def per_channel(values: torch.Tensor, like: torch.Tensor, axis: int) -> torch.Tensor:
    """[C] → shaped to broadcast along ``axis`` of ``like``."""
    shape = [1] * like.dim()
    shape[axis] = -1
    return values.reshape(shape)
