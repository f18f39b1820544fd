"""Patterns of quantized weights."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from .sketch import (
    CHANNELS,
    FLOAT,
    FLOAT16,
    INT8,
    KERNEL,
    SQUARE,
    TOKENS,
    WIDTH,
    Sketch,
    images,
    tokens,
)


def _int4_activation(s: Sketch, int8: bool) -> ir.Value:
    return s.qdq(s.sample, s.fixed()) if int8 else s.cast(s.sample, FLOAT16, "in/Cast")


def _int4_scales(s: Sketch, shape: Any, int8: bool) -> ir.Value:
    return s.constant("layer.weight.scale", np.full(shape, 0.01, np.float32 if int8 else np.float16))


def _int4_output(s: Sketch, y: ir.Value, int8: bool) -> onnx.ModelProto:
    return s.model(y if int8 else s.cast(y, FLOAT, "out/Cast"))


def matmul_int4_per_channel(int8: bool, opset: int = 21) -> onnx.ModelProto:
    """A scale for each output channel."""
    s = tokens(opset=opset)
    weight = s.op("DequantizeLinear", s.int4(SQUARE), _int4_scales(s, WIDTH, int8), name="layer/DequantizeWeight", axis=1)
    return _int4_output(s, s.op("MatMul", _int4_activation(s, int8), weight, name="layer/MatMul"), int8)


def matmul_int4_blocks(int8: bool) -> onnx.ModelProto:
    """A scale for each block of 64 along the reduction axis."""
    s = Sketch(TOKENS, 2 * WIDTH)
    scale = _int4_scales(s, (2, WIDTH), int8)
    weight = s.op("DequantizeLinear", s.int4((2 * WIDTH, WIDTH)), scale, name="layer/DequantizeWeight", axis=0, block_size=64)
    return _int4_output(s, s.op("MatMul", _int4_activation(s, int8), weight, name="layer/MatMul"), int8)


def conv_int4_per_channel(int8: bool) -> onnx.ModelProto:
    """A scale for each output channel."""
    s = images()
    weight = s.op("DequantizeLinear", s.int4(KERNEL), _int4_scales(s, CHANNELS, int8), name="layer/DequantizeWeight", axis=0)
    return _int4_output(s, s.conv(_int4_activation(s, int8), weight), int8)


def conv_int4_requantized(*casts: ir.DataType) -> onnx.ModelProto:
    """INT4 codes as numbers, through casts to INT8 codes, dequantized per channel."""
    s = images()
    codes = _requantized(s, s.int4(KERNEL), casts)
    weight = s.op("DequantizeLinear", codes, *s.weight_pair(CHANNELS), name="layer/DequantizeWeight", axis=0)
    return s.model(s.conv(s.qdq(s.sample, s.fixed()), weight))


def matmul_int4_cast() -> onnx.ModelProto:
    """INT4 codes cast to INT8 ones."""
    s = tokens()
    codes = s.cast(s.int4(SQUARE), INT8, "layer/WeightToINT8")
    weight = s.op("DequantizeLinear", codes, *s.weight_pair(WIDTH), name="layer/DequantizeWeight", axis=1)
    return s.model(s.op("MatMul", s.qdq(s.sample, s.fixed()), weight, name="layer/MatMul"))


def weight_scale_axis(op: str) -> onnx.ModelProto:
    """Scales along the input channels."""
    s = images() if op == "Conv" else tokens()
    x = s.qdq(s.sample, s.fixed())
    if op == "Conv":
        return s.model(s.conv(x, s.weight(KERNEL, 1)))
    return s.model(s.op("MatMul", x, s.weight(SQUARE, 0), name="layer/MatMul"))


def matmul_int8_blocks() -> onnx.ModelProto:
    """INT8 codes, a scale for each block of 64 along the reduction axis."""
    s = Sketch(TOKENS, 2 * WIDTH)
    codes = s.constant("layer.weight.codes", s.random.integers(-127, 128, (2 * WIDTH, WIDTH)).astype(np.int8))
    scale = s.constant("layer.weight.scale", np.full((2, WIDTH), 0.01, np.float32))
    weight = s.op("DequantizeLinear", codes, scale, name="layer/DequantizeWeight", axis=0, block_size=64)
    return s.model(s.op("MatMul", s.qdq(s.sample, s.fixed()), weight, name="layer/MatMul"))


def matmul_int4_per_tensor() -> onnx.ModelProto:
    """One scale for the whole weight."""
    s = tokens()
    weight = s.op("DequantizeLinear", s.int4(SQUARE), s.constant("layer.weight.scale", np.float32(0.01)), name="layer/DequantizeWeight")
    return s.model(s.op("MatMul", s.qdq(s.sample, s.fixed()), weight, name="layer/MatMul"))


def weight_codes(dtype: ir.DataType) -> onnx.ModelProto:
    """Weight codes of another type than int8."""
    s = tokens()
    codes = s.constant("layer.weight.codes", s.random.integers(0, 15, SQUARE).astype(np.uint8), dtype)
    weight = s.op(
        "DequantizeLinear", codes, s.constant("layer.weight.scale", np.full(WIDTH, 0.01, np.float32)), name="layer/DequantizeWeight", axis=1
    )
    return s.model(s.op("MatMul", s.qdq(s.sample, s.fixed()), weight, name="layer/MatMul"))


def matmul_int4_requantized(*casts: ir.DataType) -> onnx.ModelProto:
    """What a Conv needs, in front of a MatMul."""
    s = tokens()
    codes = _requantized(s, s.int4(SQUARE), casts)
    weight = s.op("DequantizeLinear", codes, *s.weight_pair(WIDTH), name="layer/DequantizeWeight", axis=1)
    return s.model(s.op("MatMul", s.qdq(s.sample, s.fixed()), weight, name="layer/MatMul"))


def _requantized(s: Sketch, codes: ir.Value, casts: tuple[ir.DataType, ...]) -> ir.Value:
    value = s.op("DequantizeLinear", codes, s.constant("one", np.float32(1)), name="layer/UnpackWeight")
    for dtype in casts:
        value = s.cast(value, dtype, f"layer/WeightTo{dtype.name}")
    unit = s.constant(f"one.{casts[-1].name}", np.array(1, casts[-1].numpy())) if casts else s.constant("one", 1)
    return s.op("QuantizeLinear", value, unit, s.constant("zero", np.int8(0)), name="layer/QuantizeWeight")


def conv_weight_quantized() -> onnx.ModelProto:
    """A float weight that the graph itself quantizes, as many tools write it."""
    s = images()
    weight = s.qdq(s.float_weight("layer.weight", *KERNEL), s.weight_pair(CHANNELS), "weight", axis=0)
    return s.model(s.conv(s.qdq(s.sample, s.fixed()), weight))


def codebook(op: str, books: int = 1, *, transpose: str = "between", unsigned: bool = False) -> onnx.ModelProto:
    """INT8 codes as sums of codewords of 4 weights, made numbers, gathered and quantized with scale 1; a MatMul's transposed somewhere."""
    s = images() if op == "Conv" else tokens()
    shape = KERNEL if op == "Conv" else SQUARE
    words = [_codewords(s, shape, book, unsigned) for book in range(books)]
    value = words[0]
    for book, other in enumerate(words[1:], 1):
        value = s.op("Add", value, other, name=f"layer/Sum{book}")
    value = s.op("Reshape", value, s.constant("layer.weight.shape", np.array(shape)), name="layer/Reshape")
    moved = partial(s.op, "Transpose", name="layer/Transpose", perm=[1, 0])
    where = transpose if op == "MatMul" else ""
    value = moved(value) if where == "before" else value
    unit = s.constant("one.float16", np.float16(1)), s.constant("zero", np.int8(0))
    value = s.op("QuantizeLinear", value, *unit, name="layer/QuantizeWeight")
    value = moved(value) if where == "between" else value
    axis = 0 if where in ("", "after") else 1
    value = s.op("DequantizeLinear", value, *s.weight_pair(shape[0]), name="layer/DequantizeWeight", axis=axis)
    value = moved(value) if where == "after" else value
    x = s.qdq(s.sample, s.fixed())
    return s.model(s.conv(x, value) if op == "Conv" else s.op("MatMul", x, value, name="layer/MatMul"))


