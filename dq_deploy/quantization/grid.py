"""The numbers of a format as a grid: the nearest of them, how far they lie apart, and their order."""

from __future__ import annotations

import torch

from ..formats import NumberFormat


def nearest(x: torch.Tensor, fmt: NumberFormat, *, narrow: bool = False) -> torch.Tensor:
    """The number of a format nearest to each of x [...], half to even; what is beyond its range takes the end of it, NaN stays."""
    return rounded(x.clamp(*fmt.code_range(narrow=narrow)), fmt)


def rounded(x: torch.Tensor, fmt: NumberFormat) -> torch.Tensor:
    """The same for x [...] within the range."""
    if not fmt.floating:
        return x.round()
    if fmt.packed:  # torch has no type for it
        step = spacing_at(x, fmt)
        return (x / step).round() * step
    # torch's cast to E4M3 saturates in some versions and gives NaN in others, so nothing beyond the range may reach it.
    return x.to(getattr(torch, fmt.torch_dtype)).to(x.dtype)


def spacing_at(x: torch.Tensor, fmt: NumberFormat) -> torch.Tensor:
    """How far the two numbers of a floating-point format are apart that each of x [...] lies between."""
    _, exponent = torch.frexp(x.float())  # |x| in [2^(exponent − 1), 2^exponent)
    return torch.exp2(((exponent - 1).clamp(min=fmt.least_exponent) - fmt.mantissa_bits).to(x.dtype))


def spacing(codes: torch.Tensor, fmt: NumberFormat) -> torch.Tensor:
    """How far the nearest other number of a format is from each of its numbers ``codes`` [...]."""
    if not fmt.floating:
        return torch.ones_like(codes)
    mantissa, exponent = torch.frexp(codes.float())  # |code| = |mantissa| · 2^exponent, |mantissa| in [1/2, 1)
    power = exponent - 1 - (mantissa.abs() == 0.5).int()  # next to a power of two, the numbers below it are twice as near
    power = torch.where(codes == 0, fmt.least_exponent, power.clamp(min=fmt.least_exponent))
    return torch.exp2((power - fmt.mantissa_bits).to(codes.dtype))


def positions(codes: torch.Tensor, fmt: NumberFormat) -> torch.Tensor:
    """Where on the grid ``codes`` [...] are, counted in its numbers from 0: the difference of two is how many steps they are apart."""
    if not fmt.floating:
        return codes
    if fmt.packed:
        mantissa, exponent = torch.frexp(codes.abs().float())  # |code| = mantissa · 2^exponent, mantissa in [1/2, 1)
        per_power, octave = 2**fmt.mantissa_bits, exponent - 1 - fmt.least_exponent
        normal = (octave + 2 * mantissa) * per_power
        subnormal = codes.abs() * 2.0 ** (fmt.mantissa_bits - fmt.least_exponent)
        return torch.where(octave < 0, subnormal, normal).to(codes.dtype).copysign(codes)
    bits = codes.to(getattr(torch, fmt.torch_dtype)).view(torch.uint8).int()
    magnitude = (bits & 0x7F).to(codes.dtype)  # one more for each larger number
    return torch.where(codes.isnan(), codes, torch.where(bits > 0x7F, -magnitude, magnitude))


def held(fmt: NumberFormat) -> torch.dtype:
    """A type that holds every number of a format, and that torch has all operations for."""
    return torch.float16 if fmt.floating else torch.int8
