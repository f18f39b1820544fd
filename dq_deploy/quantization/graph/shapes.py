"""Shapes of a captured graph's values for one sample, where the batch is a symbol."""

from __future__ import annotations

from typing import Any

import torch


def at_batch_one(size: Any) -> int:
    """A size that may depend on the batch, for a batch of one."""
    if isinstance(size, torch.SymInt):
        expression = size.node.expr
        return int(expression.subs(dict.fromkeys(expression.free_symbols, 1)))
    return int(size)


def static_shape(value: torch.Tensor) -> list[int]:
    """The shape for a batch of one."""
    return [at_batch_one(size) for size in value.shape]
