"""Weights of up to 4 bits beside INT8 activations, unpacked for many layers at once.

    INT4 codes of many layers, one after the other → DequantizeLinear(fp16, scale 1) → Add 0 → QuantizeLinear(int8, scale 1) → Split →
    Reshape → DequantizeLinear(int8, per channel) of each layer

A layer that unpacks its own takes a kernel of its own on every run. Together they take one; the unpacked codes then lie in an engine's
memory from there to the last layer that reads them, so a part has ``_TOGETHER`` weights at the most. ``matmul-int4-together``
and ``matmul-int4-requantized`` in benchmarks/patterns/RESULTS.md have it with and without the Add. OpenVINO folds it all, and multiplies
integers. ONNX's Split takes no FP8 codes: beside those each layer unpacks its own.

Codes of 2 and 3 bits are cut into bit planes, in two's complement: bit b of 8 codes that follow each other is a byte, and stands for 8
numbers, 0 or 2^b (or −2^b, of the sign), that lie in a table of 256 rows which all layers share. What codewords have (``weights``) then
makes codes of them:

    a plane of many layers → [entry of its table]; the planes' sum → Reshape → QuantizeLinear(int8, scale 1) → Split → as above

They take 2/4 and 3/4 of INT4's bytes in the file and in an engine, at as many kernels (docs/decisions/bit-planes.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..formats import NumberFormat, in_planes
from ..formats.number import PLANE
from ..formats.tables import CODES, WEIGHT_ZERO_POINT
from .emitter import Emitter
from .weights import indices_of, looked_up, repacked

_TOGETHER = 8 << 20
_INT4, _INT8 = ir.DataType.INT4, ir.DataType.INT8


@dataclass(frozen=True)
class _Packed:
    """A layer's INT4 codes, of any shape, and the DequantizeLinear that gives its weight."""

    codes: ir.Value
    dequantize: ir.Node

    @property
    def layer(self) -> str:
        return str(self.codes.name).removesuffix(f".{CODES}")

    @property
    def array(self) -> np.ndarray:
        assert self.codes.const_value is not None
        return self.codes.const_value.numpy()


def unpack_together(graph: ir.Graph, formats: Mapping[str, NumberFormat]) -> set[str]:
    """Let layers with INT4 codes whose weights become INT8 ones share what unpacks them, in place.

    ``formats`` of the weights by layer. Returns the layers whose weights are bit planes now.
    """
    by_bits: dict[int, list[_Packed]] = {}
    for layer in _packed(graph):
        fmt = formats.get(layer.layer)
        by_bits.setdefault(fmt.bits if fmt is not None and in_planes(fmt, layer.array.size) else 0, []).append(layer)
    for bits, layers in by_bits.items():
        for number, part in enumerate(_parts(layers)):
            _share(graph, part, f"dq_deploy.{f'int{bits}_planes' if bits else 'int4_weights'}.{number}", bits)
    return {layer.layer for bits, layers in by_bits.items() if bits for layer in layers}


def _packed(graph: ir.Graph) -> Iterator[_Packed]:
    for node in graph:
        if node.op_type != "DequantizeLinear":
            continue
        codes, scale = node.inputs[:2]
        if codes is not None and codes.is_initializer() and codes.dtype is _INT4 and scale is not None and len(scale.shape or ()) == 1:
            yield _Packed(codes, node)


def _parts(layers: Sequence[_Packed]) -> Iterator[list[_Packed]]:
    part: list[_Packed] = []
    for layer in layers:
        if part and sum(one.array.size for one in part) + layer.array.size > _TOGETHER:
            yield part
            part = []
        part.append(layer)
    if part:
        yield part


def _share(graph: ir.Graph, part: Sequence[_Packed], prefix: str, planes: int) -> None:
    """``planes``: how many hold the codes; 0: INT4."""
    emit = Emitter(graph, prefix, before=part[0].dequantize)
    arrays = [layer.array.astype(np.int8) for layer in part]
    flat = np.concatenate([array.reshape(-1) for array in arrays])
    if planes:
        value = _of_planes(emit, flat, planes)
    else:
        held = emit.constant(f"{prefix}.codes", flat.astype(_INT4.numpy()))
        value = repacked(emit, held, _INT8, by_way_of=ir.DataType.FLOAT16)
    pieces = _split(emit, value, [array.size for array in arrays])
    for layer, array, piece in zip(part, arrays, pieces, strict=True):
        shape = emit.constant(f"{layer.layer}.{CODES}.shape", np.array(array.shape, dtype=np.int64))
        codes = emit.op("Reshape", [piece, shape], name=f"{layer.layer}/Reshape", dtype=_INT8)
        scale = layer.dequantize.inputs[1]
        assert scale is not None
        assert scale.shape is not None
        zeros = emit.constant(f"{layer.layer}.{WEIGHT_ZERO_POINT}", np.zeros(int(scale.shape[0]), dtype=np.int8))  # type: ignore[arg-type]
        layer.dequantize.replace_input_with(0, codes)
        if len(layer.dequantize.inputs) < 3:
            layer.dequantize.resize_inputs(3)
        layer.dequantize.replace_input_with(2, zeros)


def _of_planes(emit: Emitter, codes: np.ndarray, planes: int) -> ir.Value:
    """The flat INT8 ``codes`` [n] again, from so many bit planes."""
    rows = codes.reshape(-1, PLANE)
    pairs = []
    for bit in range(planes):
        bytes_ = np.packbits((rows >> bit) & 1, axis=1, bitorder="little")[:, 0]
        indices = emit.constant(f"{emit.prefix}.plane.{bit}", indices_of(bytes_))
        pairs.append((indices, emit.constant(f"dq_deploy.plane.{planes}.{bit}", plane_table(bit, planes))))
    return looked_up(emit, pairs, emit.sizes(-1))


def plane_table(bit: int, planes: int) -> np.ndarray:
    """What each byte of a plane stands for, int8 [256, 8]; the last plane is that of the sign."""
    worth = -(1 << bit) if bit == planes - 1 else 1 << bit
    found: np.ndarray = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little").astype(np.int8) * np.int8(worth)
    return found


def _split(emit: Emitter, value: ir.Value, sizes: Sequence[int]) -> Sequence[ir.Value]:
    """The pieces of a flat value."""
    if len(sizes) == 1:
        return [value]
    counts = emit.constant(f"{emit.prefix}.sizes", np.array(sizes, dtype=np.int64))
    outputs = [ir.Value(name=f"{emit.prefix}/Split:{i}", type=ir.TensorType(_INT8)) for i in range(len(sizes))]
    node = ir.Node("", "Split", [value, counts], [ir.AttrInt64("axis", 0)], outputs=outputs, name=f"{emit.prefix}/Split")
    assert emit.before is not None
    emit.graph.insert_before(emit.before, node)
    return outputs
