"""A quantizer with tables: a scale and a zero-point for each timestep."""

from __future__ import annotations

import onnx_ir as ir

from ...formats.tables import SCALE, ZERO_POINT
from ...quantization.quantizers import TableQuantizer
from ..scales import as_codes, scale_array, zero_point_array
from .kinds import QuantizerPlace, scale, zero_point


@scale.register
def table_scale(quantizer: TableQuantizer, at: QuantizerPlace) -> ir.Value:
    """The timestep's row of ``<quantizer>.scale``."""
    return at.target.row(f"{at.name}.{SCALE}", scale_array(quantizer), quantizer.frames)


@zero_point.register
def table_zero_point(quantizer: TableQuantizer, at: QuantizerPlace) -> ir.Value:
    """The timestep's row of ``<quantizer>.zero_point``."""
    return at.target.row(f"{at.name}.{ZERO_POINT}", as_codes(zero_point_array(quantizer), at.zero_point_type), quantizer.frames)
