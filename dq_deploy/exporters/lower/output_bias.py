"""The mean error of the network's output, taken off it: a row of a table [T, 1, ..., C, ..., 1]."""

from __future__ import annotations

import onnx_ir as ir

from ...formats.tables import TABLE
from ...quantization.output_bias import OutputBias
from .kinds import Place


def corrected(at: Place, correction: OutputBias) -> ir.Value:
    """The output [N, ...] less the timestep's row."""
    return at.emitter().op("Sub", [at.x, at.target.row(f"{at.name}.{TABLE}", correction.shaped(at.rank).numpy())])
