"""Weight dilation: Y = (X / s)(s ∘ W) with the largest s that leaves every output channel's range where it was.

DilateQuant (arXiv 2409.14307) §4.1, eq. 10–12. Symbols: W [O, C, ...], s [C], A = input channels that hold a channel's extreme.

A convolution in g groups has weights [O, C/g, ...]: outputs of group j meet the C/g input channels of group j alone. C is the tensor's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

MAX_DILATION = 64.0
"""Cap of s: an all-zero input channel would be stretched without bound. Beyond 2^6 of 8 bits nothing is left to gain."""

MAX_SMOOTHING = 1e4
"""Cap of SmoothQuant's factor in both directions: a channel that hardly ever speaks would be blown up without bound."""


def symmetric_bound(weights: Sequence[torch.Tensor], channels: int) -> torch.Tensor:
    """s_k = min over o and kernel positions of absmax_o / |W_ok|, over all consumers of one tensor of C ``channels`` → [C], ≥ 1.

    Keeps every output channel's absmax, which is all that a symmetric scale depends on.
    """
    return _bound([(w.abs(), w.abs().flatten(1).amax(dim=1)) for w in weights], channels)


def asymmetric_bound(weights: Sequence[torch.Tensor], channels: int) -> torch.Tensor:
    """The paper's rule: s_k = min of Wmax_o / W_ok where W_ok > 0 and Wmin_o / W_ok where W_ok < 0 → [C], ≥ 1.

    Keeps every output channel's max and min. Zeros are masked (the paper clamps them and divides).
    """
    parts = []
    for w in weights:
        flat = w.flatten(1)
        parts.append((w.clamp(min=0), flat.amax(dim=1).clamp(min=0)))
        parts.append(((-w).clamp(min=0), (-flat).amax(dim=1).clamp(min=0)))
    return _bound(parts, channels)


def _bound(parts: Sequence[tuple[torch.Tensor, torch.Tensor]], channels: int) -> torch.Tensor:
    """Least over parts, o and positions of limit_o / magnitude_ok, where the magnitude is not zero."""
    bounds = []
    for magnitude, limit in parts:
        ratio = torch.where(magnitude > 0, limit.reshape(-1, *[1] * (magnitude.dim() - 1)) / magnitude, torch.inf)
        bounds.append(_by_channel(ratio, channels).amin(dim=1))
    return torch.stack(bounds).amin(dim=0).clamp(1.0, MAX_DILATION)


def groups_of(weight: torch.Tensor, channels: int) -> int:
    """Groups g of a layer with ``weight`` [O, C/g, ...] that reads a tensor of C ``channels``."""
    return channels // weight.shape[1]


def _by_channel(values: torch.Tensor, channels: int) -> torch.Tensor:
    """Values [O, C/g, ...] at a weight's places → [C, O/g · positions]: each input channel's own."""
    values = values.unflatten(0, (groups_of(values, channels), -1)).transpose(1, 2)  # [g, C/g, O/g, ...]
    return values.flatten(0, 1).flatten(1)


