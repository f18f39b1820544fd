"""GPTQ (Frantar et al., arXiv 2210.17323): weights rounded one input at a time, each error made good by the inputs that follow.

Symbols: W [R, K] a weight with a row for each output, q its codes, s its scales, e = W − s·q, H [K, K] the second moments of the inputs,
so that a row's squared output error is e H eᵀ. Everything is fp64.

With H = L Lᵀ that is ‖e L‖² = Σ_i L_ii² (e_i + Σ_{j>i} e_j L_ji / L_ii)². From the last input to the first, each q_i is therefore best
rounded from W_i + Σ_{j>i} e_j L_ji / L_ii: the form of LDLQ (Chee et al., arXiv 2307.13304), which gives the codes of GPTQ without an
inverse. A block of inputs takes the errors of all earlier ones in one matrix product, GPTQ's lazy batch update.
"""

from __future__ import annotations

import torch

from ...formats import INT8, NumberFormat
from .. import grid

DAMPING = 0.01
"""Of the mean diagonal, added to it: GPTQ's own. An input that was never seen then has no say in the others, and is rounded to nearest."""
BLOCK = 128  # inputs between two matrix products; GPTQ's own
AT_ONCE = 1 << 24
"""Weights that are rounded together, at the most: 128 MB, a few times."""


class Rounder:
    """Rounds weights whose inputs have second ``moments`` H [K, K], in the order of H's diagonal, the largest first.

    ``fmt`` gives the grid, integers or a float's numbers; how far it reaches is each row's own ``limit``.
    """

    def __init__(self, moments: torch.Tensor, *, fmt: NumberFormat = INT8, damping: float = DAMPING, block: int = BLOCK) -> None:
        self.moments, self.fmt, self.block, self.at_once = moments, fmt, block, AT_ONCE
        self.order = moments.diagonal().argsort(stable=True)  # we go from the last to the first
        factor, self.added = factorized(moments[self.order[:, None], self.order], damping)
        pivots = factor.diagonal().clone()
        self.squares = pivots.square()
        self.factor = factor.div_(pivots)

    def candidates(self, weight: torch.Tensor, scales: torch.Tensor, limit: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes [1 + C, R, K] (``grid.held``) of a weight [R, K] within ± ``limit`` [R], and the squared errors of the outputs [1 + C, R].

        The first are the nearest codes with the first of C ``scales`` [C, R, K], the others GPTQ's with each of them.
        """
        held = grid.held(self.fmt)
        nearest = nearest_codes(weight, scales[0], limit, self.fmt)
        codes, errors = [nearest.to(held)], [self.error(weight, scales[0], nearest)]
        outputs, scales = len(weight), scales.flatten(0, 1)
        for some in torch.arange(len(scales), device=weight.device).split(max(1, self.at_once // weight.shape[1])):
            made, lost = self.codes(weight[some % outputs], scales[some], limit[some % outputs])
            codes.append(made.to(held))
            errors.append(lost)
        return torch.cat(codes).unflatten(0, (-1, outputs)), torch.cat(errors).unflatten(0, (-1, outputs))

    def error(self, weight: torch.Tensor, scale: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """Squared errors of the outputs [R] of ``codes`` [R, K]."""
        error = weight - scale * codes
        return (error @ self.moments).mul_(error).sum(dim=1)

    def codes(self, weight: torch.Tensor, scale: torch.Tensor, limit: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """GPTQ's codes [R, K] of a weight [R, K] with ``scale`` [R, K], and the squared errors of the outputs [R]."""
        return self._bounded(weight, scale, -limit, limit)

    def _bounded(self, weight: torch.Tensor, scale: torch.Tensor, lowest: torch.Tensor,
                 highest: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        """The same with codes from ``lowest`` to ``highest``, [R] or [R, K]."""
        low, high = (bound if bound.dim() == 1 else bound.T[self.order].contiguous() for bound in (lowest, highest))
        # The loop goes through the columns, from the last to the first: let each lie together.
        weight, scale = weight.T[self.order].contiguous(), scale.T[self.order].contiguous()
        codes, errors = torch.empty_like(weight), torch.zeros_like(weight)
        lost = torch.zeros_like(weight[0])  # Σ L_ii² (…)²
        for end in range(len(weight), 0, -self.block):
            start = max(0, end - self.block)
            target = weight[start:end] + self.factor[end:, start:end].T @ errors[end:]
            feedback = self.factor[start:end, start:end].T.contiguous()
            for i in range(end - start - 1, -1, -1):
                at = start + i
                ideal = torch.addmv(target[i], errors[at + 1 : end].T, feedback[i, i + 1 :])
                ideal_code = (ideal / scale[at]).clamp_(*((low, high) if low.dim() == 1 else (low[at], high[at])))
                codes[at] = grid.rounded(ideal_code, self.fmt)
                made = scale[at] * codes[at]
                errors[at] = weight[at] - made
                lost.addcmul_(self.squares[at], (ideal - made).square_())
        lost -= self.added * errors.square_().sum(dim=0)  # what the damping has added to H
        return torch.empty_like(codes).index_copy_(0, self.order, codes).T, lost


def nearest_codes(weight: torch.Tensor, scale: torch.Tensor, limit: torch.Tensor, fmt: NumberFormat = INT8) -> torch.Tensor:
    """The nearest codes [R, K] within ± ``limit`` [R]; ties to even."""
    return grid.rounded((weight / scale).clamp_(-limit[:, None], limit[:, None]), fmt)


def factorized(moments: torch.Tensor, damping: float) -> tuple[torch.Tensor, float]:
    """L [K, K] of the damped H, and what was added to its diagonal. ``moments`` are used up."""
    step = damping * float(moments.diagonal().mean()) or 1.0  # where nothing was seen, any diagonal makes every input nearest
    added = 0.0
    while True:  # a second time only where what fp32 sums lost is more than the damping: H is all but singular
        moments.diagonal().add_(step)
        added += step
        factor: torch.Tensor
        factor, failed = torch.linalg.cholesky_ex(moments)
        if not bool(failed):
            return factor, added
        step *= 2
