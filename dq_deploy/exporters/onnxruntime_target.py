"""The ``onnxruntime`` target: integer matrix products of codes, scaled by the gathered row of the tables.

    QuantizeLinear(x, s_t, z_t) → [Clip] → [patches] → MatMulInteger(codes, weight, z_t) → Cast → · (s_t · s_w) → + bias

Standard ONNX, written as ONNX Runtime's CPU fusions take it with a session's default options: from MatMulInteger to the bias it runs one
MatMulIntegerToFloat. A convolution is such a product too, over its patches (``patches``). It takes scalar rows (one timestep for the batch)
and is fast where the left side has uint8 codes and the right one int8 ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from ..formats import ScaleSource
from ..formats.tables import INVERSE_DILATION, ZERO_POINT
from ..quantization.quantizers import ActivationQuantizer
from .emitter import Emitter, number
from .lower.kinds import Array, Operand, Place, QuantizerPlace, integer_product, scale, zero_point
from .scales import TableRows, as_codes, inverse_dilation

_INT8, _UINT8 = ir.DataType.INT8, ir.DataType.UINT8
_ONE = "dq_deploy.unit_scale"


class OnnxRuntimeTarget:
    """Writes the ``onnxruntime`` target; one row for the whole batch.

    ``static``: all rows of every table are the same, and the graph has one of each. It is gathered even so: ONNX Runtime fuses no product
    whose scales are constants.
    """

    folds = True
    pads_first = False  # what a convolution adds is the real number 0, whatever its code is
    per_sample = False

    def __init__(self, graph: ir.Graph, timestep: ir.Value, timesteps: torch.Tensor, *, int4: bool = False, static: bool = False) -> None:
        self.int4, self.static = int4, static
        self._table_rows = TableRows(graph, timestep, timesteps[:1] if static else timesteps, per_sample=False)
        self._steps = len(timesteps)

    def row(self, name: str, table: Array, frames: int = 1) -> ir.Value:  # noqa: ARG002
        """See ``lower.TargetWriter``."""
        if self.static and table.ndim > 1:  # no scale of a product
            return number(name, table[:1])
        return self._table_rows.of(name, table[:1] if self.static else table)

    def quantize(self, emit: Emitter, x: ir.Value, quantizer: ActivationQuantizer, name: str, pads: list[int], *, right: bool) -> Operand:  # noqa: ARG002
        """See the module."""
        shape, dtype = x.shape, _INT8 if right else _UINT8
        if (factor := inverse_dilation(quantizer.dilation, quantizer.axis, len(shape or ()))) is not None:
            x = emit.op("Mul", [x, emit.constant(f"{name}.{INVERSE_DILATION}", factor)], name="dilate")
            x.shape = shape
        at = QuantizerPlace(self, emit, name, x, dtype)
        s, z = scale(quantizer, at), zero_point(quantizer, at)
        token_scale = token_shift = None
        if quantizer.source is ScaleSource.COMPUTED:
            x, token_scale, s = emit.op("Mul", [x, emit.op("Reciprocal", [s])]), s, self._one()
            if not quantizer.symmetric:
                x, token_shift, z = emit.op("Add", [emit.op("Round", [x]), z]), z, number(f"{name}.{ZERO_POINT}", as_codes(0, dtype))
        codes = emit.op("QuantizeLinear", [x, s, z], dtype=dtype)
        if quantizer.format.bits < 8:
            limits = [as_codes(int(v), dtype) for v in quantizer.format.code_range()]
            codes = emit.op("Clip", [codes, *(emit.constant(f"dq_deploy.code_{v.dtype}_{v}", v) for v in limits)], dtype=dtype)
        codes.shape = shape
        return Operand(
            name, codes, codes, s, None if quantizer.symmetric and dtype == _INT8 else z, token_scale=token_scale, token_shift=token_shift
        )

    def _one(self) -> ir.Value:
        """The scale 1 of codes whose own scales are kept apart; gathered, since ONNX Runtime fuses no product of constant scales."""
        return self.row(_ONE, np.ones(self._steps, dtype=np.float32))

    def product(self, layer: Any, at: Place) -> ir.Value:
        """See ``lower.TargetWriter``."""
        return integer_product(layer, at)
