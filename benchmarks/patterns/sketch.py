"""Writing a small quantized graph: an ``onnx_ir`` tape with the handful of steps that most patterns share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.tape import Tape

FLOAT, FLOAT16, BFLOAT16 = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16
INT8, UINT8, INT4 = ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4
# Scales of four calibrated timesteps, 0 to 3, and where they meet.
SCALES = np.array([0.01, 0.02, 0.05, 0.1], np.float32)
MIDPOINTS = np.array([0.5, 1.5, 2.5], np.float32)

CHANNELS, SIZE = 32, 8  # of images [batch, 32, 8, 8]
TOKENS, WIDTH = 16, 64  # of tokens [batch, 16, 64]
KERNEL = (CHANNELS, CHANNELS, 3, 3)
SQUARE = (WIDTH, WIDTH)

Array = np.ndarray[Any, Any]
Pair = tuple[ir.Value, ir.Value]


class Sketch:
    """A graph from ``sample`` (fp32, ``["batch", *shape]``) and, where it is used, ``timestep`` (fp32, [batch] or [1]) to ``out_sample``.

    Nodes are named ``<layer>/<what>``, as the exporters do it. Weights come from a seeded generator.
    """

    def __init__(self, *shape: int, opset: int = 21, scalar_timestep: bool = False) -> None:
        self.tape, self.opset = Tape(), opset
        self.sample = _input("sample", "batch", *shape)
        self.timestep = _input("timestep", 1 if scalar_timestep else "batch")
        self.rank = 1 + len(shape)
        self.random = np.random.default_rng(0)
        self._constants: dict[str, ir.Value] = {}
        self._row: ir.Value | None = None

    def constant(self, name: str, array: Any, dtype: ir.DataType | None = None) -> ir.Value:
        """An initializer; a second request for the same name gives the same one."""
        if name not in self._constants:
            self._constants[name] = self.tape.initializer(ir.tensor(np.asarray(array), dtype=dtype, name=name), name=name)
        return self._constants[name]

    def op(self, op_type: str, *inputs: ir.Value, name: str, **attributes: Any) -> ir.Value:
        """A node with one output."""
        output = ir.Value(name=f"{name}:0")
        return self.tape.op(op_type, inputs, attributes or None, name=name, output=output)

    def cast(self, value: ir.Value, dtype: ir.DataType, name: str) -> ir.Value:
        """Cast to another type."""
        return self.op("Cast", value, name=name, to=dtype.value)

    def row(self) -> ir.Value:
        """Index of the calibrated timestep nearest to each sample's, [batch]; a scalar where ``timestep`` is [1]."""
        if self._row is None:
            scalar = self.timestep.shape is not None and self.timestep.shape[0] == 1
            axis = self.constant("select.axis", np.array([0 if scalar else 1]))
            value = self.timestep if scalar else self.op("Unsqueeze", self.timestep, axis, name="select/Unsqueeze")
            above = self.op("Greater", value, self.constant("select.midpoints", MIDPOINTS), name="select/Greater")
            count = self.cast(above, ir.DataType.INT64, "select/Cast")
            self._row = self.op("ReduceSum", count, axis, name="select/Count", keepdims=0)
        return self._row

    def gathered(self, name: str, table: Array) -> ir.Value:
        """The batch's rows of a table [T], shaped [batch, 1, …]; a scalar where ``timestep`` is [1]."""
        scalar = self.timestep.shape is not None and self.timestep.shape[0] == 1
        shaped = table if scalar else table.reshape(-1, *[1] * (self.rank - 1))
        return self.op("Gather", self.constant(name, shaped), self.row(), name=f"{name}/Gather")

    def scaled(self, value: ir.Value, layer: str = "layer", *, factor: Array | None = None) -> Pair:
        """``value`` divided by its timestep's scale (and by a factor for each channel), and that scale."""
        scale = self.gathered(f"{layer}.scale", SCALES)
        inverse = self.op("Reciprocal", scale, name=f"{layer}/Inverse")
        if factor is not None:
            inverse = self.op("Mul", inverse, self.constant(f"{layer}.inverse_dilation", factor), name=f"{layer}/Dilate")
        return self.op("Mul", value, inverse, name=f"{layer}/Scale"), scale

    def unit(self) -> Pair:
        """Scale 1 and zero-point 0."""
        return self.constant("one", np.float32(1)), self.constant("zero", np.int8(0))

    def fixed(self, scale: float = 0.05, zero_point: int = 0, dtype: Any = np.int8) -> Pair:
        """A constant scale with its zero-point."""
        return self.constant("layer.scale", np.float32(scale)), self.constant("layer.zero_point", dtype(zero_point))

    def computed(self, zero_point: int = 0, dtype: Any = np.int8) -> Pair:
        """A scalar scale that is known only when the graph runs, and a constant zero-point."""
        rows = self.op("Gather", self.constant("layer.scale", SCALES), self.row(), name="layer/Gather")
        scalar = self.timestep.shape is not None and self.timestep.shape[0] == 1
        scale = rows if scalar else self.op("ReduceMax", rows, name="layer/LargestScale", keepdims=0)
        return scale, self.constant("layer.zero_point", dtype(zero_point))

    def qdq(self, value: ir.Value, pair: Pair, name: str = "layer", **attributes: Any) -> ir.Value:
        """QuantizeLinear and DequantizeLinear with one scale and zero-point."""
        codes = self.op("QuantizeLinear", value, *pair, name=f"{name}/Q", **attributes)
        return self.op("DequantizeLinear", codes, *pair, name=f"{name}/DQ", **attributes)

    def weight(self, shape: Sequence[int], axis: int, layer: str = "layer") -> ir.Value:
        """INT8 codes and their DequantizeLinear, a scale for each output channel."""
        codes = self.constant(f"{layer}.weight.codes", self.random.integers(-127, 128, shape).astype(np.int8))
        return self.op("DequantizeLinear", codes, *self.weight_pair(shape[axis], layer), name=f"{layer}/DequantizeWeight", axis=axis)

    def weight_pair(self, channels: int, layer: str = "layer") -> Pair:
        """Scales [channels] and zero-points of a weight."""
        scale = self.random.uniform(0.001, 0.01, channels).astype(np.float32)
        return self.constant(f"{layer}.weight.scale", scale), self.constant(f"{layer}.weight.zero_point", np.zeros(channels, np.int8))

    def int4(self, shape: Sequence[int]) -> ir.Value:
        """INT4 codes."""
        return self.constant("layer.weight.codes", self.random.integers(-7, 8, shape).astype(np.int8), INT4)

    def float_weight(self, name: str, *shape: int) -> ir.Value:
        """A float initializer."""
        return self.constant(name, self.random.normal(size=shape).astype(np.float32))

    def conv(self, x: ir.Value, weight: ir.Value, *more: ir.Value) -> ir.Value:
        """A 3×3 convolution that keeps the size."""
        return self.op("Conv", x, weight, *more, name="layer/Conv", pads=[1, 1, 1, 1])

    def model(self, output: ir.Value, rank: int | None = None) -> onnx.ModelProto:
        """The graph as an ONNX model; inputs that nothing reads are left out."""
        result = self.op("Identity", output, name="output/Identity")
        result.name, result.type, result.shape = "out_sample", ir.TensorType(FLOAT), ir.Shape([None] * (rank or self.rank))
        inputs = [value for value in (self.sample, self.timestep) if value.uses()]
        graph = ir.Graph(
            inputs, [result], nodes=self.tape.nodes, initializers=self.tape.initializers, opset_imports={"": self.opset}, name="pattern"
        )
        return ir.to_proto(ir.Model(graph, ir_version=10))


def images(**options: Any) -> Sketch:
    """A sketch on images."""
    return Sketch(CHANNELS, SIZE, SIZE, **options)


def tokens(**options: Any) -> Sketch:
    """A sketch on tokens."""
    return Sketch(TOKENS, WIDTH, **options)


def rescaled(sketch: Sketch, product: ir.Value, scale: ir.Value, layer: str = "layer") -> ir.Value:
    """Times s_t, plus a bias."""
    y = sketch.op("Mul", product, scale, name=f"{layer}/Rescale")
    shape = (1, CHANNELS, 1, 1) if sketch.rank == 4 else (WIDTH,)
    return sketch.op("Add", y, sketch.float_weight(f"{layer}.bias", *shape), name=f"{layer}/Bias")


def _input(name: str, *shape: int | str) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(FLOAT), shape=ir.Shape(shape))
