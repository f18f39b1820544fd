"""Rewrites of a graph that OpenVINO has read, before it compiles it for a CPU: the same numbers from fewer and better kernels.

OpenVINO's own passes do not find them, since they hold only for what our exporter writes, or pay off only beside INT8 kernels. The
inputs' sizes must be known (``shapes.py``). What each is worth: docs/decisions/openvino-rewrites.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .chains import activations_apart
from .clamps import clips_as_clamps
from .group_norm import group_norms_as_moments
from .halves import halves_without_concat
from .heads import heads_out_of_pictures
from .moves import codes_before_moves
from .padding import padding_inside_convolutions
from .patches import patches_by_strides
from .pictures import pictures_stay_pictures
from .products import products_at_once
from .rounding import rounding_once
from .splits import convolutions_in_parts
from .tables import rows_at_once
from .tokens import pixels_by_convolutions
from .unsigned import unsigned_codes

REWRITES = (
    clips_as_clamps,
    unsigned_codes,
    patches_by_strides,
    pictures_stay_pictures,
    group_norms_as_moments,
    halves_without_concat,
    padding_inside_convolutions,
    products_at_once,
    pixels_by_convolutions,
    convolutions_in_parts,
    heads_out_of_pictures,
    codes_before_moves,
    rounding_once,
    rows_at_once,
    activations_apart,
)
"""In this order: clips and codes are what the others look for, halves are found in what normalizations leave, layers on pixels where those
that share their codes are one, and quantizers beside their convolutions in what all before leave."""


def rewrite(model: Any, steps: Sequence[Callable[[Any], None]] = REWRITES) -> None:
    """Apply them in place; none to a graph with a size that only its inputs' values decide."""
    if any(output.get_partial_shape().is_dynamic for node in model.get_ops() for output in node.outputs()):
        return
    for step in steps:
        step(model)
        model.validate_nodes_and_infer_types()
