"""Rules about the file: operator versions, external data, and whether it is ONNX at all."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import onnx_ir as ir

from ...artifacts.reading import check_structure
from .fp4_rules import fp4_opset
from .fp8_rules import fp8_opset
from .rule import Hit
from .view import NIBBLE_CODES, View

INT4_OPSET = 21
ONNXRUNTIME_OPSET = 26  # the newest that ONNX Runtime 1.31 has released support for


def int4_opset(view: View) -> Iterator[Hit]:
    """INT4 came with opset 21: below it the graph is not ONNX, and ONNX Runtime refuses it, though TensorRT-RTX builds it.

    Built and opened: pattern ``matmul-int4-opset-20``.
    """
    if view.opset >= INT4_OPSET:
        return
    for node in view.nodes:
        if any(view.dtype(value) in NIBBLE_CODES for value in node.inputs if value is not None):
            yield Hit(node, f"it reads INT4, and the graph's opset is {view.opset}", {"opset": view.opset, "lowest": INT4_OPSET})


def new_opset(view: View) -> Iterator[Hit]:
    """ONNX Runtime 1.31 refuses opsets above 26 ("support for this is limited").

    Opened: pattern ``opset-27``. TensorRT-RTX 1.7 builds it.
    """
    if view.opset > ONNXRUNTIME_OPSET:
        values = {"opset": view.opset, "highest": ONNXRUNTIME_OPSET}
        yield Hit(None, f"its opset is {view.opset}, and ONNX Runtime 1.31 reads up to {ONNXRUNTIME_OPSET}", values)


def external_data(view: View) -> Iterator[Hit]:
    """Parsers open whatever file a graph names: one that is absolute or leaves the folder reads other people's files, or is missing there.

    ONNX's specification wants a relative path in the model's own folder; ``onnx.checker`` and ONNX Runtime refuse others.
    """
    for node, name, tensor in view.tensors():
        if isinstance(tensor, ir.ExternalTensor) and (problem := view.external_problem(tensor)):
            text = f"external data '{tensor.location}' of tensor '{name}' {problem}"
            yield Hit(node, text, {"location": str(tensor.location), "tensor": name}, name=name)


def invalid_onnx(view: View) -> Iterator[Hit]:
    """What ``onnx.checker`` refuses, parsers read each in its own way: TensorRT-RTX builds opset 10 with attributes of opset 13.

    Built and opened: pattern ``opset-10``. The reasons that have a rule of their own are left to it.
    """
    if any(next(rule(view), None) for rule in (int4_opset, fp8_opset, fp4_opset, external_data)):
        return
    try:
        check_structure(view.file)
    except onnx.checker.ValidationError as error:
        yield Hit(None, f"onnx.checker refuses it: {' '.join(str(error).split())[:400]}")
