"""Which inputs an output of a layer meets at each of its positions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F


class Footprint(ABC):
    """Layers of equal footprints see one input in the same columns; it is hashable."""

    @abstractmethod
    def columns(self, x: torch.Tensor) -> torch.Tensor:
        """What the weights of an output are multiplied with, of an input x [N, ...]: [g, N, P, K] at P positions, for g groups of outputs.

        Weights are [g · O/g, K] then.
        """


@dataclass(frozen=True)
class TokenFootprint(Footprint):
    """Of a linear layer: a token."""

    def columns(self, x: torch.Tensor) -> torch.Tensor:
        """X [N, ..., C] → [1, N, P, C]."""
        return x.reshape(1, len(x), -1, x.shape[-1])


@dataclass(frozen=True)
class PatchFootprint(Footprint):
    """Of a convolution: the places of its kernel."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def columns(self, x: torch.Tensor) -> torch.Tensor:
        """X [N, C, H, W] → patches [g, N, P, C/g · kh · kw]."""
        patches: torch.Tensor = F.unfold(x, self.kernel, self.dilation, self.padding, self.stride).unflatten(1, (self.groups, -1))
        return patches.permute(1, 0, 3, 2)
