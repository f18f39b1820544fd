"""What conditional networks are calibrated under, and other values of the same kind that they are judged under."""

from __future__ import annotations

import torch

from .data import pictures

CLASSES = 10
_POOL = 64
_LOW = 4  # a low-resolution picture has a quarter of the edge


def condition_values(kind: str, shape: tuple[int, ...], *, held_out: bool) -> torch.Tensor:
    """Conditions [P, ...]: class numbers, small pictures, or tokens [L, D] like a text encoder's.

    Classes are the same for both. Pictures held out are test pictures. Tokens are normal noise in channels of unequal size.
    """
    if kind == "classes":
        return torch.arange(CLASSES)
    if kind == "pictures":
        return low_resolution(pictures("test" if held_out else "train", (1, 32, 32), count=_POOL))
    scale = torch.exp(0.7 * torch.randn(shape[-1], generator=torch.Generator().manual_seed(7)))
    generator = torch.Generator().manual_seed(9 if held_out else 8)
    return torch.randn(_POOL, *shape, generator=generator) * scale


def low_resolution(images: torch.Tensor) -> torch.Tensor:
    """Pictures [N, C, H, W] at a quarter of the edge."""
    return torch.nn.functional.avg_pool2d(images, _LOW)
