"""Arithmetic of FP4 codes in blocks with a scale in E4M3 each (NVFP4): pure functions on tensors.

x ≈ g · s_b · q with q the nearest of FP4's numbers to x / (g · s_b), s_b the nearest of E4M3's to max|x_b| / (6 g) over the block b of 16
that x is in, and one g for all blocks. That is what TensorRT's DynamicQuantize layer is documented to compute.

g is a power of two. It then only says where E4M3's range lies, and multiplying by it rounds nothing: every x that is dequantized is exact
in fp32, in whatever order its factors are multiplied.
"""

from __future__ import annotations

import math

import torch

from ..formats import FP4, FP8
from .grid import nearest

BLOCK = FP4.block
LEAST_SCALE = 2.0**-9
"""E4M3's smallest number above 0, which a block of zeros has too: 1 / s_b must be a number."""
_ROOM = 2.0


def global_scale(largest: float, room: float = _ROOM) -> float:
    """The least power of two g with which a block whose largest value is ``room`` times ``largest`` still has a scale: 6 · 448 · g.

    E4M3 reaches over five decades, most of which no tensor needs: values beyond what calibration saw saturate only beyond ``room``.
    """
    reach = largest * room / (FP4.largest * FP8.largest)
    return 2.0 ** math.ceil(math.log2(reach)) if reach > torch.finfo(torch.float32).tiny else 1.0


def block_scales(x: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """Scales s_b of the blocks of x [..., C]: [..., C / 16], numbers of E4M3."""
    return nearest(x.unflatten(-1, (-1, BLOCK)).abs().amax(dim=-1) / (FP4.largest * g), FP8).clamp(min=LEAST_SCALE)


def by_element(scales: torch.Tensor) -> torch.Tensor:
    """What there is for each block [..., B], for each of its elements [..., 16 B]."""
    return scales.repeat_interleave(BLOCK, dim=-1)
