"""Codes of up to 4 bits as a checkpoint stores them: two to a byte, the first in the low half, as ONNX's INT4 has them."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch


def pack_int4(codes: torch.Tensor) -> torch.Tensor:
    """Codes int8 of any shape, each in [-8, 7], in C order → uint8 [ceil(n / 2)]. An odd last code has zero beside it."""
    flat = codes.contiguous().flatten().view(torch.uint8) & 0xF
    if len(flat) % 2:
        flat = torch.cat([flat, flat.new_zeros(1)])
    return flat[0::2] | (flat[1::2] << 4)


def unpack_int4(packed: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """uint8 [ceil(n / 2)] → codes int8 of ``shape`` with n elements.

    Raises ValueError where the shape needs another number of bytes, or the half byte that an odd number leaves is not zero.
    """
    count = prod(shape)
    if packed.dtype != torch.uint8 or packed.shape != ((count + 1) // 2,) or min(shape, default=0) < 1:
        raise ValueError(f"{packed.dtype} {list(packed.shape)} are not the packed codes of shape {list(shape)}")
    halves = torch.stack([packed & 0xF, packed >> 4], dim=1).flatten()
    if count % 2 and int(halves[-1]):
        raise ValueError("the last half byte belongs to no code and is not zero")
    # Sign of 4 bits: 8…15 stand for -8…-1.
    return ((halves[:count].view(torch.int8) ^ 8) - 8).reshape(list(shape))
