"""GPTQ for codes whose most significant bits are codes of fewer bits too (MatGPTQ, Kleinegger et al., arXiv 2602.03537).

Symbols as in ``columns``, and: V widths r, λ_r what a squared error in one of them counts, v_r(c) the code c with all but its r most
significant bits rounded away (``numerics.sliced``), in steps of the 8-bit codes. One code is chosen for each weight, to minimise
Σ_r λ_r e_r H e_rᵀ with e_r = W − s·v_r(c).

The paper carries on the mean of the widths' errors. Here each width carries on its own, e_r, which makes the sum over inputs of
Σ_r λ_r L_ii² (ideal_r − s·v_r(c))² the very objective. All codes are judged: of λ·(v² − 2·ideal·v), which is the objective but for what no
code changes, one product with a table has the value for every code. A pass from the last input to the first cannot know what the widths
will want of the inputs still to come, which costs far more than with one width. So there are two ways to start, and passes of coordinate
descent follow, in which every code is chosen anew, given all others (docs/decisions/widths.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...formats import of_bits
from .. import numerics
from .columns import AT_ONCE, BLOCK, Rounder

LEAN = 0.6
"""λ_r ∝ 4^(−LEAN · (8 − r)): with 0 every squared error counts alike, and the narrowest width decides; with 1 each is in units of its own
width's rounding error, and 8 bits decide (docs/decisions/widths.md)."""
TRIED, CHOSEN = 1, 3
"""Passes of coordinate descent with each scale that is tried, and further ones with the scale that is chosen; more gain next to nothing
(docs/decisions/widths.md)."""
_LEAST = 1e-6  # of the mean second moment: an input that was seen less is taken for one seen so much


