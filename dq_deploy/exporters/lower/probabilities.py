"""A quantizer of probabilities, whose range is the same at every timestep: its scale and zero-point are constants."""

from __future__ import annotations

import onnx_ir as ir

from ...formats.tables import SCALE, ZERO_POINT
from ...quantization.quantizers import ProbabilityQuantizer
from ..emitter import number
from ..scales import as_codes, scale_array, zero_point_array
from .kinds import QuantizerPlace, scale, zero_point


@scale.register
def constant_scale(quantizer: ProbabilityQuantizer, at: QuantizerPlace) -> ir.Value:
    """The scale []."""
    return number(f"{at.name}.{SCALE}", scale_array(quantizer)[0])


@zero_point.register
def constant_zero_point(quantizer: ProbabilityQuantizer, at: QuantizerPlace) -> ir.Value:
    """The zero-point []."""
    return number(f"{at.name}.{ZERO_POINT}", as_codes(zero_point_array(quantizer)[0], at.zero_point_type))
