"""A layer's weight in the graph: int8 or FP8 codes, or what is smaller in the forms from which TensorRT still makes the planned product.

FP8: DequantizeLinear(float8, per channel).
Beside INT8 activations: DequantizeLinear(int4, per channel), which no builder takes as it is; ``recast`` unpacks many of them at once.
Beside FP8 activations: DequantizeLinear(int4, scale 1) → Add 0 → QuantizeLinear(float8, scale 1) → DequantizeLinear(float8, per channel).
Either way the weight takes half a byte an element in the file and in the engine, and the product is the one of int8 storage: smaller, not
faster.

Codewords: indices int8, minus 128 → DequantizeLinear(fp16, scale 1) → Add 128 → Cast int32 → Gather of a book (int8 codewords →
DequantizeLinear); the sum of the books' → Reshape → QuantizeLinear(int8, scale 1) → [Transpose →] DequantizeLinear(int8, per channel).
Weights of 2 and 3 bits: bit planes, a byte for 8 weights each, looked up in the same way in tables that all layers share (``recast``).
uint8 indices that are cast would be folded to int32 ones, and in front of that QuantizeLinear the builder crashes at all but a Gather, an
Add or a Reshape of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import onnx_ir as ir
import torch

from ..formats import NumberFormat, of_bits
from ..formats.tables import BIAS, CODEBOOK_CODES, CODES, CODEWORDS, UINT8_OFFSET, WEIGHT_SCALE, WEIGHT_ZERO_POINT
from ..quantization.weights import CodebookWeight, QuantizedWeight
from .emitter import Emitter

Storage = Literal["int4", "int8", "fp8", "fp4", "codebook", "planes"]
_FLOAT16, _INT4, _INT8 = ir.DataType.FLOAT16, ir.DataType.INT4, ir.DataType.INT8


def storage_of(bits: int, *, int4: bool, products: str | None = None) -> Storage:
    """The container of a weight of ``bits`` bits whose products are computed in ``products``, where the graph may have int4."""
    fmt = of_bits(bits, products)
    if fmt.floating:
        return "fp4" if fmt.block else "fp8"
    if int4 and fmt.packed:
        return "int4"
    return "fp8" if products == "fp8" else "int8"


def code_type(fmt: NumberFormat) -> ir.DataType:
    """The type in which an engine multiplies codes of an activation's format: narrow integers travel in INT8."""
    return ir.DataType[fmt.onnx_type] if fmt.floating else _INT8


def zero(dtype: ir.DataType) -> tuple[str, np.ndarray]:
    """Name and value [] of the zero that says what type codes are of."""
    return ("dq_deploy.zero" if dtype == _INT8 else f"dq_deploy.zero.{dtype.name.lower()}"), np.array(0, dtype=dtype.numpy())


def stored(codes: np.ndarray, bits: int, *, int4: bool) -> np.ndarray:
    """Codes int8 [O, ...] in the type of their container."""
    return codes.astype((_INT4 if storage_of(bits, int4=int4) == "int4" else _INT8).numpy())


def dequantized_weight(emit: Emitter, layer: QuantizedWeight, name: str, *, beside: ir.Value, transpose: bool, int4: bool) -> ir.Value:
    """The weight Ŵ = s_w[o] · codes of a layer, [O, ...] or transposed to [C, O], as a value of the graph.

    ``beside``: the codes of the activation that it meets, whose type both are multiplied in.
    """
    if int4 and isinstance(layer, CodebookWeight):
        return _of_codewords(emit, layer, name, transpose=transpose)
    scale, axis = emit.constant(f"{name}.{WEIGHT_SCALE}", layer.stored.scale.numpy()), 1 if transpose else 0
    codes = layer.stored.codes.T if transpose else layer.stored.codes
    if beside.dtype is not None and beside.dtype != _INT8:
        held = _as_float8(emit, layer, codes, name, beside.dtype, int4=int4)
        return emit.op("DequantizeLinear", [held, scale], name="DequantizeWeight", axis=axis)
    held = emit.constant(f"{name}.{CODES}", stored(codes.numpy(), layer.bits, int4=int4))
    inputs = [held, scale] if held.dtype == _INT4 else [held, scale, _zeros(emit, layer, name)]
    return emit.op("DequantizeLinear", inputs, name="DequantizeWeight", axis=axis)


def _of_codewords(emit: Emitter, layer: CodebookWeight, name: str, *, transpose: bool) -> ir.Value:
    """The weight from indices and codewords, which stay small in an engine: [O, ...] or transposed to [C, O]."""
    assert layer.codes is not None
    books = layer.codewords.detach().numpy().astype(np.int8)
    indices = [emit.constant(f"{name}.{CODEBOOK_CODES}.{m}", indices_of(layer.codes[:, :, m].numpy())) for m in range(len(books))]
    pairs = [(held, emit.constant(f"{name}.{CODEWORDS}.{m}", book)) for m, (held, book) in enumerate(zip(indices, books, strict=True))]
    codes = looked_up(emit, pairs, emit.constant(f"{name}.{CODES}.shape", np.array(layer.shape, dtype=np.int64)))
    if transpose:
        codes = emit.op("Transpose", [codes], name="RepackWeight/Transpose", dtype=_INT8, perm=[1, 0])
    scale = emit.constant(f"{name}.{WEIGHT_SCALE}", layer.stored.scale.numpy())
    return emit.op("DequantizeLinear", [codes, scale, _zeros(emit, layer, name)], name="DequantizeWeight", axis=int(transpose))


