"""Weights that a graph unpacks and quantizes as it runs: codewords, and INT4 codes in front of a convolution.

An engine that keeps them small needs them so. OpenVINO would unpack them once, when it compiles, but sees INT8 codes only in a constant: a
product of codes behind a Transpose, or of a Gather, stays in float.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .graph import constant, hand_over, inputs, readers

_MOVES = ("Transpose", "Reshape", "Split", "VariadicSplit")


def quantized_constants(openvino: Any, model: Any) -> None:
    """Make INT8 codes that depend on constants alone a constant, in place."""
    constant_nodes: set[str] = set()
    codes = []
    for node in model.get_ordered_ops():
        sources = [source.get_node() for source in inputs(node)]
        if node.get_type_name() == "Parameter" or not constant_nodes.issuperset(source.get_name() for source in sources):
            continue
        constant_nodes.add(node.get_name())
        if _quantizes(openvino, node, sources):
            codes += _moved(node.output(0))
    if not codes:
        return
    unpacking = openvino.Model([openvino.opset13.result(value) for value in codes], [], "weights")
    found = openvino.Core().compile_model(unpacking, "CPU", {"INFERENCE_NUM_THREADS": 1})([])
    for value, output in zip(codes, found.values(), strict=True):
        made = constant(output, np.int8)
        made.get_node().set_friendly_name(value.get_node().get_friendly_name())
        hand_over(value, made)
    model.validate_nodes_and_infer_types()


def _moved(value: Any) -> list[Any]:
    """What is made of a value by moves alone, as far as nothing else reads it: itself, or what is behind a Transpose, Reshape or Split."""
    found, above = [], [value]
    while above:
        value = above.pop()
        users = readers(value)
        if len(users) == 1 and users[0].get_type_name() in _MOVES:
            above += users[0].outputs()
        else:
            found.append(value)
    return found


def _quantizes(openvino: Any, node: Any, sources: Sequence[Any]) -> bool:
    """Whether a node gives INT8 codes: a Convert behind a FakeQuantize."""
    to_int8: bool = node.get_type_name() == "Convert" and node.get_element_type() == openvino.Type.i8
    return to_int8 and sources[0].get_type_name() == "FakeQuantize"
