"""The ``qdq`` target: Q/DQ with constant scales, per-timestep arithmetic in fp32 around it.

    x · (1/s_t) → [round, + z_t] → QuantizeLinear(1) → DequantizeLinear(1) → Conv/MatMul → [− z_t · Σ Ŵ_o] → · s_t → + bias

TensorRT takes no zero-points and crashes on computed scales, so both stay outside Q/DQ. Padding comes first, so that it becomes the
zero-point; rounding comes before adding z_t, since round(u) + z ≠ round(u + z) at ties. At 8 bits QuantizeLinear itself clips, and
saturates where its codes are FP8.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from ..formats import ScaleSource
from ..formats.tables import INVERSE_DILATION, INVERSE_SCALE
from ..quantization.quantizers import ActivationQuantizer, BlockQuantizer
from .emitter import Emitter, number
from .lower.fp4 import in_blocks
from .lower.kinds import Array, Operand, Place, QuantizerPlace, qdq_product, scale, zero_point
from .scales import TableRows, inverse_dilation
from .weights import code_type, zero


class TensorRTTarget:
    """Writes the ``qdq`` target; each sample of a batch selects its own rows.

    ``static`` says that all rows of every table are the same: what a timestep would select is a constant then, and nothing is gathered.
    """

    folds = False
    pads_first = True
    per_sample = True

    def __init__(self, graph: ir.Graph, timestep: ir.Value, timesteps: torch.Tensor, *, int4: bool = True, static: bool = False) -> None:
        self.int4 = int4
        self._table_rows = None if static else TableRows(graph, timestep, timesteps, per_sample=True)

    def row(self, name: str, table: Array, frames: int = 1) -> ir.Value:
        """See ``lower.TargetWriter``."""
        if self._table_rows is not None:
            return self._table_rows.of(name, table, frames)
        return number(name, table[0] if table.ndim == 1 else table[:1])

    def quantize(self, emit: Emitter, x: ir.Value, quantizer: ActivationQuantizer, name: str, pads: list[int], *, right: bool) -> Operand:  # noqa: ARG002
        """See the module."""
        if isinstance(quantizer, BlockQuantizer):
            return in_blocks(emit, x, quantizer, name)
        shape = x.shape
        assert shape is not None
        rank, factor = len(shape), inverse_dilation(quantizer.dilation, quantizer.axis, len(shape))
        if pads:
            half = len(pads) // 2
            amounts = np.array([0, 0, *pads[:half], 0, 0, *pads[half:]], dtype=np.int64)
            x = emit.op("Pad", [x, emit.constant(f"dq_deploy.pads_{'_'.join(map(str, pads))}", amounts)])
        if factor is not None and quantizer.source is ScaleSource.COMPUTED:
            x, factor = emit.op("Mul", [x, emit.constant(f"{name}.{INVERSE_DILATION}", factor)], name="dilate"), None
            x.shape = shape
        at = QuantizerPlace(self, emit, name, x, ir.DataType.FLOAT)
        s, z = scale(quantizer, at), None
        u = emit.op("Mul", [x, _inverse(emit, s, factor, name, rank)])
        if not quantizer.symmetric:
            u = emit.op("Round", [u])
            z = zero_point(quantizer, at)
            u = emit.op("Add", [u, emit.unsqueeze(z, rank, "zero_point")])
        if not quantizer.format.floating and quantizer.format.bits < 8:
            low, high = (emit.constant(f"dq_deploy.code_{v}", np.array(v, dtype=np.float32)) for v in quantizer.format.code_range())
            u = emit.op("Clip", [u, low, high])
        one = emit.constant("dq_deploy.one", np.array(1.0, dtype=np.float32))
        dtype = code_type(quantizer.format)
        shift = emit.constant(*zero(dtype))
        codes = emit.op("QuantizeLinear", [u, one, shift], dtype=dtype)
        return Operand(name, emit.op("DequantizeLinear", [codes, one, shift]), codes, s, z, padded=bool(pads))

    def product(self, layer: Any, at: Place) -> ir.Value:
        """See ``lower.TargetWriter``."""
        return qdq_product(layer, at)


def _inverse(emit: Emitter, s: ir.Value, factor: Array | None, name: str, rank: int) -> ir.Value:
    """What takes an activation to units of its codes: 1 / (dilation · s_t), ``factor`` being 1 / dilation."""
    if s.const_value is not None:
        inverse = number(f"{name}.{INVERSE_SCALE}", 1 / s.const_value.numpy())
    else:
        inverse = emit.op("Reciprocal", [s])
        inverse.shape = s.shape
        inverse = emit.unsqueeze(inverse, rank, "inverse_scale")
    return inverse if factor is None else emit.product(inverse, emit.constant(f"{name}.{INVERSE_DILATION}", factor), "dilate")