class Slices:
    """The codes of the first of ``widths`` [V], as they are and as each of the widths has them."""

    def __init__(self, widths: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.widths = tuple(widths)
        self.values = code_values(widths).to(device)  # [V, codes]
        counts = torch.tensor([4.0 ** (-LEAN * (widths[0] - bits)) for bits in widths], dtype=torch.float64)
        self.counts = (counts / counts.sum()).to(device)  # λ [V]
        self.largest = self.values.shape[1] // 2
        self._table = -2 * self.counts[:, None] * self.values
        self._offset = (self.counts[:, None] * self.values.square()).sum(dim=0)[None]

    def best(self, ideal: torch.Tensor) -> torch.Tensor:
        """Index [R] of the code of least Σ_r λ_r (ideal_r − v_r(c))², of ideal values [V, R] in steps."""
        return torch.addmm(self._offset, ideal.T, self._table).argmin(dim=1)

    def error(self, moments: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """Σ_r λ_r e_r H e_rᵀ of codes [R, K] of any type: [R]."""
        total = torch.zeros_like(weight[:, 0])
        for count, values in zip(self.counts, self.values, strict=True):
            error = weight - scale * values[codes.long() + self.largest]
            total += count * (error @ moments).mul_(error).sum(dim=1)
        return total

    def refined(self, moments: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, codes: torch.Tensor,
                passes: int) -> torch.Tensor:  # fmt: skip
        """Codes [R, K] after so many passes of coordinate descent from ``codes``; no step lets ``error`` grow.

        Scales [R, K] are the same along a row.
        """
        rows = max(1, AT_ONCE // (weight.shape[1] * len(self.widths)))
        some = zip(weight.split(rows), scale.split(rows), codes.split(rows), strict=True)
        return torch.cat([self._refined(moments, *part, passes) for part in some])

    def _refined(self, moments: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, codes: torch.Tensor,
                 passes: int) -> torch.Tensor:  # fmt: skip
        """With g_r = e_r H, code i is best for v_r(c_i) = v_r + g_ri / H_ii in every width r."""
        diagonal = moments.diagonal()
        pivots = diagonal.clamp(min=max(_LEAST * float(diagonal.mean()), torch.finfo(diagonal.dtype).tiny))
        index = codes.long().T.contiguous() + self.largest  # [K, R]
        made = self.values[:, index].transpose(0, 1).contiguous()  # [K, V, R]
        errors = (weight / scale).T[:, None] - made
        for _ in range(passes):
            for part in diagonal.argsort(descending=True, stable=True).split(BLOCK):
                gradient = (moments[part] @ errors.flatten(1)).unflatten(1, errors.shape[1:])  # [block, V, R]
                among = moments[part][:, part]
                for i, at in enumerate(part.tolist()):
                    index[at] = self.best(made[at] + gradient[i] / pivots[at])
                    moved = made[at] - self.values[:, index[at]]
                    made[at] -= moved
                    errors[at] += moved
                    gradient.add_(among[:, i, None, None] * moved)
        return (index - self.largest).T.to(codes.dtype)


class NestedRounder(Rounder):
    """Rounds weights to codes that are to serve all widths of ``slices``. Scales [R, K] are the same along a row."""

    def __init__(self, moments: torch.Tensor, slices: Slices) -> None:
        super().__init__(moments)
        self.slices, self.at_once = slices, AT_ONCE // len(slices.widths)

    def error(self, weight: torch.Tensor, scale: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """As ``Slices`` says."""
        return self.slices.error(self.moments, weight, scale, codes)

    def codes(self, weight: torch.Tensor, scale: torch.Tensor, limit: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes [R, K] and their ``error`` [R]: for each row the better of both starts, after ``TRIED`` passes of descent."""
        found = []
        for start in (self.for_all_at_once(weight, scale), self.one_after_the_other(weight, scale, limit)):
            made = self.slices.refined(self.moments, weight, scale, start, TRIED)
            found.append((made, self.error(weight, scale, made)))
        (first, lost), (second, other) = found
        return torch.where((other < lost)[:, None], second, first), torch.minimum(lost, other)

    def for_all_at_once(self, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Codes [R, K] of one pass from the last input to the first, each of them the best for all widths."""
        slices, target = self.slices, (weight / scale).T[self.order]  # [K, R], in steps
        codes, errors = torch.empty_like(target), target.new_zeros(len(target), len(slices.widths), target.shape[1])  # [K, R], [K, V, R]
        for end in range(len(target), 0, -self.block):
            start = max(0, end - self.block)
            made_good = (self.factor[end:, start:end].T @ errors[end:].flatten(1)).unflatten(1, errors.shape[1:])
            feedback = self.factor[start:end, start:end].T.contiguous()
            for i in range(end - start - 1, -1, -1):
                at = start + i
                later = (errors[at + 1 : end].flatten(1).T @ feedback[i, i + 1 :]).unflatten(0, errors.shape[1:])
                chosen = slices.best(target[at] + made_good[i] + later)
                codes[at] = chosen - slices.largest
                errors[at] = target[at] - slices.values[:, chosen]
        return torch.empty_like(codes).index_copy_(0, self.order, codes).T

    def one_after_the_other(self, weight: torch.Tensor, scale: torch.Tensor, limit: torch.Tensor) -> torch.Tensor:
        """Codes [R, K] by GPTQ for the narrowest width, then for the next wider one among the codes that are sliced to these, and so on.

        A wider code need not lead back to the weight, but to what the outputs cannot tell from it: from e_r of the width before it makes
        good e_r H (H + damping)⁻¹, the least change that does so. Where inputs are few or alike that is far less than e_r, and does not
        leave the codes that are sliced alike.
        """
        slices, target = self.slices, weight
        lowest = -limit[:, None].expand_as(weight)  # of the codes of all bits that are sliced to what has been chosen
        highest = -lowest
        for bits, values in zip(reversed(slices.widths), slices.values.flip(0), strict=True):
            steps = 2.0 ** (slices.widths[0] - bits)
            low, high = (values[bound.long() + slices.largest] / steps for bound in (lowest, highest))
            codes, _ = self._bounded(target, scale * steps, low, high)
            target = scale * steps * codes
            target = target + self._made_good(weight - target)
            alike = preimages(slices.widths[0], bits).to(weight.device)[:, codes.long() + 2 ** (bits - 1) - 1]
            lowest, highest = torch.maximum(lowest, alike[0]), torch.minimum(highest, alike[1])
        return codes

    def _made_good(self, error: torch.Tensor) -> torch.Tensor:
        """E H (H + damping)⁻¹ of errors e [R, K], by the factors of H."""
        right = (self.moments @ error.T)[self.order]
        half = torch.linalg.solve_triangular(self.factor, right, upper=False, unitriangular=True) / self.squares[:, None]
        solved = torch.linalg.solve_triangular(self.factor.T, half, upper=True, unitriangular=True)
        return torch.empty_like(solved).index_copy_(0, self.order, solved).T


def preimages(bits: int, narrower: int) -> torch.Tensor:
    """The lowest and the highest code of ``bits`` that is sliced to each code of ``narrower`` bits: fp64 [2, codes], codes ascending."""
    most = of_bits(bits).code_range(narrow=True)[1]
    codes = torch.arange(-most, most + 1, dtype=torch.float64)[None]
    sliced, _ = numerics.sliced(codes, torch.ones(1, dtype=torch.float64), of_bits(bits), narrower)
    alike = [codes[sliced == code] for code in sliced.unique()]  # ascending
    return torch.stack([torch.stack([some.min(), some.max()]) for some in alike], dim=1)


def code_values(widths: Sequence[int]) -> torch.Tensor:
    """What each code of the first of ``widths`` [V] is in each of them, in its own steps: fp64 [V, codes], codes ascending."""
    fmt = of_bits(widths[0])
    low, high = (int(bound) for bound in fmt.code_range(narrow=True))
    codes, step = torch.arange(low, high + 1, dtype=torch.float64)[None], torch.ones(1, dtype=torch.float64)
    made = (numerics.sliced(codes, step, fmt, bits) for bits in widths)
    return torch.cat([sliced * scale for sliced, scale in made])
