"""FP4 graphs on a CPU, which has no engine for them: TensorRT's dynamic quantization in standard operators, and for onnx's evaluator.

max|x| of a block / (6 g) → Cast to E4M3 and back, at least 2^-9 → scales s; x / (g · s) → the nearest of FP4's numbers → codes, as floats.
Codes of weights become E4M3, which holds every number of FP4.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnx.reference.op_run import OpRun

from ..formats import FP4, FP8
from ..formats.fp4 import FP4_DOMAIN, FP4_OPERATOR
from ..quantization.blocks import LEAST_SCALE
from .emitter import Emitter

_FLOAT, _FP4, _FP8 = ir.DataType.FLOAT, ir.DataType.FLOAT4E2M1, ir.DataType.FLOAT8E4M3FN
Array = np.ndarray[Any, Any]


def emulate_fp4(model: ir.Model) -> bool:
    """Write FP4 codes in what ONNX Runtime's CPU kernels take, in place: the same numbers. Says whether there was any to change.

    Codes of activations keep the names of their values, and are floats.
    """
    found = [node for node in model.graph if (node.domain, node.op_type) == (FP4_DOMAIN, FP4_OPERATOR)]
    for node in found:
        _quantize(model.graph, node)
    for node in list(model.graph):
        codes = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        if codes is not None and codes.is_initializer() and codes.dtype == _FP4:
            node.replace_input_with(0, _as_float8(model.graph, codes))
    model.opset_imports.pop(FP4_DOMAIN, None)
    return bool(found)


def _quantize(graph: ir.Graph, node: ir.Node) -> None:
    """One dynamic quantization, and the two DequantizeLinear nodes that read it."""
    emit, (x, g), (codes, scales) = Emitter(graph, str(node.name), node), node.inputs, node.outputs
    assert x is not None
    assert g is not None
    half, one, two, four, six, least = (_number(emit, value) for value in (0.5, 1, 2, 4, FP4.largest, LEAST_SCALE))
    axis = emit.constant("dq_deploy.axis_last", np.array([-1], dtype=np.int64))
    shape = emit.op("Shape", [x], dtype=ir.DataType.INT64)
    flat = emit.op("Reshape", [x, emit.constant("dq_deploy.blocks", np.array([-1, FP4.block], dtype=np.int64))])
    largest = emit.op("ReduceMax", [emit.op("Abs", [flat]), axis], keepdims=1)
    scale = emit.op("Div", [largest, emit.op("Mul", [six, g], name="reach")], name="scale")
    scale = emit.op("Cast", [scale], name="to_fp8", dtype=_FP8, to=_FP8.value)  # which saturates
    scale = emit.op("Max", [emit.op("Cast", [scale], name="from_fp8", to=_FLOAT.value), least])
    step = emit.op("Mul", [scale, g], name="step")
    u = emit.op("Mul", [flat, emit.op("Div", [one, step], name="inverse")], name="in_codes")
    u = emit.op("Clip", [u, emit.op("Neg", [six]), six])
    beyond = [emit.op("Where", [emit.op("Greater", [emit.op("Abs", [u], name=f"abs{i}"), end], name=f"beyond{i}", dtype=ir.DataType.BOOL),
                                two, one], name=f"octave{i}") for i, end in enumerate((two, four))]  # fmt: skip
    gap = emit.op("Mul", [half, emit.op("Mul", beyond, name="octaves")], name="gap")
    rounded = emit.op("Mul", [emit.op("Round", [emit.op("Div", [u, gap], name="in_gaps")]), gap], name="rounded")
    made = emit.op("Reshape", [rounded, shape], name="codes")
    value = emit.op("Reshape", [emit.op("Mul", [rounded, step], name="values"), shape], name="dequantized")
    for user, _ in list(scales.uses()):
        for reader, _ in list(user.outputs[0].uses()):
            ir.convenience.replace_all_uses_with(reader.outputs[0], value, replace_graph_outputs=True)
            graph.remove(reader, safe=True)
        graph.remove(user, safe=True)
    name, codes.name = codes.name, f"{codes.name}:fp4"
    made.name = name
    ir.convenience.replace_all_uses_with(codes, made, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _number(emit: Emitter, value: float) -> ir.Value:
    return emit.constant(f"dq_deploy.number.{value:g}", np.array(value, dtype=np.float32))


def _as_float8(graph: ir.Graph, codes: ir.Value) -> ir.Value:
    assert codes.const_value is not None
    array = codes.const_value.numpy().astype(np.float32).astype(_FP8.numpy())
    return Emitter(graph, "").constant(f"{codes.name}.float8", array)


class Fp4DynamicQuantize(OpRun):
    """TensorRT's dynamic quantization for onnx's reference evaluator: ``ReferenceEvaluator(model, new_ops=[Fp4DynamicQuantize])``."""

    op_domain = FP4_DOMAIN

    def _run(self, x: Array, g: Array, *, axis: int | None = None, block_size: int | None = None,
             scale_type: int | None = None) -> tuple[Array, Array]:  # fmt: skip
        """Codes and block scales of x [..., C]."""
        if axis not in (-1, x.ndim - 1) or block_size != FP4.block or scale_type != _FP8.value:
            raise ValueError(
                f"blocks of {FP4.block} along the last axis with scales in E4M3 are known, not {axis}, {block_size}, {scale_type}"
            )
        blocks = x.astype(np.float32).reshape(*x.shape[:-1], -1, FP4.block)
        scale = np.minimum(np.abs(blocks).max(axis=-1) / (np.float32(FP4.largest) * g), FP8.largest).astype(_FP8.numpy())
        scale = np.maximum(scale.astype(np.float32), np.float32(LEAST_SCALE))
        codes = blocks * (np.float32(1) / (scale * g))[..., None]
        codes = np.clip(codes, FP4.lowest, FP4.largest).astype(_FP4.numpy())
        return codes.reshape(x.shape), scale.astype(_FP8.numpy())


Fp4DynamicQuantize.__name__ = FP4_OPERATOR  # by which the evaluator finds it
