"""Linear layers that read the same codes, as one product: q, k and v of an attention, the projections of a timestep's embedding.

A small INT8 product costs OpenVINO about 20 µs whatever its size.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .graph import constant, hand_over, of_type, opset
from .linear import Linear, followed, joined, linear_of, weight_of


def products_at_once(model: Any) -> None:
    """See the module."""
    groups: dict[tuple[str, int], list[Any]] = {}
    for node in of_type(model, "MatMul"):
        source = node.input_value(0)
        groups.setdefault((source.get_node().get_name(), source.get_index()), []).append(node)
    for nodes in groups.values():
        linears = list(filter(None, map(linear_of, nodes))) if len(nodes) > 1 else []
        if len(linears) > 1:
            _compute_together(linears)


def _compute_together(linears: list[Linear]) -> None:
    whole = joined(linears)
    product = opset().matmul(whole.product.input_value(0), weight_of(whole, lambda values: values), False, False)
    product.set_friendly_name(",".join(linear.product.get_friendly_name() for linear in linears))  # a layer report looks for each
    value = followed(product.output(0), whole, lambda row: row, lambda channels: channels)
    sizes = constant([linear.codes.shape[1] for linear in linears], np.int64)
    parts = opset().variadic_split(value, constant(-1, np.int64), sizes).outputs()
    for linear, part in zip(linears, parts, strict=True):
        last = linear.steps[len(whole.steps) - 1].node if whole.steps else linear.product
        hand_over(last.output(0), part)
