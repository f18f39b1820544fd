"""A quantizer whose scales are computed: Abs → ReduceMax → Max(least) → · α_t / largest code, a scale [N, ..., 1] for each token."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ...formats.tables import RELATIVE_SCALE
from ...quantization.quantizers import TokenQuantizer
from ...quantization.quantizers.token import LEAST_LARGEST
from ..emitter import number
from .kinds import QuantizerPlace, scale


@scale.register
def token_scale(quantizer: TokenQuantizer, at: QuantizerPlace) -> ir.Value:
    """The scales of the tokens of ``at.x``. Clipping ratios that are all alike are a constant."""
    assert at.x.shape is not None
    name = f"{at.name}.{RELATIVE_SCALE}"
    table = (quantizer.table() / quantizer.format.largest).numpy()
    relative = number(name, table[0]) if (table == table[0]).all() else at.target.row(name, table)
    if at.target.per_sample:
        relative = at.emit.unsqueeze(relative, len(at.x.shape), "relative_scale")
    last = at.emit.constant("dq_deploy.axis_last", np.array([-1], dtype=np.int64))
    largest = at.emit.op("ReduceMax", [at.emit.op("Abs", [at.x]), last], keepdims=1)
    largest = at.emit.op("Max", [largest, at.emit.constant("dq_deploy.least_largest", np.array(LEAST_LARGEST, dtype=np.float32))])
    found = at.emit.op("Mul", [largest, relative], name="scale")
    found.shape = ir.Shape([*list(at.x.shape)[:-1], 1])
    return found
