"""A layer's weight in the graph: int8 codes, or int4 ones in the two forms from which TensorRT still makes an INT8 product.

MatMul: DequantizeLinear(int4, per channel); the engine casts the codes to INT8 on every run.
Conv: DequantizeLinear(int4, scale 1) → Cast fp16 → QuantizeLinear(int8, scale 1) → DequantizeLinear(int8, per channel). Without the cast to
half precision between, the builder refuses it (benchmarks/patterns/RESULTS.md). Codes of 4 bits are exact in fp16.
Either way the weight takes half a byte an element in the file and in the engine, the product is the one of int8 storage, and the cast is a
kernel more: smaller, not faster. OpenVINO multiplies the MatMul form in float.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import onnx_ir as ir

from ..formats import of_bits
from ..formats.tables import BIAS, CODES, WEIGHT_SCALE, WEIGHT_ZERO_POINT
from ..quantization.weights import QuantizedWeight
from .emitter import AS_WRITTEN, FP32_MARK, Emitter

Storage = Literal["int4", "int8"]
_FLOAT16, _INT4, _INT8 = ir.DataType.FLOAT16, ir.DataType.INT4, ir.DataType.INT8


def storage_of(bits: int, *, int4: bool) -> Storage:
    """The container of a weight of ``bits`` bits, where the graph may have int4."""
    return "int4" if int4 and of_bits(bits).packed else "int8"


def stored(codes: np.ndarray, bits: int, *, int4: bool) -> np.ndarray:
    """Codes int8 [O, ...] in the type of their container."""
    return codes.astype((_INT4 if storage_of(bits, int4=int4) == "int4" else _INT8).numpy())


def dequantized_weight(emit: Emitter, layer: QuantizedWeight, name: str, *, transpose: bool, int4: bool) -> ir.Value:
    """The weight Ŵ = s_w[o] · codes of a layer, [O, ...] or transposed to [C, O], as a value of the graph."""
    assert layer.frozen is not None
    codes, scale = layer.frozen[0].numpy(), emit.constant(f"{name}.{WEIGHT_SCALE}", layer.frozen[1].numpy())
    codes, axis = (codes.T, 1) if transpose else (codes, 0)
    held = emit.constant(f"{name}.{CODES}", stored(codes, layer.bits, int4=int4))
    if held.dtype == _INT4 and transpose:
        inputs = [held, scale]
    else:
        inputs = [_as_int8(emit, held) if held.dtype == _INT4 else held, scale, _zeros(emit, layer, name)]
    return emit.op("DequantizeLinear", inputs, name="DequantizeWeight", axis=axis)


def _zeros(emit: Emitter, layer: QuantizedWeight, name: str) -> ir.Value:
    """Zero-points of int8 codes. One for each layer: onnxruntime rewrites it with the weights (s8 → u8) and refuses to do so twice."""
    return emit.constant(f"{name}.{WEIGHT_ZERO_POINT}", np.zeros(len(layer.log_scale), dtype=np.int8))


def _as_int8(emit: Emitter, packed: ir.Value) -> ir.Value:
    """Int4 codes as int8 ones, the way the builder takes it."""
    one = emit.constant("dq_deploy.one", np.array(1.0, dtype=np.float32))
    floats = emit.op("DequantizeLinear", [packed, one], name="UnpackWeight")
    floats = emit.op("Cast", [floats], name="UnpackWeight/float16", dtype=_FLOAT16, to=_FLOAT16.value)
    half_one = emit.constant("dq_deploy.one.float16", np.array(1.0, dtype=np.float16))
    zero = emit.constant("dq_deploy.zero", np.array(0, dtype=np.int8))
    codes = emit.op("QuantizeLinear", [floats, half_one, zero], name="RepackWeight", dtype=_INT8)
    repack = codes.producer()
    assert repack is not None
    repack.metadata_props[FP32_MARK] = AS_WRITTEN
    return codes


def bias(emit: Emitter, layer: QuantizedWeight, name: str, shape: tuple[int, ...] = (-1,)) -> ir.Value:
    """A layer's bias [O], in the shape in which it broadcasts over the output."""
    assert layer.bias is not None
    return emit.constant(f"{name}.{BIAS}", layer.bias.detach().numpy().reshape(shape))


def weight_sums(layer: QuantizedWeight) -> np.ndarray:
    """Σ Ŵ_o over everything but the output channel: s_w[o] · Σ codes, [O] fp32."""
    assert layer.frozen is not None
    codes, scale = layer.frozen
    sums: np.ndarray = (codes.flatten(1).double().sum(dim=1) * scale.double()).float().numpy()
    return sums
