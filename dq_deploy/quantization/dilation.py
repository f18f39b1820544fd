"""Weight dilation: Y = (X / s)(s ∘ W) with the largest s that leaves every output channel's range where it was.

DilateQuant (arXiv 2409.14307) §4.1, eq. 10–12. Symbols: W [O, C, ...], s [C], A = input channels that hold a channel's extreme.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

MAX_DILATION = 64.0
"""Cap of s: an all-zero input channel would be stretched without bound. Beyond 2^6 of 8 bits nothing is left to gain."""


def symmetric_bound(weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """s_k = min over o and kernel positions of absmax_o / |W_ok|, over all consumers [O, C, ...] of one tensor → [C], ≥ 1.

    Keeps every output channel's absmax, which is all that a symmetric scale depends on.
    """
    return _bound([(w.abs(), w.abs().flatten(1).amax(dim=1)) for w in weights])


def asymmetric_bound(weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """The paper's rule: s_k = min of Wmax_o / W_ok where W_ok > 0 and Wmin_o / W_ok where W_ok < 0 → [C], ≥ 1.

    Keeps every output channel's max and min. Zeros are masked (the paper clamps them and divides).
    """
    parts = []
    for w in weights:
        flat = w.flatten(1)
        parts.append((w.clamp(min=0), flat.amax(dim=1).clamp(min=0)))
        parts.append(((-w).clamp(min=0), (-flat).amax(dim=1).clamp(min=0)))
    return _bound(parts)


def _bound(parts: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """Least over parts, o and positions of limit_o / magnitude_ok, where the magnitude is not zero."""
    bounds = []
    for magnitude, limit in parts:
        ratio = torch.where(magnitude > 0, limit.reshape(-1, *[1] * (magnitude.dim() - 1)) / magnitude, torch.inf)
        bounds.append(ratio.transpose(0, 1).flatten(1).amin(dim=1))
    return torch.stack(bounds).amin(dim=0).clamp(1.0, MAX_DILATION)


def dilate(weight: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    """Dilated weight s ∘ W: multiplies input channel k of W [O, C, ...] by s_k."""
    return weight * s.reshape(1, -1, *[1] * (weight.dim() - 2)).to(weight.dtype)


def candidates(bound: torch.Tensor, channel_range: torch.Tensor) -> dict[str, torch.Tensor]:
    """Ways to use a rule's bound [C], for a choice by measured error. ``channel_range`` [T, C] is max|x| per timestep and channel.

    Dividing x_k by s_k multiplies the activation error through column k by s_k. It only pays where the range of the whole tensor
    falls, so beside the full rule there are its square root and forms that touch only the channels that set the range.
    """
    top = channel_range.amax(dim=1, keepdim=True)
    setters = (channel_range >= 0.7 * top).any(dim=0) & (bound > 1)
    found = {"none": torch.ones_like(bound)}
    if (bound > 1).any():
        found["full"], found["half"] = bound, bound.sqrt()
    if setters.any() and not torch.equal(setters, bound > 1):
        found["range-setting"] = torch.where(setters, bound, 1.0)
        found["range-setting half"] = torch.where(setters, bound.sqrt(), 1.0)
    return found
