"""A GELU or a Mish between two quantized layers on one sample's rows, in a kernel of its own.

OpenVINO 2026 makes one kernel of everything between the two products. With a batch of one, rescaling, the error function and the next
quantizer are more than it has registers for: "Can't allocate registers for a snippet"; and of a Mish it says "Supported precisions set is
not available for Mish operation". A reshape, which computes nothing, ends a kernel.
"""

from __future__ import annotations

from typing import Any

from .graph import of_type, read_from, reshaped, shape_of


def activations_apart(model: Any) -> None:
    """See the module."""
    for activation in [*of_type(model, "Gelu"), *of_type(model, "Mish")]:
        shape = shape_of(activation.output(0))
        if shape[0] != 1:
            continue
        after = list(activation.output(0).get_target_inputs())
        read_from([activation], reshaped(activation.input_value(0), [1, *shape]))
        together = reshaped(activation.output(0), shape)
        for target in after:
            target.replace_source_output(together)
