"""Patterns that matter to ONNX Runtime: scales as graph values, ``timestep`` [1]."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from .sketch import (
    CHANNELS,
    FLOAT,
    KERNEL,
    SCALES,
    SQUARE,
    WIDTH,
    Pair,
    Sketch,
    images,
    tokens,
)


def _row(s: Sketch, unsigned: bool) -> Pair:
    return s.computed(128, np.uint8) if unsigned else s.computed()


def conv_gathered(*, requantized: bool, bias: bool) -> onnx.ModelProto:
    """Scales as graph values, uint8 codes; the output quantized or not; a float bias inside the convolution or none."""
    s = images(scalar_timestep=True)
    pair = _row(s, unsigned=True)
    more = [s.float_weight("layer.bias", CHANNELS)] if bias else []
    y = s.conv(s.qdq(s.sample, pair), s.weight(KERNEL, 0), *more)
    return s.model(s.qdq(y, pair, "after") if requantized else y)


def matmul_gathered(*, unsigned: bool, bias: bool) -> onnx.ModelProto:
    """Scales as graph values; a bias added after the product or none."""
    s = tokens(scalar_timestep=True)
    y = s.op("MatMul", s.qdq(s.sample, _row(s, unsigned)), s.weight(SQUARE, 1), name="layer/MatMul")
    return s.model(s.op("Add", y, s.float_weight("layer.bias", WIDTH), name="layer/Bias") if bias else y)


def matmul_biased(*, unsigned: bool) -> onnx.ModelProto:
    """Constant scales, and a bias added after the product."""
    s = tokens()
    pair = s.fixed(0.05, 128, np.uint8) if unsigned else s.fixed()
    y = s.op("MatMul", s.qdq(s.sample, pair), s.weight(SQUARE, 1), name="layer/MatMul")
    return s.model(s.op("Add", y, s.float_weight("layer.bias", WIDTH), name="layer/Bias"))


def matmul_scale_per_sample() -> onnx.ModelProto:
    """One scale for each sample of the batch, [N], along axis 0 of Q/DQ."""
    s = tokens()
    scale = s.op("Gather", s.constant("layer.scale", SCALES), s.row(), name="layer/Gather")
    shape = s.op("Shape", scale, name="layer/Shape")
    value = ir.tensor(np.array([0], np.int8))
    zero = s.op("ConstantOfShape", shape, name="layer/ZeroPoints", value=value)
    x = s.qdq(s.sample, (scale, zero), axis=0)
    return s.model(s.op("MatMul", x, s.weight(SQUARE, 1), name="layer/MatMul"))


def conv_integer() -> onnx.ModelProto:
    """Integer codes in, int32 sums out."""
    s = images()
    scale, zero = s.fixed(0.05, 128, np.uint8)
    codes = s.op("QuantizeLinear", s.sample, scale, zero, name="layer/Q")
    kernel = s.constant("layer.weight.codes", s.random.integers(-127, 128, KERNEL).astype(np.int8))
    sums = s.op("ConvInteger", codes, kernel, zero, name="layer/Conv", pads=[1, 1, 1, 1])
    return s.model(s.op("Mul", s.cast(sums, FLOAT, "layer/CastOut"), scale, name="layer/Rescale"))


def shared_weight(*, codes: bool) -> onnx.ModelProto:
    """Two layers whose weights share their codes, or the zero-point that they are dequantized with."""
    s = tokens(scalar_timestep=True)
    pair = _row(s, unsigned=True)
    x = s.sample
    for layer in ("first", "second"):
        name = "both" if codes else layer
        weight = s.constant(f"{name}.weight.codes", s.random.integers(-127, 128, SQUARE).astype(np.int8))
        scale = s.constant(f"{layer}.weight.scale", np.full(WIDTH, 0.01, np.float32))
        zero = s.constant(f"{layer if codes else 'both'}.weight.zero_point", np.zeros(WIDTH, np.int8))
        weight = s.op("DequantizeLinear", weight, scale, zero, name=f"{layer}/DequantizeWeight", axis=1)
        x = s.op("MatMul", s.qdq(x, pair, layer), weight, name=f"{layer}/MatMul")
    return s.model(x)


def matmul_sliced() -> onnx.ModelProto:
    """An int8 activation is sliced between its DequantizeLinear and the product."""
    s = tokens()
    edges = [s.constant(name, np.array([value])) for name, value in (("start", 0), ("end", WIDTH // 2), ("axis", 2))]
    x = s.op("Slice", s.qdq(s.sample, s.fixed()), *edges, name="layer/Slice")
    return s.model(s.op("MatMul", x, s.weight((WIDTH // 2, WIDTH), 1), name="layer/MatMul"))


def shared_gathered(*, unsigned: bool) -> onnx.ModelProto:
    """Three MatMuls read one DequantizeLinear whose scale is a graph value."""
    s = tokens(scalar_timestep=True)
    x = s.qdq(s.sample, _row(s, unsigned), "tokens")
    q, k, v = (s.op("MatMul", x, s.weight(SQUARE, 1, f"to_{n}"), name=f"to_{n}/MatMul") for n in "qkv")
    return s.model(s.op("Add", s.op("Mul", q, k, name="join/Mul"), v, name="join/Add"))
