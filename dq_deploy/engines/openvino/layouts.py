"""Maps of features go in and out as the kernels have them: [N, H, W, C].

OpenVINO's convolutions keep channels last. Where a graph takes or gives [N, C, H, W], a reference kernel moves the values, some 6 ns for
each: for a part of a cut network (``step_cache``) as long as the products of a block. Callers keep [N, C, H, W]: what they get is a view.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..running.runner import Array
from .rewrites.graph import constant, opset, shape_of

_CHANNELS_LAST = "[N,H,W,C]"
_LEAST_CHANNELS = 8
"""Samples and latents have fewer, and are small."""
_HELD = "channels-last#"


def channels_last(model: Any) -> Any:
    """A model of known shapes that takes and gives fp32 [N, H, W, C] where it took or gave [N, C, H, W] of several channels."""
    from openvino import Layout, preprocess

    inputs, outputs = ([index for index, port in enumerate(ports) if _is_map(port)] for ports in (model.inputs, model.outputs))
    if not inputs and not outputs:
        return model
    process = preprocess.PrePostProcessor(model)
    for end in (*map(process.input, inputs), *map(process.output, outputs)):
        end.model().set_layout(Layout("NCHW"))
        end.tensor().set_layout(Layout("NHWC"))
    model = process.build()
    for index in inputs:
        for target in model.inputs[index].get_target_inputs():
            transposed = target.get_node().output(0)
            _hold_layout(transposed, transposed.get_target_inputs())
    for index in outputs:
        transpose = model.outputs[index].get_node().input_value(0).get_node()
        _hold_layout(transpose.input_value(0), [transpose.input(0)])
    model.validate_nodes_and_infer_types()
    return model


def only_holds(name: str) -> bool:
    """Whether a kernel of this name is no product of the network, but keeps a map's channels last."""
    return name.startswith(_HELD)


def as_declared(port: Any, array: Array) -> Array:
    """A compiled model's port's memory [N, H, W, C], where ``channels_last`` made it so, as a view [N, C, H, W]; any other as it is."""
    from openvino import layout_helpers

    last = array.ndim == 4 and str(layout_helpers.get_layout(port)) == _CHANNELS_LAST
    return array.transpose(0, 3, 1, 2) if last else array


def _is_map(port: Any) -> bool:
    shape = port.get_shape()
    return len(shape) == 4 and shape[1] >= _LEAST_CHANNELS and shape[2] * shape[3] > 1 and port.get_element_type().get_type_name() == "f32"


def _hold_layout(value: Any, read_by: Iterable[Any]) -> None:
    """Let inputs of nodes read [N, C, H, W] by way of a convolution by one: its kernel keeps channels last, as a sum there would not."""
    ones = constant(np.ones((shape_of(value)[1], 1, 1, 1, 1)))
    held = opset().group_convolution(value, ones, [1, 1], [0, 0], [0, 0], [1, 1])
    held.set_friendly_name(_HELD + value.get_node().get_friendly_name())
    for reader in read_by:
        reader.replace_source_output(held.output(0))
