"""Integer products of an ``onnxruntime`` graph on CPUs whose fast instruction for them loses what exceeds 16 bits.

ONNX Runtime multiplies uint8 by int8 with vpmaddubsw on x86 CPUs that have AVX2 or AVX512 but no VNNI; its 16-bit sums saturate, and the
result of an 8-bit layer is wrong, by up to all of it (the shipped UNet at W8A8: 24 dB instead of 43). uint8 by uint8 is exact everywhere,
and on a CPU with VNNI takes three times as long. So a graph has int8 on the right, which is made uint8 when it is loaded where that is not
exact.
"""

from __future__ import annotations

import functools

import numpy as np
import onnx_ir as ir

from ..formats.tables import UINT8_OFFSET
from .emitter import Emitter
from .fp4_emulation import emulate_fp4
from .session import session_as_written

_INT8, _INT32, _UINT8 = ir.DataType.INT8, ir.DataType.INT32, ir.DataType.UINT8
_PROBE = """<ir_version: 10, opset_import: ["": 21]>
probe (uint8[1, 64] x) => (int32[1, 32] y) { y = MatMulInteger(x, w) }"""


@functools.cache
def saturates() -> bool:
    """Whether ONNX Runtime's product of uint8 and int8 is wrong on this CPU, found by running one. Raises EnvironmentProblem without it."""
    import onnx

    model = onnx.parser.parse_model(_PROBE)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.full((64, 32), 127, np.int8), "w"))
    (result,) = session_as_written(model.SerializeToString()).run(None, {"x": np.full((1, 64), 255, np.uint8)})
    return bool((result != 64 * 255 * 127).any())


def for_this_cpu(model: ir.Model) -> bool:
    """Make a graph one that ONNX Runtime computes exactly on this CPU, in place: the same numbers. Says whether there was any to change."""
    emulated = emulate_fp4(model)
    return (saturates() and make_exact(model)) or emulated


def make_exact(model: ir.Model) -> bool:
    """Give every integer product a uint8 right side, in place: the same numbers on every CPU. Says whether there was any to change."""
    found = [node for node in model.graph if node.op_type == "MatMulInteger" and _type(node.inputs[1]) == _INT8]
    for node in found:
        emit = Emitter(model.graph, str(node.name), node, fp32=False)
        right, *zero_point = node.inputs[1::2]
        assert right is not None
        node.replace_input_with(1, _raised(emit, right, "right"))
        if zero_point and zero_point[0] is not None:
            node.replace_input_with(3, _raised(emit, zero_point[0], "zero_point"))
        else:
            node.resize_inputs(4)
            node.replace_input_with(3, emit.constant("dq_deploy.offset_uint8", np.array(UINT8_OFFSET, dtype=np.uint8)))
    return bool(found)


def _type(value: ir.Value | None) -> ir.DataType | None:
    """Type of codes: declared, or that of the zero-point of the QuantizeLinear that they come from."""
    if value is None or value.dtype is not None:
        return value.dtype if value is not None else None
    if value.const_value is not None:
        return value.const_value.dtype
    node = value.producer()
    if node is None or not node.inputs:
        return None
    return _type(node.inputs[2] if node.op_type == "QuantizeLinear" else node.inputs[0])


def _raised(emit: Emitter, value: ir.Value, what: str) -> ir.Value:
    """``value`` + 128 as uint8. ONNX Runtime folds these nodes where the value is a weight."""
    wide = emit.op("Cast", [value], name=f"{what}/Cast_int32", dtype=_INT32, to=_INT32.value)
    offset = emit.constant("dq_deploy.offset_int32", np.array(UINT8_OFFSET, dtype=np.int32))
    raised = emit.op("Add", [wide, offset], name=f"{what}/Add_int32", dtype=_INT32)
    return emit.op("Cast", [raised], name=f"{what}/Cast_uint8", dtype=_UINT8, to=_UINT8.value)
