"""Codewords and codes of additive codebooks, fitted to what a layer's weights are multiplied with.

After AQLM (Egiazarian et al., arXiv 2401.06118; for diffusion VQDM, arXiv 2409.00492) and GPTVQ (van Baalen et al., arXiv 2402.15319).
Symbols: W [R, K] a weight, s [R] its scales, c its codes, C [M, 256, d] the codewords of M books, Q = Σ_m C_m[c_m] [R, K] their sums,
e = W − s·Q, H [K, K] the second moments of the inputs, H = L Lᵀ. A row's squared output error is ‖e L‖².

Codewords start from k-means on the rows in units of their scales, each book on what the books before it leave. Then three turns of:
codes, from the last d inputs to the first, each group the best of a beam search over the books with the errors of later inputs carried over
(the block form of ``columns``); codewords, the least-squares solution for these codes under H, by conjugate gradients; scales, likewise.
At last codewords become integers, and codes are found once more.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...formats.codebook import ENTRIES, Codebook
from ...formats.tables import CODEBOOK_CODES, CODEWORDS, WEIGHT_SCALE
from ..running.work_folder import Stage
from ..weights import CodebookWeight
from ..weights.codebook import sums
from .columns import DAMPING, factorized
from .groups import Group

_TURNS = 3
_BEAM = 8
_KMEANS_STEPS, _KMEANS_POINTS = 12, 1 << 16
_GRADIENT_STEPS = 8
_AT_ONCE = 1 << 24  # distances that are compared together


@dataclass(frozen=True)
class Fitted:
    """Codes uint8 [R, K/d, M], codewords [M, 256, d] of whole numbers, scales [R], and what each row loses [R] of its output's square.

    ``nearest`` [R] is what it lost with the nearest codewords of k-means.
    """

    codes: torch.Tensor
    codewords: torch.Tensor
    scale: torch.Tensor
    error: torch.Tensor
    nearest: torch.Tensor


def fit(weight: torch.Tensor, moments: torch.Tensor, codebook: Codebook, generator: torch.Generator) -> Fitted:
    """Fit a codebook to ``weight`` [R, K] whose inputs have second ``moments`` [K, K]."""
    return _Fit(weight, moments, codebook).run(generator)


def fit_codebooks(group: Group, moments: torch.Tensor, generator: torch.Generator) -> Stage:
    """Fit a codebook to each layer of a group whose inputs have ``moments`` [1, K, K]: what ``take_rounded`` takes, and the records."""
    tensors: dict[str, torch.Tensor] = {}
    record = []
    for name, layer in group.layers.items():
        assert isinstance(layer, CodebookWeight)
        found = fit(layer.matrix().flatten(1), moments[0], layer.codebook, generator)
        parts = {CODEBOOK_CODES: found.codes, CODEWORDS: found.codewords.to(torch.int8), WEIGHT_SCALE: found.scale}
        tensors |= {f"{name}.{part}": value for part, value in parts.items()}
        ratio = float(found.error.clamp(min=0).sum() / found.nearest.sum()) if found.nearest.any() else 1.0
        record.append({"layer": name, "error_ratio": ratio, "parts": 1})
    return Stage(tensors, record)


def fitting_operations(shape: tuple[int, int, int], codebook: Codebook) -> float:
    """Multiply-accumulates in fp32 of fitting a codebook to a layer of one part [R, K]."""
    _, outputs, inputs = shape
    beams = 1 + _BEAM * (codebook.books - 1)
    searched = (_TURNS + 1) * outputs * inputs * ENTRIES * beams + codebook.books * _KMEANS_STEPS * ENTRIES * min(
        outputs * inputs, _KMEANS_POINTS * codebook.length
    )
    return float(searched + (_TURNS * (_GRADIENT_STEPS + 2) + 2 + (_TURNS + 1) / 2) * outputs * inputs**2)


class _Fit:
    def __init__(self, weight: torch.Tensor, moments: torch.Tensor, codebook: Codebook) -> None:
        self.codebook, self.weight = codebook, weight.float()
        self.moments = moments.float()
        factor, _ = factorized(moments.clone(), DAMPING)
        self.groups = weight.shape[1] // codebook.length
        self.factor = factor
        # Rows in units in which a codeword of whole numbers is fine enough, and the largest weight is within INT8.
        spread = self.weight.pow(2).mean(dim=1).sqrt().clamp(min=1e-12)
        largest = float((self.weight.abs().amax(dim=1) / spread).max().clamp(4.0, 10.0))
        self.scale = spread * largest / 127

    def run(self, generator: torch.Generator) -> Fitted:
        codewords = self._first_codewords(generator)
        nearest = self._error(self.scale[:, None] * sums(self._nearest(codewords), codewords))
        for _ in range(_TURNS):
            codes = self._codes(codewords)
            codewords = self._codewords(codes, codewords)
            self._rescale(sums(codes, codewords))
        codewords = codewords.round().clamp(-127, 127)
        codes = self._codes(codewords)
        whole = sums(codes, codewords).clamp(-128, 127)
        self._rescale(whole)
        return Fitted(codes, codewords, self.scale, self._error(self.scale[:, None] * whole), nearest)

    def _error(self, made: torch.Tensor) -> torch.Tensor:
        error = self.weight - made
        lost: torch.Tensor = (error @ self.moments).mul_(error).sum(dim=1)
        return lost

    def _first_codewords(self, generator: torch.Generator) -> torch.Tensor:
        rest = (self.weight / self.scale[:, None]).reshape(-1, self.codebook.length)
        say = self.moments.diagonal().reshape(self.groups, -1).sum(dim=1).repeat(len(self.weight))  # of a group of inputs in the output
        drawn = torch.randperm(len(rest), generator=generator)[:_KMEANS_POINTS].to(rest.device)
        rest, say = rest[drawn], say[drawn].clamp(min=1e-30)
        books = []
        for _ in range(self.codebook.books):
            books.append(_kmeans(rest, say, generator))
            rest = rest - books[-1][_closest(rest, books[-1])]
        return torch.stack(books)

    def _nearest(self, codewords: torch.Tensor) -> torch.Tensor:
        """Codes [R, G, M], one book after the other."""
        rest, codes = (self.weight / self.scale[:, None]).reshape(-1, self.codebook.length), []
        for book in codewords:
            codes.append(_closest(rest, book))
            rest = rest - book[codes[-1]]
        found: torch.Tensor = torch.stack(codes, dim=1).to(torch.uint8).unflatten(0, (len(self.weight), -1))
        return found

    def _codes(self, codewords: torch.Tensor) -> torch.Tensor:
        """The best codes [R, G, M] from the last group of inputs to the first, each seeing the errors of those after it."""
        length, rows = self.codebook.length, len(self.weight)
        codes = torch.empty(rows, self.groups, self.codebook.books, dtype=torch.uint8, device=self.weight.device)
        errors = torch.zeros_like(self.weight)
        for group in range(self.groups - 1, -1, -1):
            at = slice(group * length, (group + 1) * length)
            own = self.factor[at, at]
            # What the errors of later inputs add to this group's, in its own coordinates: Σ e_j L_jb L_bb⁻¹.
            carry = torch.linalg.solve_triangular(own, self.factor[at.stop :, at], upper=False, left=False).float()
            target = (self.weight[:, at] + errors[:, at.stop :] @ carry) / self.scale[:, None]
            metric = own.float()
            chosen = _beam_search(target @ metric, codewords @ metric)
            codes[:, group] = chosen
            made = sums(chosen[:, None], codewords).clamp(-128, 127)
            errors[:, at] = self.weight[:, at] - self.scale[:, None] * made
        return codes

    def _codewords(self, codes: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        """Codewords [M, 256, d] of least ‖(W − s Q) L‖² for given codes, by conjugate gradients from ``start``."""
        index = codes.long().flatten(0, 1)  # [R·G, M]
        say = self.scale[:, None]

        def spread(values: torch.Tensor) -> torch.Tensor:
            return say * sums(codes, values)

        def gathered(rows: torch.Tensor) -> torch.Tensor:
            parts = (say * rows).reshape(-1, self.codebook.length)
            return torch.stack([torch.zeros_like(start[0]).index_add_(0, index[:, m], parts) for m in range(self.codebook.books)])

        found = start.clone()
        residual = gathered((self.weight - spread(found)) @ self.moments)
        direction, power = residual.clone(), residual.pow(2).sum()
        for _ in range(_GRADIENT_STEPS):
            if not float(power):
                break
            curved = gathered(spread(direction) @ self.moments)
            step = power / (direction * curved).sum().clamp(min=1e-30)
            found += step * direction
            residual -= step * curved
            power, before = residual.pow(2).sum(), power
            direction = residual + direction * (power / before)
        return found

    def _rescale(self, made: torch.Tensor) -> None:
        """Scales of least error for sums [R, K]: s = W H Qᵀ / Q H Qᵀ."""
        seen = made @ self.moments
        best = (seen * self.weight).sum(dim=1) / (seen * made).sum(dim=1).clamp(min=1e-30)
        self.scale = torch.where(best > self.scale / 4, best, self.scale)


def _closest(points: torch.Tensor, book: torch.Tensor) -> torch.Tensor:
    """Index [P] of the codeword of ``book`` [E, d] nearest to each of ``points`` [P, d]."""
    offset = book.pow(2).sum(dim=1)
    some = points.split(max(1, _AT_ONCE // len(book)))
    return torch.cat([torch.addmm(offset, part, book.T, alpha=-2).argmin(dim=1) for part in some])


def _kmeans(points: torch.Tensor, say: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Codewords [256, d] of ``points`` [P, d], each with its ``say`` [P] in the mean."""
    picked = torch.randint(len(points), (ENTRIES,), generator=generator).to(points.device)
    book = points[picked].clone()
    for _ in range(_KMEANS_STEPS):
        nearest = _closest(points, book)
        weight = torch.zeros(ENTRIES, device=points.device).index_add_(0, nearest, say)
        total = torch.zeros_like(book).index_add_(0, nearest, points * say[:, None])
        book = torch.where(weight[:, None] > 0, total / weight[:, None].clamp(min=1e-30), book)
    return book


