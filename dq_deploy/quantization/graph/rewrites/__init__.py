"""Passes over a captured float graph that leave its function as it is and say it in the planner's few words.

One file, one pass. After them a product is ``conv2d`` or ``linear`` with constant weights, or ``matmul`` of two activations, and its
operands begin with the batch, wherever that can be had.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.fx import GraphModule

from ..edit import drop_unused_tensors
from .attention import decompose_attention
from .clean import clean
from .complex import real_numbers
from .constants import fold_products, fold_weights
from .conv3d import spell_conv3d
from .einsum import lower_einsums
from .layout import batch_first
from .products import spell_products
from .transposed import spell_transposed
from .types import widen_products

__all__ = ["clean", "normalize"]


def normalize(graph_module: GraphModule, inputs: Sequence[torch.Tensor]) -> None:
    """Run every pass in order, in place. ``inputs`` [2, ...] are two samples, in the order of the graph's inputs, that differ."""
    real_numbers(graph_module)
    decompose_attention(graph_module)
    lower_einsums(graph_module)
    spell_transposed(graph_module)  # before those that spell what it makes
    spell_products(graph_module)
    spell_conv3d(graph_module)
    widen_products(graph_module)
    fold_products(graph_module)
    fold_weights(graph_module)
    clean(graph_module)
    with torch.no_grad():
        batch_first(graph_module, inputs)
    clean(graph_module)
    drop_unused_tensors(graph_module)