def dilate(weight: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    """Dilated weight s ∘ W: multiplies what W [O, C/g, ...] has of input channel k by s_k."""
    groups = groups_of(weight, len(s))
    factors = s.reshape(groups, -1).repeat_interleave(len(weight) // groups, dim=0)  # [O, C/g]
    return weight * factors.reshape(*factors.shape, *[1] * (weight.dim() - 2)).to(weight.dtype)


def smoothquant(channel_range: torch.Tensor, weights: Sequence[torch.Tensor], alpha: float = 0.5) -> torch.Tensor:
    """SmoothQuant's factor (arXiv 2211.10438, eq. 4): s_k = max|x_k|^α / max|W_k|^(1−α) → [C], 1 where either is all zero."""
    weight_range = torch.stack([_by_channel(w.abs(), len(channel_range)).amax(dim=1) for w in weights]).amax(dim=0)
    s = channel_range**alpha / weight_range ** (1 - alpha)
    return torch.where((channel_range > 0) & (weight_range > 0), s, torch.ones_like(s)).clamp(1 / MAX_SMOOTHING, MAX_SMOOTHING)


@dataclass(frozen=True)
class LayerStatistics:
    """What an activation and its consumers look like before dilation. ``weights`` are [O, C/g, ...], ``weight_steps`` Δw [O]."""

    channel_range: torch.Tensor  # [T, C]: max|x|
    channel_power: torch.Tensor  # [T, C]: E[x²]
    step: torch.Tensor | None  # [T]: Δx; None: steps differ, as those of floats do
    weights: list[torch.Tensor]
    weight_steps: list[torch.Tensor]


def balanced(bound: torch.Tensor, statistics: LayerStatistics) -> torch.Tensor:
    """The s within [1, bound] with the least predicted output error while Δx stays what it is.

    E(s) = Σ_t g_t [Δx_t²/12 · Σ_k s_k² ‖W_k‖² + K/12 · Σ_o Δw_o² · Σ_k E_t[x_k²]/s_k²], with K kernel positions and g_t the inverse power
    of the activation, so that timesteps count alike. It splits by channel: s_k⁴ = K · ΣΔw² · Σ_t g_t E_t[x_k²] / (Σ_t g_t Δx_t² · ‖W_k‖²),
    where o runs over the outputs that channel k meets.
    """
    assert statistics.step is not None
    channels = len(bound)
    gain = 1 / statistics.channel_power.mean(dim=1).clamp(min=1e-20)
    pairs = zip(statistics.weight_steps, statistics.weights, strict=True)
    weight_noise = torch.stack([_weight_noise(d, w, channels) for d, w in pairs]).sum(dim=0).to(gain)
    norm = torch.stack([_by_channel(w.pow(2), channels).sum(dim=1) for w in statistics.weights]).sum(dim=0)
    through_weights = weight_noise * (gain[:, None] * statistics.channel_power).sum(dim=0)
    through_activation = (gain * statistics.step.pow(2)).sum() * norm
    s = (through_weights / through_activation.clamp(min=1e-30)).pow(0.25)
    return torch.minimum(s.clamp(min=1.0), bound)


def _weight_noise(steps: torch.Tensor, weight: torch.Tensor, channels: int) -> torch.Tensor:
    """K · Σ_o Δw_o² over the outputs that each input channel meets → [C]."""
    groups = groups_of(weight, channels)
    noise = [float(part.pow(2).sum()) * weight[0, 0].numel() for part in steps.chunk(groups)]
    return torch.tensor(noise, dtype=torch.float64).repeat_interleave(channels // groups)


def candidates(bound: torch.Tensor, statistics: LayerStatistics, relaxation: float = 0.0) -> dict[str, torch.Tensor]:
    """Ways to use a rule's bound [C], for a choice by measured error.

    Dividing x_k by s_k multiplies the activation error through column k by s_k, and divides the weights'. Beside the full rule there are
    its square root, the balance of the two errors, and forms that touch only the channels that set the tensor's range. ``relaxation`` r
    adds each with the bound of unsaturated channels raised by 1 + r, so that an output channel's range may grow by as much.
    """
    found = {"none": torch.ones_like(bound)}
    if not (bound > 1).any():
        return found
    bounds = {"": bound}
    if relaxation:
        bounds[" relaxed"] = torch.where(bound > 1, bound * (1 + relaxation), 1.0)
    top = statistics.channel_range.amax(dim=1, keepdim=True)
    setters = (statistics.channel_range >= 0.7 * top).any(dim=0) & (bound > 1)
    for suffix, limit in bounds.items():
        shapes = {"full": limit, "half": limit.sqrt()}
        if statistics.step is not None:
            shapes["balanced"] = balanced(limit, statistics)
        if setters.any() and not torch.equal(setters, bound > 1):
            shapes["range-setting"] = torch.where(setters, limit, 1.0)
            shapes["range-setting half"] = torch.where(setters, limit.sqrt(), 1.0)
        found |= {name + suffix: s for name, s in shapes.items()}
    return found
