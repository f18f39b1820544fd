"""The ``tensorrt`` target: Q/DQ with constant scales, per-timestep arithmetic in fp32 around it.

    x · (1/s_t) → [round, + z_t] → QuantizeLinear(1) → DequantizeLinear(1) → Conv/MatMul → [− z_t · Σ Ŵ_o] → · s_t → + bias

TensorRT takes no zero-points and crashes on computed scales, so both stay outside Q/DQ. Padding comes first, so that it becomes the
zero-point; rounding comes before adding z_t, since round(u) + z ≠ round(u + z) at ties. At 8 bits QuantizeLinear itself clips.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch

from ..quantization.checkpoint import Layer
from ..quantization.layers import ActivationQuantizer, QuantizedMatmul, QuantizedWeight
from ..quantization.numerics import code_range
from .emitter import Emitter, attributes
from .lowering import Operand
from .scales import scale_array, select_rows, zero_point_array
from .weights import dequantized_weight, weight_sums

_INT8 = ir.DataType.INT8


class TensorRTTarget:
    """Writes the ``tensorrt`` target; each sample of a batch selects its own rows.

    ``int4`` stores weights of up to 4 bits as INT4. ``static`` says that all rows of every table are the same: what a timestep would
    select is a constant then, and nothing is gathered.
    """

    def __init__(self, graph: ir.Graph, timestep: ir.Value, timesteps: torch.Tensor, *, int4: bool = True, static: bool = False) -> None:
        self.graph, self.int4, self.static = graph, int4, static
        self._gathered: dict[str, ir.Value] = {}
        if not static:
            self.row = select_rows(graph, timestep, timesteps, per_sample=True)
            self._anchor = self.row.producer()  # it stays where it is, unlike the placeholders that follow

    def _constant(self, quantizer: ActivationQuantizer) -> bool:
        return self.static or quantizer.fixed

    def _gather(self, name: str, table: np.ndarray) -> ir.Value:
        """The rows [N, ...] of a table [T, ...], gathered once and before its readers. Why so: docs/decisions/scale-tables.md."""
        if name not in self._gathered:
            emit = Emitter(self.graph, name, after=self._anchor)
            self._gathered[name] = emit.op("Gather", [emit.constant(name, table), self.row], axis=0)
        return self._gathered[name]

    def row_of(self, emit: Emitter, name: str, table: np.ndarray) -> ir.Value:
        """See ``lowering.Target``."""
        return emit.constant(name, table[:1]) if self.static else self._gather(name, table)

    def scale(self, emit: Emitter, name: str, quantizer: ActivationQuantizer, rank: int) -> ir.Value:
        """s_t [N, 1, ..., 1], or a constant []."""
        table = scale_array(quantizer)
        if self._constant(quantizer):
            return emit.constant(f"{name}.scale", table[0])
        return emit.unsqueeze(self._gather(f"{name}.scale", table), rank, "scale")

    def zero_point(self, emit: Emitter, name: str, quantizer: ActivationQuantizer, rank: int) -> ir.Value:
        """z_t [N, 1, ..., 1], or a constant [], as fp32."""
        table = zero_point_array(quantizer).astype(np.float32)
        if self._constant(quantizer):
            return emit.constant(f"{name}.zero_point", table[0])
        return emit.unsqueeze(self._gather(f"{name}.zero_point", table), rank, "zero_point")

    def pads_first(self, quantizer: ActivationQuantizer) -> bool:
        """Padding must become the zero-point."""
        return not quantizer.symmetric

    def quantize(self, emit: Emitter, x: ir.Value, quantizer: ActivationQuantizer, name: str, pads: list[int], *,
                 right: bool) -> tuple[Operand, ir.Value]:  # noqa: ARG002  # fmt: skip
        """See the module."""
        assert x.shape is not None
        rank = len(x.shape)
        shifted = not quantizer.symmetric
        if pads:
            half = len(pads) // 2
            amounts = np.array([0, 0, *pads[:half], 0, 0, *pads[half:]], dtype=np.int64)
            x = emit.op("Pad", [x, emit.constant(f"dq_deploy.pads_{'_'.join(map(str, pads))}", amounts)])
        u = self._code_units(emit, x, quantizer, name, rank)
        if shifted:
            u = emit.op("Round", [u])
            u = emit.op("Add", [u, self.zero_point(emit, name, quantizer, rank)])
        if quantizer.bits < 8:
            qmin, qmax = code_range(quantizer.bits)
            low, high = (emit.constant(f"dq_deploy.code_{v}", np.array(v, dtype=np.float32)) for v in (qmin, qmax))
            u = emit.op("Clip", [u, low, high])
        one = emit.constant("dq_deploy.one", np.array(1.0, dtype=np.float32))
        zero = emit.constant("dq_deploy.zero", np.array(0, dtype=np.int8))
        codes = emit.op("QuantizeLinear", [u, one, zero], dtype=_INT8)
        dequantized = emit.op("DequantizeLinear", [codes, one, zero])
        return Operand(dequantized, quantizer, name, padded=bool(pads)), codes

    def _code_units(self, emit: Emitter, x: ir.Value, quantizer: ActivationQuantizer, name: str, rank: int) -> ir.Value:
        """The activation in units of its codes: x / (dilation · s_t)."""
        if self._constant(quantizer):
            inverse = emit.constant(f"{name}.inverse_scale", 1 / scale_array(quantizer)[0])
        else:
            inverse = emit.op("Reciprocal", [self._gather(f"{name}.scale", scale_array(quantizer))])
            inverse = emit.unsqueeze(inverse, rank, "inverse_scale")
        if bool((quantizer.dilation != 1).any()):
            shape = [1] * rank
            shape[quantizer.axis] = -1
            factor = emit.constant(f"{name}.inverse_dilation", (1 / quantizer.dilation).numpy().reshape(shape))
            inverse = emit.product(inverse, factor, "dilate")
        return emit.op("Mul", [x, inverse])

    def product(self, emit: Emitter, layer: Layer, node: ir.Node, operands: list[Operand], name: str) -> ir.Value:
        """See the module."""
        if isinstance(layer, QuantizedMatmul):
            return self._matmul(emit, node, operands, name)
        (operand,) = operands
        rank = len(node.outputs[0].shape or ())
        y = weighted_product(emit, layer, node, operand, name, int4=self.int4)
        if not operand.quantizer.symmetric:
            sums = emit.constant(f"{name}.weight.sum", per_channel(weight_sums(layer), node))
            shift = self.zero_point(emit, operand.name, operand.quantizer, rank)
            y = emit.op("Sub", [y, emit.product(shift, sums, "zero_point_sum")])
        has_bias = layer.bias is not None
        y = emit.op("Mul", [y, self.scale(emit, operand.name, operand.quantizer, rank)], output=None if has_bias else f"{name}/output")
        if layer.bias is None:
            return y
        return emit.op("Add", [y, emit.constant(f"{name}.bias", per_channel(layer.bias.detach().numpy(), node))], output=f"{name}/output")

    def _matmul(self, emit: Emitter, node: ir.Node, operands: list[Operand], name: str) -> ir.Value:
        """Two activations: · s_a s_b; a constant zero-point of the left (softmax) is corrected by the right's column sums."""
        left, right = operands
        rank = len(node.outputs[0].shape or ())
        y = emit.op("MatMul", [left.value, right.value])
        outside = Emitter(emit.graph, f"{name}_correction", emit.before)
        if not left.quantizer.symmetric:
            axis = outside.constant("dq_deploy.axis_rows", np.array([-2], dtype=np.int64))
            sums = outside.op("ReduceSum", [right.value, axis], keepdims=1)
            zero_point = self.zero_point(outside, left.name, left.quantizer, rank)
            y = emit.op("Sub", [y, outside.op("Mul", [sums, zero_point])])
        return emit.op("Mul", [y, self._scales(emit, left, right, rank)], output=f"{name}/output")

    def _scales(self, emit: Emitter, left: Operand, right: Operand, rank: int) -> ir.Value:
        """s_a · s_b [N, 1, ..., 1], or a constant []; multiplied as [N], before the reshape."""
        factors = []
        for operand in (left, right):
            name, table = f"{operand.name}.scale", scale_array(operand.quantizer)
            factors.append(emit.constant(name, table[0]) if self._constant(operand.quantizer) else self._gather(name, table))
        scale = emit.product(factors[0], factors[1], "scales")
        return scale if scale.const_value is not None else emit.unsqueeze(scale, rank, "scale")


def weighted_product(emit: Emitter, layer: QuantizedWeight, node: ir.Node, operand: Operand, name: str,
                     output: str | None = None, int4: bool = False) -> ir.Value:  # fmt: skip
    """The INT8 convolution or matrix product itself, without bias."""
    if node.op_type == "Linear":
        return emit.op("MatMul", [operand.value, dequantized_weight(emit, layer, name, transpose=True, int4=int4)], output=output)
    options = {k: v for k, v in attributes(node).items() if k != "name"}
    if operand.padded:
        options["pads"] = [0] * len(options["pads"])
    return emit.op("Conv", [operand.value, dequantized_weight(emit, layer, name, transpose=False, int4=int4)], output=output, **options)


def per_channel(values: np.ndarray, node: ir.Node) -> np.ndarray:
    """[O] → shaped to broadcast over the output of a Conv or Linear placeholder."""
    return values.reshape(1, -1, 1, 1) if node.op_type == "Conv" else values
