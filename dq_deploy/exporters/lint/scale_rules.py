"""Rules about scales, zero-points and codes, one Q/DQ node at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir

from .rule import Hit
from .view import Array, View

# Smallest normal number by type; bfloat16 has fp32's exponents.
_SMALLEST_NORMAL = {
    ir.DataType.FLOAT: 2.0**-126,
    ir.DataType.BFLOAT16: 2.0**-126,
    ir.DataType.FLOAT16: 2.0**-14,
    ir.DataType.DOUBLE: 2.0**-1022,
}
_TENSORRT_CODES = ("INT8", "INT4", "FLOAT8E4M3FN", "FLOAT4E2M1")
_SHOWN = 4


def zero_scale(view: View) -> Iterator[Hit]:
    """TensorRT's parser refuses a Q/DQ scale of 0 ("Scale coefficients must all be positive"); in a table, x / 0 has no code.

    Built: patterns ``scale-zero`` and ``table-zero``. The second is accepted by every engine, and its result is NaN.
    """
    yield from _scales(view, "0", lambda scale, _: scale == 0)


def negative_scale(view: View) -> Iterator[Hit]:
    """TensorRT's parser refuses it ("Scale coefficients must all be positive"); ONNX Runtime computes with it.

    Built: pattern ``scale-negative``.
    """
    yield from _scales(view, "negative", lambda scale, _: scale < 0)


def non_finite_scale(view: View) -> Iterator[Hit]:
    """TensorRT's parser refuses NaN and takes infinity, with which every code is 0 and every result NaN.

    Built: patterns ``scale-nan`` and ``scale-infinite``.
    """
    yield from _scales(view, "not finite", lambda scale, _: ~np.isfinite(scale))


def subnormal_scale(view: View) -> Iterator[Hit]:
    """Every engine takes it. It has lost digits, 1/s overflows, and hardware that flushes subnormals to 0 divides by 0.

    What counts is the type in which the scale arrives: 1e-6 is normal in fp32 and subnormal once cast to fp16. Built: patterns
    ``scale-subnormal`` and ``scale-subnormal-fp16``; that flushing happens is in the CUDA programming guide, and was not measured.
    """
    yield from _scales(view, "subnormal", lambda scale, tiny: (scale != 0) & (np.abs(scale) < tiny))


def _timesteps(view: View, table_rows: int) -> Array | None:
    """Timesteps of a table's rows: calibrated ones, and between each two as many as there are rows for; None if that does not fit."""
    gaps = len(view.timesteps) - 1
    if gaps < 1 or table_rows <= gaps or (table_rows - 1) % gaps:
        return None
    return np.interp(np.linspace(0, gaps, table_rows), np.arange(gaps + 1), view.timesteps)


def _scales(view: View, what: str, bad: Callable[[Array, float], Array]) -> Iterator[Hit]:
    constants = ((node, view.array(node.inputs[1]), view.dtype(node.inputs[1]), "scale") for node in view.quantizers)
    tables = ((node, table, dtype, "table of scales") for node, table, dtype in view.scale_tables())
    for node, array, dtype, kind in (*constants, *tables):
        if array is None:
            continue
        scale = array.astype(np.float64).reshape(-1)
        where = np.flatnonzero(bad(scale, _SMALLEST_NORMAL.get(dtype or ir.DataType.FLOAT, 0.0)))
        if not len(where):
            continue
        steps = _timesteps(view, scale.size) if kind == "table of scales" else None
        found = (f"[{i}]{'' if steps is None else f' (timestep {steps[i]:g})'} = {scale[i]:g}" for i in where[:_SHOWN])
        shown = ", ".join(found) + (" …" if len(where) > _SHOWN else "")
        values = {
            "count": len(where),
            "of": scale.size,
            "indices": where[:_SHOWN].tolist(),
            "scales": [repr(v) for v in scale[where[:_SHOWN]].tolist()],
        }
        yield Hit(
            node, f"{len(where)} of {scale.size} entries of its {kind} ({dtype.name if dtype else 'float'}) are {what}: {shown}", values
        )


def zero_point(view: View) -> Iterator[Hit]:
    """TensorRT's parser refuses a zero-point other than 0 ("Non-zero zero point is not supported"), and one that is computed.

    Built: patterns ``zero-point``, ``zero-point-uint8`` and ``scale-per-sample``.
    """
    for node in view.quantizers:
        value = node.inputs[2] if len(node.inputs) > 2 else None
        if not view.is_constant(value):
            yield Hit(node, "its zero-point is computed when the graph runs")
        elif (array := view.array(value)) is not None and np.any(array.astype(np.int64)):
            points = array.astype(np.int64).reshape(-1)
            where = np.flatnonzero(points)[:_SHOWN]
            yield Hit(node, f"its zero-point is {', '.join(str(points[i]) for i in where)}", {"zero_points": points[where].tolist()})


def code_type(view: View) -> Iterator[Hit]:
    """TensorRT has no unsigned and no 16-bit codes.

    TensorRT-RTX refuses uint8 weights, uint4 and int16 while parsing, but takes uint8 activations with zero-point 0 and builds them as
    INT8: codes from 128 up saturate at 127. A QuantizeLinear without a zero-point is uint8 too. Built: patterns ``codes-uint8``,
    ``codes-uint8-by-default``, ``codes-uint8-weight``, ``codes-uint4-weight`` and ``codes-int16``.
    """
    for node in view.quantizers:
        codes = view.codes(node)
        if codes is None or codes.name in _TENSORRT_CODES:
            continue
        name = codes.name.lower()
        default = node.op_type == "QuantizeLinear" and len(node.inputs) < 3 and "output_dtype" not in node.attributes
        yield Hit(node, f"its codes are {name}{', the default without a zero-point' if default else ''}", {"type": name})
