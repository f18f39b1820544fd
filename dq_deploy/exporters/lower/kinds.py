"""What is registered for each kind of quantizer and layer, and what such a function is given."""

from __future__ import annotations

from dataclasses import dataclass
from functools import singledispatch
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from ...errors import ArtifactError
from ...formats.tables import ZERO_POINT
from ...quantization.quantizers import ActivationQuantizer
from ..emitter import Emitter, number
from ..scales import as_codes

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Operand:
    """A quantized activation [N, ...] of the graph: (codes − zero_point − token_shift) · scale · token_scale.

    ``value`` is what products read, the codes as floats between Q/DQ pairs and else the codes. ``scale`` and ``zero_point`` are [N],
    constants [], or shaped to broadcast over the activation; without a zero-point it is 0. ``padded``: a convolution's padding is in it.
    ``token_scale`` and ``token_shift`` are what a target keeps apart whose scales and zero-points are single numbers; or None.
    """

    name: str
    value: ir.Value
    codes: ir.Value
    scale: ir.Value
    zero_point: ir.Value | None
    padded: bool = False
    token_scale: ir.Value | None = None
    token_shift: ir.Value | None = None


class TargetWriter(Protocol):
    """What a target decides for every kind.

    ``int4``: weights of up to 4 bits are stored as INT4. ``folds``: its engine computes what is constant once, when it loads the graph, but
    a DequantizeLinear on every run. ``pads_first``: a convolution's padding must become the zero-point, so it precedes the quantizer.
    ``per_sample``: each sample of a batch selects its own row of a table.
    """

    int4: bool
    folds: bool
    pads_first: bool
    per_sample: bool

    def product(self, layer: Any, at: Place) -> ir.Value:
        """Emit a layer and give its output: ``qdq_product`` or ``integer_product``."""

    def row(self, name: str, table: Array, frames: int = 1) -> ir.Value:
        """What the timestep selects of a table [T, ...]: rows [N·frames, ...] or one [...]; a constant where all rows are the same."""

    def quantize(self, emit: Emitter, x: ir.Value, quantizer: ActivationQuantizer, name: str, pads: list[int], *, right: bool) -> Operand:
        """Emit a quantizer of ``x``. ``right``: products read the operand on their right side alone."""


@dataclass(frozen=True)
class QuantizerPlace:
    """Where a quantizer is written: its name, the activation ``x`` [N, ...] and the zero-points' type.

    ``x`` is divided by the dilation already where scales are computed from it.
    """

    target: TargetWriter
    emit: Emitter
    name: str
    x: ir.Value
    zero_point_type: ir.DataType


@dataclass(frozen=True)
class Place:
    """Where a layer is written: before its placeholder ``node``. ``operands`` are its quantized inputs; none where they stay float."""

    target: TargetWriter
    node: ir.Node
    name: str
    operands: tuple[Operand, ...] = ()

    def emitter(self, suffix: str = "", *, fp32: bool = True) -> Emitter:
        """Emits nodes that are named after the layer."""
        assert self.node.graph is not None
        return Emitter(self.node.graph, f"{self.name}{suffix}", self.node, fp32=fp32)

    @property
    def x(self) -> ir.Value:
        """The first input, as the network has it."""
        value = self.node.inputs[0]
        assert value is not None
        return value

    @property
    def rank(self) -> int:
        """Number of the output's dimensions."""
        return len(self.node.outputs[0].shape or ())


@singledispatch
def scale(quantizer: Any, at: QuantizerPlace) -> ir.Value:  # noqa: ARG001
    """Emit a quantizer's scale, fp32: [N·frames], a constant [], or shaped to broadcast over ``at.x``."""
    raise _unknown(quantizer, "scale")


@singledispatch
def zero_point(quantizer: Any, at: QuantizerPlace) -> ir.Value:
    """Emit a quantizer's zero-point in the place's type, shaped as the scale is; 0 of a symmetric quantizer that has no function here."""
    if not quantizer.symmetric:
        raise _unknown(quantizer, "zero_point")
    return number(f"{at.name}.{ZERO_POINT}", as_codes(0, at.zero_point_type))


@singledispatch
def qdq_product(layer: Any, at: Place) -> ir.Value:  # noqa: ARG001
    """Emit a layer as a float operator behind Q/DQ pairs, which an engine makes an integer one, and give its output."""
    raise _unknown(layer, "qdq_product")


@singledispatch
def integer_product(layer: Any, at: Place) -> ir.Value:  # noqa: ARG001
    """Emit a layer as an operator on integers and give its output."""
    raise _unknown(layer, "integer_product")


def _unknown(module: Any, function: str) -> ArtifactError:
    kind = type(module).__name__
    hint = f"register one: dq_deploy.exporters.lower.{function}.register({kind}, …)"
    return ArtifactError(f"the exporter has no {function} for {kind}", hint)
