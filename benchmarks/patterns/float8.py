"""Patterns of FP8 (E4M3): codes of activations and weights, and INT4 weights whose products are computed in it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from .sketch import CHANNELS, FLOAT, FLOAT16, KERNEL, SQUARE, WIDTH, Pair, Sketch, images, rescaled, tokens

FLOAT8 = ir.DataType.FLOAT8E4M3FN
_NUMPY = FLOAT8.numpy()


def matmul_fp8(opset: int = 21, **attributes: Any) -> onnx.ModelProto:
    """Constant scales; ``attributes`` of the QuantizeLinear."""
    s = tokens(opset=opset)
    scale, zero = s.constant("layer.scale", np.float32(0.05)), _zero(s)
    x = s.op("QuantizeLinear", s.sample, scale, zero, name="layer/Q", **attributes)
    x = s.op("DequantizeLinear", x, scale, zero, name="layer/DQ")
    return s.model(s.op("MatMul", x, _weight(s, SQUARE, 1), name="layer/MatMul"))


def matmul_fp8_half_scale() -> onnx.ModelProto:
    """Everything in fp16, the scales too."""
    s = tokens()
    half = s.cast(s.sample, FLOAT16, "layer/ToHalf")
    pair = s.constant("layer.scale", np.float16(0.05)), _zero(s)
    y = s.op("MatMul", s.qdq(half, pair), _weight(s, SQUARE, 1, np.float16), name="layer/MatMul")
    return s.model(s.cast(y, FLOAT, "layer/FromHalf"))


def conv_fp8_per_timestep() -> onnx.ModelProto:
    """Q/DQ with the scale 1, times 1/s_t before, times s_t after."""
    s = images()
    x, scale = s.scaled(s.sample)
    return s.model(rescaled(s, s.conv(s.qdq(x, _unit(s)), _weight(s, KERNEL, 0)), scale))


def matmul_fp8_per_timestep() -> onnx.ModelProto:
    """The same."""
    s = tokens()
    x, scale = s.scaled(s.sample)
    return s.model(rescaled(s, s.op("MatMul", s.qdq(x, _unit(s)), _weight(s, SQUARE, 1), name="layer/MatMul"), scale))


def conv_int4_fp8() -> onnx.ModelProto:
    """INT4 codes made FP8 ones."""
    s = images()
    weight = s.op("DequantizeLinear", _from_int4(s, KERNEL), _scales(s, CHANNELS), name="layer/DequantizeWeight", axis=0)
    return s.model(s.conv(s.qdq(s.sample, _unit(s)), weight))


def matmul_int4_fp8() -> onnx.ModelProto:
    """The same."""
    s = tokens()
    weight = s.op("DequantizeLinear", _from_int4(s, SQUARE), _scales(s, WIDTH), name="layer/DequantizeWeight", axis=1)
    return s.model(s.op("MatMul", s.qdq(s.sample, _unit(s)), weight, name="layer/MatMul"))


def _zero(s: Sketch) -> ir.Value:
    return s.constant("zero.fp8", np.array(0, _NUMPY))


def _unit(s: Sketch) -> Pair:
    return s.constant("one", np.float32(1)), _zero(s)


def _scales(s: Sketch, channels: int, dtype: Any = np.float32) -> ir.Value:
    return s.constant("layer.weight.scale", s.random.uniform(0.001, 0.01, channels).astype(dtype))


def _weight(s: Sketch, shape: tuple[int, ...], axis: int, dtype: Any = np.float32) -> ir.Value:
    codes = s.constant("layer.weight.codes", (100 * s.random.normal(size=shape)).clip(-448, 448).astype(_NUMPY))
    return s.op("DequantizeLinear", codes, _scales(s, shape[axis], dtype), name="layer/DequantizeWeight", axis=axis)


def _from_int4(s: Sketch, shape: tuple[int, ...]) -> ir.Value:
    one = s.constant("one", np.float32(1))
    codes = s.op("DequantizeLinear", s.int4(shape), one, name="layer/UnpackWeight")
    codes = s.op("Add", codes, s.constant("nothing", np.float32(0)), name="layer/AsFloat")
    return s.op("QuantizeLinear", codes, one, _zero(s), name="layer/RepackWeight")
