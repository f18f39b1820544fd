"""A quantizer whose scales are computed: Abs → ReduceMax → Max(least) → · α_t / largest code, a scale [N, ..., 1] for each token.

With zero-points it is the range's half, (max(x, 0) − min(x, 0)) / 2, in the place of the largest magnitude; where that lies says the rest.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ...formats.tables import RELATIVE_SCALE
from ...quantization.quantizers import TokenQuantizer
from ...quantization.quantizers.token import LEAST_LARGEST
from ..emitter import number
from .kinds import QuantizerPlace, scale, zero_point


@scale.register
def token_scale(quantizer: TokenQuantizer, at: QuantizerPlace) -> ir.Value:
    """The scales of the tokens of ``at.x``. Clipping ratios that are all alike are a constant."""
    assert at.x.shape is not None
    name = f"{at.name}.{RELATIVE_SCALE}"
    table = (quantizer.table() / quantizer.format.largest).numpy()
    relative = number(name, table[0]) if (table == table[0]).all() else at.target.row(name, table)
    if at.target.per_sample:
        relative = at.emit.unsqueeze(relative, len(at.x.shape), "relative_scale")
    largest = _largest(at) if quantizer.symmetric else _half_range(at)[1]
    return _of_tokens(at, at.emit.op("Mul", [largest, relative], name="scale"))


@zero_point.register
def token_zero_point(quantizer: TokenQuantizer, at: QuantizerPlace) -> ir.Value:
    """The zero-points of the tokens of ``at.x``, as floats whatever the place's type is; of a symmetric quantizer 0."""
    if quantizer.symmetric:
        symmetric: ir.Value = zero_point.dispatch(object)(quantizer, at)
        return symmetric
    most = at.emit.constant(f"dq_deploy.minus_{quantizer.format.largest:g}", np.array(-quantizer.format.largest, dtype=np.float32))
    centre, half = _half_range(at)
    place = at.emit.op("Mul", [at.emit.op("Div", [centre, half]), most], name="place")
    return _of_tokens(at, at.emit.op("Round", [place], name="zero_point"))


def _largest(at: QuantizerPlace) -> ir.Value:
    """max|x| of each token."""
    return _at_least(at, at.emit.op("ReduceMax", [at.emit.op("Abs", [at.x]), _last(at)], keepdims=1))


def _half_range(at: QuantizerPlace) -> tuple[ir.Value, ir.Value]:
    """Centre and half of each token's range that holds 0 too; written once."""
    key = f"half-range of {at.name}"
    if key not in at.x.meta:
        emit = at.emit
        none, half = (emit.constant(f"dq_deploy.{name}", np.array(value, np.float32)) for name, value in (("none", 0), ("half", 0.5)))
        high = emit.op("Max", [emit.op("ReduceMax", [at.x, _last(at)], keepdims=1), none], name="high")
        low = emit.op("Min", [emit.op("ReduceMin", [at.x, _last(at)], keepdims=1), none], name="low")
        centre = emit.op("Mul", [emit.op("Add", [high, low], name="ends"), half], name="centre")
        at.x.meta[key] = centre, _at_least(at, emit.op("Mul", [emit.op("Sub", [high, low], name="range"), half], name="half_range"))
    found: tuple[ir.Value, ir.Value] = at.x.meta[key]
    return found


def _last(at: QuantizerPlace) -> ir.Value:
    return at.emit.constant("dq_deploy.axis_last", np.array([-1], dtype=np.int64))


def _at_least(at: QuantizerPlace, value: ir.Value) -> ir.Value:
    """A divisor is never 0."""
    return at.emit.op("Max", [value, at.emit.constant("dq_deploy.least_largest", np.array(LEAST_LARGEST, dtype=np.float32))])


def _of_tokens(at: QuantizerPlace, value: ir.Value) -> ir.Value:
    """Say the shape of what there is one of for each token."""
    assert at.x.shape is not None
    value.shape = ir.Shape([*list(at.x.shape)[:-1], 1])
    return value