def indices_of(bytes_: np.ndarray) -> np.ndarray:
    """Indices uint8 [...] as a graph has them: int8, minus 128, since uint8 ones would be stored as int32."""
    found: np.ndarray = (bytes_.astype(np.int16) - UINT8_OFFSET).astype(np.int8)
    return found


def looked_up(emit: Emitter, pairs: Sequence[tuple[ir.Value, ir.Value]], shape: ir.Value) -> ir.Value:
    """INT8 codes of a ``shape``: of each pair the entries int8 [256, d] that its indices int8 [...] name, summed."""
    half_one = emit.constant("dq_deploy.one.float16", np.array(1.0, dtype=np.float16))
    offset = emit.constant("dq_deploy.128.float16", np.array(UINT8_OFFSET, dtype=np.float16))
    nothing = emit.constant(*zero(_INT8))
    total: ir.Value | None = None
    for m, (indices, entries) in enumerate(pairs):
        x = emit.as_written("DequantizeLinear", [indices, half_one, nothing], f"UnpackIndices.{m}", _FLOAT16)
        x = emit.as_written("Add", [x, offset], f"UnpackIndices.{m}/Add", _FLOAT16)
        x = emit.as_written("Cast", [x], f"UnpackIndices.{m}/Cast", ir.DataType.INT32, to=ir.DataType.INT32.value)
        words = emit.as_written("DequantizeLinear", [entries, half_one, nothing], f"UnpackCodewords.{m}", _FLOAT16)
        words = emit.as_written("Gather", [words, x], f"Codewords.{m}", _FLOAT16, axis=0)
        total = words if total is None else emit.as_written("Add", [total, words], f"Codewords.{m}/Add", _FLOAT16)
    assert total is not None
    codes = emit.as_written("Reshape", [total, shape], "Codewords/Reshape", _FLOAT16)
    return emit.as_written("QuantizeLinear", [codes, half_one, nothing], "RepackWeight", _INT8)


def _zeros(emit: Emitter, layer: QuantizedWeight, name: str) -> ir.Value:
    """Zero-points of int8 codes. One for each layer: onnxruntime rewrites it with the weights (s8 → u8) and refuses to do so twice."""
    return emit.constant(f"{name}.{WEIGHT_ZERO_POINT}", np.zeros(len(layer.log_scale), dtype=np.int8))


def _as_float8(emit: Emitter, layer: QuantizedWeight, codes: torch.Tensor, name: str, dtype: ir.DataType, *, int4: bool) -> ir.Value:
    """Codes [...] as numbers of an 8-bit float: stored as such, or as int4, of which each is one of these numbers."""
    if not (int4 and layer.format.packed):
        return emit.constant(f"{name}.{CODES}", codes.float().numpy().astype(dtype.numpy()))
    packed = emit.constant(f"{name}.{CODES}", stored(codes.numpy(), layer.bits, int4=True))
    return repacked(emit, packed, dtype, by_way_of=ir.DataType.FLOAT)


def repacked(emit: Emitter, packed: ir.Value, dtype: ir.DataType, *, by_way_of: ir.DataType) -> ir.Value:
    """INT4 codes [...] as the same numbers in another type of codes, by way of a type of floats."""
    suffix = "" if by_way_of == ir.DataType.FLOAT else f".{by_way_of.name.lower()}"
    one = emit.constant(f"dq_deploy.one{suffix}", np.array(1.0, dtype=by_way_of.numpy()))
    floats = emit.as_written("DequantizeLinear", [packed, one], "Unpack", by_way_of)
    # With nothing between the two the builder takes the weight for INT4: it crashes on a MatMul, and refuses a Conv.
    floats = emit.as_written("Add", [floats, emit.constant(*zero(by_way_of))], "Unpack/Add", by_way_of)
    return emit.as_written("QuantizeLinear", [floats, one, emit.constant(*zero(dtype))], "Repack", dtype)


def bias(emit: Emitter, layer: QuantizedWeight, name: str, shape: tuple[int, ...] = (-1,)) -> ir.Value:
    """A layer's bias [O], in the shape in which it broadcasts over the output."""
    assert layer.bias is not None
    return emit.constant(f"{name}.{BIAS}", layer.bias.detach().numpy().reshape(shape))


def weight_sums(layer: QuantizedWeight) -> np.ndarray:
    """Σ Ŵ_o over everything but the output channel: s_w[o] · Σ codes, [O] fp32."""
    codes, scale = layer.stored
    sums: np.ndarray = (codes.flatten(1).double().sum(dim=1) * scale.double()).float().numpy()
    return sums
