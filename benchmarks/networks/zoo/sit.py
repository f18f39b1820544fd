"""SiT (arXiv 2401.08740): DiT's network along a straight flow, predicting the velocity; small, on pictures in patches of 4."""

from __future__ import annotations

import torch

from ..network import Network
from .dit import DiT

_STEPS = 1000  # the flow's time runs from 0 to 1, and diffusers' scheduler counts it in thousandths


class SiT(DiT):
    """No variance beside the velocity."""

    def __init__(self, dim: int = 256, depth: int = 8, heads: int = 4) -> None:
        super().__init__(dim, depth, heads, patch=4, channels=1, classes=10, learn_sigma=False)

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The velocity, from data to noise."""
        return super().forward(x, t / _STEPS, y)


NETWORK = Network("sit", "SiT, 8 layers of 256, patches of 4", SiT, "flow", conditions="classes", condition="y", family="transformer",
                  small={"dim": 64, "depth": 1, "heads": 2})  # fmt: skip
make = NETWORK.make
