"""The ``onnxruntime`` target: Q/DQ whose scale and zero-point are the gathered row of the tables.

Legal ONNX, and what ONNX Runtime's CPU fusions accept: scalar rows (one timestep for the batch), uint8 codes (its int8 MatMul fusion fails
on a bias), no bias inside the convolution. A uint8 code is the checkpoint's int8 code + 128.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch

from ..quantization.checkpoint import Layer
from ..quantization.layers import ActivationQuantizer, QuantizedMatmul
from ..quantization.numerics import code_range
from .emitter import Emitter
from .lowering import Operand
from .scales import scale_array, select_rows, zero_point_array
from .tensorrt_target import per_channel, weighted_product

CODE_OFFSET = 128
_UINT8 = ir.DataType.UINT8


class OnnxRuntimeTarget:
    """Writes the ``onnxruntime`` target; one row for the whole batch. ``static``: all rows of every table are the same."""

    def __init__(self, graph: ir.Graph, timestep: ir.Value, timesteps: torch.Tensor, *, static: bool = False) -> None:
        self.graph, self.static = graph, static
        if not static:
            self.row = select_rows(graph, timestep, timesteps, per_sample=False)
            self._anchor = self.row.producer()  # it stays where it is, unlike the placeholders that follow

    def pads_first(self, quantizer: ActivationQuantizer) -> bool:  # noqa: ARG002
        """What the convolution adds is the real number 0, whatever its code is."""
        return False

    def quantize(self, emit: Emitter, x: ir.Value, quantizer: ActivationQuantizer, name: str,
                 pads: list[int]) -> tuple[Operand, ir.Value]:  # noqa: ARG002  # fmt: skip
        """See the module. Padding is left to the convolution: what it adds is the real number 0."""
        if bool((quantizer.dilation != 1).any()):
            shape = [1] * len(x.shape or ())
            shape[quantizer.axis] = -1
            factor = (1 / quantizer.dilation).numpy().reshape(shape)
            x = emit.op("Mul", [x, emit.constant(f"{name}.inverse_dilation", factor)], name="dilate")
        parameters = self._row(emit, name, quantizer)
        codes = emit.op("QuantizeLinear", [x, *parameters], dtype=_UINT8)
        if quantizer.bits < 8:
            limits = [np.array(v + CODE_OFFSET, dtype=np.uint8) for v in code_range(quantizer.bits)]
            codes = emit.op("Clip", [codes, *(emit.constant(f"dq_deploy.code_u{v}", v) for v in limits)], dtype=_UINT8)
        return Operand(emit.op("DequantizeLinear", [codes, *parameters]), quantizer, name), codes

    def _row(self, emit: Emitter, name: str, quantizer: ActivationQuantizer) -> list[ir.Value]:
        """Scalar scale and zero-point of this timestep."""
        scale, zero_point = scale_array(quantizer), (zero_point_array(quantizer).astype(np.int16) + CODE_OFFSET).astype(np.uint8)
        if self.static or quantizer.fixed:
            return [emit.constant(f"{name}.scale", scale[0]), emit.constant(f"{name}.zero_point", zero_point[0])]
        return [self._gather(f"{name}.scale", scale, ir.DataType.FLOAT), self._gather(f"{name}.zero_point", zero_point, _UINT8)]

    def row_of(self, emit: Emitter, name: str, table: np.ndarray) -> ir.Value:
        """See ``lowering.Target``."""
        return emit.constant(name, table[:1]) if self.static else self._gather(name, table, ir.DataType.FLOAT)

    def _gather(self, name: str, table: np.ndarray, dtype: ir.DataType) -> ir.Value:
        """The row of a table [T]; a quantizer is emitted once, so each table is."""
        emit = Emitter(self.graph, name, after=self._anchor)
        return emit.op("Gather", [emit.constant(name, table), self.row], dtype=dtype, axis=0)

    def product(self, emit: Emitter, layer: Layer, node: ir.Node, operands: list[Operand], name: str) -> ir.Value:
        """See the module."""
        if isinstance(layer, QuantizedMatmul):
            return emit.op("MatMul", [o.value for o in operands], output=f"{name}/output")
        (operand,) = operands
        y = weighted_product(emit, layer, node, operand, name, output=f"{name}/output" if layer.bias is None else None)
        if layer.bias is None:
            return y
        return emit.op("Add", [y, emit.constant(f"{name}.bias", per_channel(layer.bias.detach().numpy(), node))], output=f"{name}/output")