def _beam_search(target: torch.Tensor, books: torch.Tensor) -> torch.Tensor:
    """Codes uint8 [R, M] whose codewords' sum is nearest to ``target`` [R, d], of ``books`` [M, E, d], both in the metric's coordinates."""
    rest = target[:, None]  # [R, B, d]
    codes = torch.empty(len(target), 1, 0, dtype=torch.uint8, device=target.device)
    for m, book in enumerate(books):
        width = 1 if m == len(books) - 1 else _BEAM
        some = max(1, _AT_ONCE // (rest.shape[1] * len(book)))
        parts = [_extended(r, c, book, width) for r, c in zip(rest.split(some), codes.split(some), strict=True)]
        rest, codes = (torch.cat(values) for values in zip(*parts, strict=True))
    return codes[:, 0]


def _extended(rest: torch.Tensor, codes: torch.Tensor, book: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The ``width`` best of a beam's ``rest`` [R, B, d] with each codeword of one more ``book`` [E, d] taken off, and their codes."""
    distance = rest.pow(2).sum(dim=2, keepdim=True) - 2 * rest @ book.T + book.pow(2).sum(dim=1)  # [R, B, E]
    best = distance.flatten(1).topk(width, dim=1, largest=False).indices if width > 1 else distance.flatten(1).argmin(dim=1)[:, None]
    path, entry = best // len(book), best % len(book)
    rest = rest.gather(1, path[:, :, None].expand(-1, -1, rest.shape[2])) - book[entry]
    codes = codes.gather(1, path[:, :, None].expand(-1, -1, codes.shape[2]))
    return rest, torch.cat([codes, entry[:, :, None].to(torch.uint8)], dim=2)
