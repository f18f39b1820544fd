"""Shapes of a captured graph's values for one sample, where the batch is a symbol, and height and width may be."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.fx import Node

CAPTURED_BATCH = 2
"""Samples of the inputs that a model is captured with; no other free dimension of them has that size (``capture``)."""


def at_batch_one(size: Any) -> int:
    """A size that may depend on the batch and other free dimensions, for a batch of one at the size that was captured."""
    if isinstance(size, torch.SymInt):
        expression = size.node.expr
        captured = _captured_sizes(size)
        return int(expression.subs({s: 1 if captured.get(s) in (None, CAPTURED_BATCH) else captured[s] for s in expression.free_symbols}))
    return int(size)


def _captured_sizes(size: torch.SymInt) -> Mapping[Any, Any]:
    """What each symbol stood for in the inputs of the capture."""
    environment = size.node.shape_env
    return getattr(environment, "backed_var_to_val", None) or getattr(environment, "var_to_val", {})  # its name before torch 2.10


def static_shape(value: torch.Tensor) -> list[int]:
    """The shape of a value [N, ...] for a batch of one: [1, ...]."""
    return [at_batch_one(size) for size in value.shape]


def live_bytes(nodes: Sequence[Node]) -> int:
    """Most bytes of one sample's values that are alive at one time while a graph runs node by node."""
    last = {source: index for index, node in enumerate(nodes) for source in node.all_input_nodes}
    alive, peak = 0, 0
    for index, node in enumerate(nodes):
        if node.op != "get_attr":
            alive += value_bytes(node.meta.get("val"))
        peak = max(peak, alive)
        alive -= sum(value_bytes(s.meta.get("val")) for s in set(node.all_input_nodes) if last[s] == index and s.op != "get_attr")
    return peak


def value_bytes(value: Any) -> int:
    """Bytes of one sample of a captured value; 0 for what is not a tensor."""
    if not isinstance(value, torch.Tensor):
        return 0
    return math.prod(static_shape(value)) * value.element_size()


def resized(tensors: Iterable[torch.Tensor], batch: int) -> list[torch.Tensor]:
    """A batch [batch, ...] from the same samples [N, ...], in turn."""
    return [t[torch.arange(batch) % t.shape[0]] for t in tensors]