def _codewords(s: Sketch, shape: tuple[int, ...], book: int, unsigned: bool) -> ir.Value:
    """What the indices of one book stand for: [O, K/4, 4]."""
    layout, name = (shape[0], int(np.prod(shape[1:])) // 4), f"layer/Book{book}"
    unit = s.constant("one.float16", np.float16(1)), s.constant("zero", np.int8(0))
    words = s.constant(f"layer.weight.book{book}", s.random.integers(-60, 61, (256, 4)).astype(np.int8))
    words = s.op("DequantizeLinear", words, *unit, name=f"{name}/Words")
    if unsigned:
        held = s.constant(f"layer.weight.indices{book}", s.random.integers(0, 256, layout).astype(np.uint8))
        return s.op("Gather", words, s.cast(held, ir.DataType.INT32, f"{name}/Cast"), name=f"{name}/Gather", axis=0)
    held = s.constant(f"layer.weight.indices{book}", s.random.integers(-128, 128, layout).astype(np.int8))
    value = s.op("DequantizeLinear", held, *unit, name=f"{name}/Unpack")
    value = s.op("Add", value, s.constant("offset.float16", np.float16(128)), name=f"{name}/Add")
    return s.op("Gather", words, s.cast(value, ir.DataType.INT32, f"{name}/Cast"), name=f"{name}/Gather", axis=0)


def int4_together() -> onnx.ModelProto:
    """INT4 codes of two layers, unpacked as one: numbers, Add 0, Q(1), Split, each dequantized per channel."""
    s, count = tokens(), WIDTH * WIDTH
    unit = s.constant("one.float16", np.float16(1)), s.constant("zero", np.int8(0))
    value = s.op("DequantizeLinear", s.int4((2 * count,)), unit[0], name="weights/Unpack")
    value = s.op("Add", value, s.constant("zero.float16", np.float16(0)), name="weights/Add")
    value = s.op("QuantizeLinear", value, *unit, name="weights/Repack")
    return _together(s, value)


def planes_together(planes: int) -> onnx.ModelProto:
    """Codes of two layers as bit planes: int8 bytes, each a row of 8 numbers in a table; the planes' sum, Q(1), Split, each dequantized."""
    s, count = tokens(), WIDTH * WIDTH
    unit = s.constant("one.float16", np.float16(1)), s.constant("zero", np.int8(0))
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.int8)
    total: ir.Value | None = None
    for plane in range(planes):
        worth = -(2**plane) if plane == planes - 1 else 2**plane
        table = s.constant(f"table{plane}", (bits * worth).astype(np.int8))
        held = s.constant(f"plane{plane}", s.random.integers(-128, 128, 2 * count // 8).astype(np.int8))
        value = s.op("DequantizeLinear", held, *unit, name=f"weights/Plane{plane}/Unpack")
        value = s.op("Add", value, s.constant("offset.float16", np.float16(128)), name=f"weights/Plane{plane}/Add")
        value = s.cast(value, ir.DataType.INT32, f"weights/Plane{plane}/Cast")
        table = s.op("DequantizeLinear", table, *unit, name=f"weights/Plane{plane}/Table")
        value = s.op("Gather", table, value, name=f"weights/Plane{plane}/Gather", axis=0)
        total = value if total is None else s.op("Add", total, value, name=f"weights/Sum{plane}")
    assert total is not None
    total = s.op("Reshape", total, s.constant("flat", np.array([-1])), name="weights/Reshape")
    return _together(s, s.op("QuantizeLinear", total, *unit, name="weights/Repack"))


def matmul_two_levels() -> onnx.ModelProto:
    """INT4 codes with an integer for each block of 64, numbers, Add 0, Q(1), a scale for each output channel."""
    s = Sketch(TOKENS, 2 * WIDTH)
    unit = s.constant("one.float16", np.float16(1)), s.constant("zero", np.int8(0))
    factors = s.constant("layer.weight.factors", s.random.integers(1, 17, (2, WIDTH)).astype(np.float16))
    value = s.op("DequantizeLinear", s.int4((2 * WIDTH, WIDTH)), factors, name="layer/Unpack", axis=0, block_size=64)
    value = s.op("Add", value, s.constant("zero.float16", np.float16(0)), name="layer/Add")
    value = s.op("QuantizeLinear", value, *unit, name="layer/Repack")
    weight = s.op("DequantizeLinear", value, *s.weight_pair(WIDTH), name="layer/DequantizeWeight", axis=1)
    return s.model(s.op("MatMul", s.qdq(s.sample, s.fixed()), weight, name="layer/MatMul"))


def _together(s: Sketch, value: ir.Value) -> onnx.ModelProto:
    """Two layers with the flat INT8 codes of both."""
    count = WIDTH * WIDTH
    pieces = s.tape.op_multi_out("Split", [value, s.constant("sizes", np.array([count, count]))], {"axis": 0}, num_outputs=2)
    y = s.sample
    for name, piece in zip(("layer", "second"), pieces, strict=True):
        codes = s.op("Reshape", piece, s.constant("shape", np.array(SQUARE)), name=f"{name}/Reshape")
        weight = s.op("DequantizeLinear", codes, *s.weight_pair(WIDTH, name), name=f"{name}/DequantizeWeight", axis=1)
        y = s.op("MatMul", s.qdq(y, s.fixed(), name), weight, name=f"{name}/MatMul")
    return s.model(y)
