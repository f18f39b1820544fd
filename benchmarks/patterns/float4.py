"""Patterns of FP4 (E2M1) in blocks of 16, with scales in E4M3: TensorRT's dynamic quantization of the activation."""

from __future__ import annotations

from typing import Literal

import numpy as np
import onnx
import onnx_ir as ir

from dq_deploy.formats.fp4 import FP4_DOMAIN, FP4_IR_VERSION, FP4_OPERATOR, FP4_OPSET

from .sketch import CHANNELS, SIZE, TOKENS, WIDTH, Pair, Sketch, images, rescaled, tokens

FLOAT4, FLOAT8 = ir.DataType.FLOAT4E2M1, ir.DataType.FLOAT8E4M3FN
_BLOCK = 16


def matmul_fp4(opset: int = FP4_OPSET, scale: Literal["constant", "computed"] = "constant") -> onnx.ModelProto:
    """Codes and block scales of the activation by TensorRT's operator, those of the weight constant."""
    s = tokens(opset=opset)
    g = _global(s)
    if scale == "computed":
        g = s.op("ReduceMax", s.gathered("layer.scales", np.full(4, 2.0**-9, np.float32)), name="layer/Largest", keepdims=0)
    x = _activation(s, s.sample, g)
    return _model(s, s.op("MatMul", x, _weight(s, (WIDTH, WIDTH)), name="layer/MatMul"))


def matmul_fp4_per_timestep() -> onnx.ModelProto:
    """Times 1/s_t before, times s_t after."""
    s = tokens(opset=FP4_OPSET)
    x, scale = s.scaled(s.sample)
    y = s.op("MatMul", _activation(s, x, _global(s)), _weight(s, (WIDTH, WIDTH)), name="layer/MatMul")
    return _model(s, rescaled(s, y, scale))


def matmul_fp4_rank_4() -> onnx.ModelProto:
    """An activation of four dimensions."""
    s = Sketch(2, TOKENS, WIDTH, opset=FP4_OPSET)
    y = s.op("MatMul", _activation(s, s.sample, _global(s)), _weight(s, (WIDTH, WIDTH)), name="layer/MatMul")
    return _model(s, y)


def conv_fp4() -> onnx.ModelProto:
    """A 1 × 1 convolution, blocks along its input channels."""
    s = images(opset=FP4_OPSET)
    flat = s.op("Reshape", s.sample, s.constant("flat", np.array([0, CHANNELS, -1])), name="layer/Flat")
    x = s.op(
        "Reshape", _activation(s, flat, _global(s), axis=1), s.constant("image", np.array([0, CHANNELS, SIZE, SIZE])), name="layer/Image"
    )
    weight = s.op("Reshape", _weight(s, (CHANNELS, CHANNELS), transposed=False), s.constant("kernel", np.array([CHANNELS, CHANNELS, 1, 1])),
                  name="layer/Kernel")  # fmt: skip
    return _model(s, s.op("Conv", x, weight, name="layer/Conv"))


def _global(s: Sketch) -> ir.Value:
    return s.constant("layer.global_scale", np.float32(2.0**-9))


def _activation(s: Sketch, x: ir.Value, g: ir.Value, axis: int = -1) -> ir.Value:
    codes, scales = _dynamic(s, x, g, axis)
    scale = s.op("DequantizeLinear", scales, s.constant("layer.global_scale", np.float32(2.0**-9)), name="layer/DequantizeScale")
    return s.op("DequantizeLinear", codes, scale, name="layer/DQ", axis=axis, block_size=_BLOCK)


def _dynamic(s: Sketch, x: ir.Value, g: ir.Value, axis: int) -> Pair:
    outputs = [ir.Value(name=f"layer/Q:{i}", type=ir.TensorType(dtype)) for i, dtype in enumerate((FLOAT4, FLOAT8))]
    attributes = {"axis": axis, "block_size": _BLOCK, "scale_type": FLOAT8.value}
    s.tape.op_multi_out(FP4_OPERATOR, [x, g], attributes, domain=FP4_DOMAIN, name="layer/Q", outputs=outputs)
    return outputs[0], outputs[1]


def _weight(s: Sketch, shape: tuple[int, int], *, transposed: bool = True) -> ir.Value:
    codes = s.random.choice([-6, -4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4, 6], size=shape).astype(FLOAT4.numpy())
    scales = s.random.uniform(16, 256, (shape[0], shape[1] // _BLOCK)).astype(FLOAT8.numpy())
    scale = s.op("DequantizeLinear", s.constant("layer.weight.block_scale", scales),
                 s.constant("layer.weight.global_scale", np.float32(2.0**-12)), name="layer/DequantizeWeightScale")  # fmt: skip
    held = s.constant("layer.weight.codes", codes)
    weight = s.op("DequantizeLinear", held, scale, name="layer/DequantizeWeight", axis=1, block_size=_BLOCK)
    return s.op("Transpose", weight, name="layer/Transpose", perm=[1, 0]) if transposed else weight


def _model(s: Sketch, output: ir.Value) -> onnx.ModelProto:
    model = s.model(output)
    model.opset_import.append(onnx.helper.make_opsetid(FP4_DOMAIN, 1))
    model.ir_version = FP4_IR_VERSION
    return model
