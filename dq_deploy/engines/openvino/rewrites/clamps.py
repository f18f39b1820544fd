"""A clip between two numbers as one operator: OpenVINO reads ONNX's as a maximum and a minimum, and what follows looks for one."""

from __future__ import annotations

from typing import Any

from .graph import array_of, inputs, kind, of_type, opset, readers, replace


def clips_as_clamps(model: Any) -> None:
    """See the module."""
    for minimum in of_type(model, "Minimum"):
        upper = _bound(minimum)
        if upper is None or kind(upper[0]) != "Maximum" or len(readers(upper[0])) != 1:
            continue
        lower = _bound(upper[0].get_node())
        if lower is not None and minimum.get_element_type().get_type_name() == "f32" and lower[1] <= upper[1]:
            replace(minimum.output(0), opset().clamp(lower[0], lower[1], upper[1]).output(0))


def _bound(node: Any) -> tuple[Any, float] | None:
    """What is compared with a number, and that number."""
    arrays = [array_of(value) for value in inputs(node)]
    found = [(inputs(node)[1 - index], array) for index, array in enumerate(arrays) if array is not None and array.size == 1]
    return (found[0][0], float(found[0][1].item())) if len(found) == 1 else None
