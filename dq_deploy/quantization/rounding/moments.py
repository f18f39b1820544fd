"""Second moments H of what a layer's weights are multiplied with, of a stream of samples."""

from __future__ import annotations

import torch

BLOCK = 1024
"""Columns of H that one product gives."""


class Moments:
    """H [G, K, K], the mean of x xᵀ over samples and positions, each sample with a weight; G parts with inputs of their own."""

    def __init__(self, parts: int, inputs: int, device: torch.device | str = "cpu") -> None:
        self._sum = torch.zeros(parts, inputs, inputs, dtype=torch.float64, device=device)
        self._count = 0

    def add(self, columns: torch.Tensor, weight: torch.Tensor) -> None:
        """Add the inputs ``columns`` [G, N, P, K], fp32, of N samples with ``weight`` [N].

        Products are summed in fp32 within a call and in fp64 from call to call: what that loses is far below the damping.
        """
        seen = (columns * weight.sqrt()[:, None, None]).flatten(1, 2)  # [G, N·P, K]
        for start in range(0, seen.shape[2], BLOCK):  # of blocks the lower triangle is enough
            end = start + BLOCK
            self._sum[:, start:end, :end] += seen[:, :, start:end].transpose(1, 2) @ seen[:, :, :end]
        self._count += seen.shape[1]

    def mean(self) -> torch.Tensor:
        """H [G, K, K], fp64."""
        lower = self._sum.tril() / max(1, self._count)
        return lower + lower.tril(-1).transpose(1, 2)


def some_positions(columns: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """At most ``count`` of the P positions of ``columns`` [G, N, P, K], the same of each sample, drawn anew at each call."""
    if count >= columns.shape[2]:
        return columns
    return columns[:, :, torch.randperm(columns.shape[2], generator=generator)[:count].to(columns.device)]
