"""The ``onnxruntime`` target: integer matrix products of codes, scaled by the gathered row of the tables.

    QuantizeLinear(x, s_t, z_t) → [Clip] → [patches] → MatMulInteger(codes, weight, z_t) → Cast → · (s_t · s_w) → + bias

Standard ONNX, written as ONNX Runtime's CPU fusions take it with a session's default options: from MatMulInteger to the bias it runs one
MatMulIntegerToFloat. A convolution is such a product too, over its patches (``patches``). It takes scalar rows (one timestep for the batch)
and is fast where the left side has uint8 codes and the right one int8 ones. A uint8 code is the checkpoint's int8 code + 128.
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
from .patches import Window, matrix, patches
from .scales import scale_array, select_rows, zero_point_array

CODE_OFFSET = 128
_INT8, _INT32, _UINT8 = ir.DataType.INT8, ir.DataType.INT32, ir.DataType.UINT8


class OnnxRuntimeTarget:
    """Writes the ``onnxruntime`` target; one row for the whole batch.

    ``static``: all rows of every table are the same, and the graph has one of each. It is gathered even so: ONNX Runtime fuses no product
    whose scales are constants.
    """

    def __init__(self, graph: ir.Graph, timestep: ir.Value, timesteps: torch.Tensor, *, static: bool = False) -> None:
        self.graph, self.static = graph, static
        self.row = select_rows(graph, timestep, timesteps[:1] if static else timesteps, per_sample=False)
        self._anchor = self.row.producer()  # it stays where it is, unlike the placeholders that follow
        self._rows: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}  # scale and zero-point of codes
        self._patches: dict[tuple[ir.Value, Window], ir.Value] = {}

    def pads_first(self, quantizer: ActivationQuantizer) -> bool:  # noqa: ARG002
        """What a convolution adds is the real number 0, whatever its code is."""
        return False

    def quantize(self, emit: Emitter, x: ir.Value, quantizer: ActivationQuantizer, name: str,
                 pads: list[int], *, right: bool) -> tuple[Operand, ir.Value]:  # noqa: ARG002  # fmt: skip
        """See the module."""
        shape = x.shape
        if bool((quantizer.dilation != 1).any()):
            ones = [1] * len(shape or ())
            ones[quantizer.axis] = -1
            factor = (1 / quantizer.dilation).numpy().reshape(ones)
            x = emit.op("Mul", [x, emit.constant(f"{name}.inverse_dilation", factor)], name="dilate")
        dtype = _INT8 if right else _UINT8
        scale, zero_point = self._row(emit, name, quantizer, dtype)
        codes = emit.op("QuantizeLinear", [x, scale, zero_point], dtype=dtype)
        if quantizer.bits < 8:
            limits = [_code(v, dtype) for v in code_range(quantizer.bits)]
            codes = emit.op("Clip", [codes, *(emit.constant(f"dq_deploy.code_{v.dtype}_{v}", v) for v in limits)], dtype=dtype)
        codes.shape = shape
        self._rows[codes] = scale, zero_point
        return Operand(codes, quantizer, name), codes

    def _row(self, emit: Emitter, name: str, quantizer: ActivationQuantizer, dtype: ir.DataType) -> tuple[ir.Value, ir.Value]:
        """Scalar scale and zero-point of this timestep."""
        scale, zero_point = scale_array(quantizer), _code(zero_point_array(quantizer), dtype)
        if quantizer.fixed:
            return emit.constant(f"{name}.scale", scale[0]), emit.constant(f"{name}.zero_point", zero_point[0])
        return self._gather(f"{name}.scale", scale, ir.DataType.FLOAT), self._gather(f"{name}.zero_point", zero_point, dtype)

    def row_of(self, emit: Emitter, name: str, table: np.ndarray) -> ir.Value:
        """See ``lowering.Target``."""
        return emit.constant(name, table[:1]) if self.static else self._gather(name, table, ir.DataType.FLOAT)

    def _gather(self, name: str, table: np.ndarray, dtype: ir.DataType) -> ir.Value:
        """The row of a table [T]; a quantizer is emitted once, so each table is."""
        emit = Emitter(self.graph, name, after=self._anchor)
        return emit.op("Gather", [emit.constant(name, table[:1] if self.static else table), self.row], dtype=dtype, axis=0)

    def product(self, emit: Emitter, layer: Layer, node: ir.Node, operands: list[Operand], name: str) -> ir.Value:
        """See the module."""
        output = f"{name}/output"
        rows = [self._rows[operand.value] for operand in operands]
        if isinstance(layer, QuantizedMatmul):
            without = operands[1].quantizer.symmetric and operands[1].value.dtype == _INT8  # its zero-point is 0
            zero_points = [zero_point for _, zero_point in (rows[:1] if without else rows)]
            return self._scaled(emit, [*(operand.value for operand in operands), *zero_points], [scale for scale, _ in rows], output)
        ((scale, zero_point),) = rows
        codes, weight = self._factors(layer, node, operands[0])
        assert layer.frozen is not None
        scales = [scale, emit.constant(f"{name}.weight.scale", layer.frozen[1].numpy())]
        convolution = node.op_type == "Conv"
        factors = [codes, emit.constant(f"{name}.weight.codes", weight), zero_point]
        y = self._scaled(emit, factors, scales, output if layer.bias is None and not convolution else None)
        if layer.bias is not None:
            bias = emit.constant(f"{name}.bias", layer.bias.detach().numpy())
            y = emit.op("Add", [y, bias], output=None if convolution else output)
        return emit.op("Transpose", [y], name="channels_first", output=output, perm=[0, 3, 1, 2]) if convolution else y

    def _factors(self, layer: QuantizedWeight, node: ir.Node, operand: Operand) -> tuple[ir.Value, np.ndarray]:
        """What a layer multiplies: codes [..., C] and a matrix [C, O]."""
        assert layer.frozen is not None
        weight = layer.frozen[0].numpy()
        if node.op_type == "Linear":
            return operand.value, np.ascontiguousarray(weight.T)
        window = Window.of(node, weight.shape)
        if (operand.value, window) not in self._patches:
            assert operand.value.shape is not None
            shape = [size for size in operand.value.shape[1:] if isinstance(size, int)]
            emit = Emitter(self.graph, f"{operand.name}/patches_{window}", after=operand.value.producer())
            self._patches[operand.value, window] = patches(emit, operand.value, shape, self._rows[operand.value][1], window)
        return self._patches[operand.value, window], matrix(weight, attributes(node)["group"])

    def _scaled(self, emit: Emitter, factors: list[ir.Value], scales: list[ir.Value], output: str | None) -> ir.Value:
        """An integer product times both sides' scales. ONNX Runtime fuses it in this order of operations alone."""
        sums = emit.op("MatMulInteger", factors, dtype=_INT32)
        y = emit.op("Cast", [sums], to=ir.DataType.FLOAT.value)
        return emit.op("Mul", [y, emit.op("Mul", scales, name="scales")], name="scaled", output=output)


def _code(value: np.ndarray | int, dtype: ir.DataType) -> np.ndarray:
    """The checkpoint's int8 codes in a type of the graph."""
    offset = CODE_OFFSET if dtype == _UINT8 else 0
    return (np.asarray(value, dtype=np.int16) + offset).astype(dtype.numpy())
