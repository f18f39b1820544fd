"""GroupNormalization from two moments, which keep the layout of the convolutions around it.

OpenVINO normalizes [N, G, C/G · H · W] in memory of that order. Its INT8 convolutions write channels last, so each normalization costs two
reorderings of a whole fp32 tensor and a padding that is slow in that order: a third of a UNet. Mean and mean square of a channel can be
taken in either order, and what is left is element by element, which one kernel does together with SiLU and the next quantizer.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .graph import channel_parts, constant, inputs, kind, of_type, opset, replace, reshaped, shape_of


def group_norms_as_moments(model: Any) -> None:
    """See the module. The second moment is that of the centred values: E[x²] − E[x]² would cancel where a mean is large."""
    for node in of_type(model, "GroupNormalization"):
        replace(node.output(0), _normalized(node))


def _normalized(node: Any) -> Any:
    ops = opset()
    source, weight, bias = inputs(node)
    picture = _picture(source)
    sample, weight, bias = _fp32(picture), _fp32(weight), _fp32(bias)
    groups, epsilon = node.get_attributes()["num_groups"], node.get_attributes()["epsilon"]
    batch, channels, *spatial = shape_of(sample)
    shape = _Shapes(batch, channels, groups, len(spatial))
    parts = [_fp32(part) for part in channel_parts(picture)] or [sample]  # each has moments of its own
    sizes = [shape_of(part)[1] for part in parts]
    axes = constant(range(2, 2 + len(spatial)), np.int64)

    mean = shape.over_groups(_joined([ops.reduce_mean(part, axes, True) for part in parts]))
    centred = [ops.subtract(part, m).output(0) for part, m in zip(parts, _cut(shape.per_channel(mean), sizes), strict=True)]
    norm = _joined([ops.reduce_l2(part, axes, True) for part in centred])
    variance = ops.multiply(shape.over_groups(ops.multiply(norm, norm)), constant(1 / np.prod(spatial)))
    deviation = ops.sqrt(ops.add(variance, constant(epsilon)))
    factor = ops.multiply(shape.per_channel(ops.divide(constant(1), deviation)), shape.as_channels(weight))
    pieces = zip(centred, _cut(factor.output(0), sizes), _cut(shape.as_channels(bias), sizes), strict=True)
    result = _joined([ops.add(ops.multiply(part, f), b) for part, f, b in pieces])
    if picture is not source:
        result = reshaped(result, shape_of(source))
    dtype = node.get_element_type().get_type_name()
    return result if dtype == "f32" else ops.convert(result, dtype).output(0)


def _picture(sample: Any) -> Any:
    """What is normalized, with its pixels not in a row yet if it was a picture: the groups are the same."""
    before = sample.get_node().input_value(0) if kind(sample) == "Reshape" else sample
    return before if len(shape_of(before)) > 2 and shape_of(before)[:2] == shape_of(sample)[:2] else sample


class _Shapes:
    """Between [N, C, 1, ...] and the means of groups [N, G, 1]."""

    def __init__(self, batch: int, channels: int, groups: int, spatial: int) -> None:
        self.size = channels // groups
        self._grouped = constant([batch, groups, self.size], np.int64)
        self._channels = constant([batch, channels] + [1] * spatial, np.int64)
        self._one = constant([1, channels] + [1] * spatial, np.int64)

    def over_groups(self, value: Any) -> Any:
        grouped = opset().reshape(value, self._grouped, False)
        return opset().reduce_mean(grouped, constant([2], np.int64), True).output(0)

    def per_channel(self, value: Any) -> Any:
        repeated = opset().multiply(value, constant(np.ones((1, 1, self.size))))  # part of a fused kernel, unlike Broadcast
        return opset().reshape(repeated, self._channels, False).output(0)

    def as_channels(self, parameter: Any) -> Any:
        return opset().reshape(parameter, self._one, False).output(0)


def _joined(nodes: list[Any]) -> Any:
    return (nodes[0] if len(nodes) == 1 else opset().concat(nodes, 1)).output(0)


def _cut(value: Any, sizes: list[int]) -> list[Any]:
    if len(sizes) == 1:
        return [value]
    found: list[Any] = opset().variadic_split(value, constant(1, np.int64), constant(sizes, np.int64)).outputs()
    return found


def _fp32(value: Any) -> Any:
    """In an fp16 graph: OpenVINO computes it in fp32 on a CPU whatever the type, and 1/HW and ε are exact enough only there."""
    return value if value.get_element_type().get_type_name() == "f32" else opset().convert(value, "f32").output(0)
