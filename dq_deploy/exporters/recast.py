"""INT4 weights beside INT8 activations, unpacked for many layers at once.

    INT4 codes of many layers, one after the other → DequantizeLinear(fp16, scale 1) → Add 0 → QuantizeLinear(int8, scale 1) → Split →
    Reshape → DequantizeLinear(int8, per channel) of each layer

A layer that unpacks its own takes a kernel of its own on every run. Together they take one; the unpacked codes then lie in an engine's
memory from there to the last layer that reads them, so a part has ``_TOGETHER`` weights at the most. ``matmul-int4-together``
and ``matmul-int4-requantized`` in benchmarks/patterns/RESULTS.md have it with and without the Add. OpenVINO folds it all, and multiplies
integers. ONNX's Split takes no FP8 codes: beside those each layer unpacks its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ..formats.tables import CODES, WEIGHT_ZERO_POINT
from .emitter import Emitter
from .weights import repacked

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


def unpack_together(graph: ir.Graph) -> None:
    """Let layers with INT4 codes whose weights become INT8 ones share what unpacks them, in place."""
    for number, part in enumerate(_parts(list(_packed(graph)))):
        _share(graph, part, f"dq_deploy.int4_weights.{number}")


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


def _share(graph: ir.Graph, part: Sequence[_Packed], prefix: str) -> None:
    emit = Emitter(graph, prefix, before=part[0].dequantize)
    arrays = [layer.array.astype(np.int8) for layer in part]
    flat = np.concatenate([array.reshape(-1) for array in arrays])
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
