"""Looking at and changing OpenVINO's graph: a value is an ``Output`` of a node."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
QUANTIZER = ("Multiply", "Round", "Add", "Clamp", "FakeQuantize", "Convert", "Subtract")
"""What our exporter writes a quantizer of."""
SHAPING = ("Reshape", "Squeeze", "Unsqueeze")


def opset() -> Any:
    """OpenVINO's operators. Imported late: OpenVINO is optional."""
    from openvino import opset13

    return opset13


def of_type(model: Any, kind: str) -> list[Any]:
    """Nodes of a type in the order of computation."""
    return [node for node in model.get_ordered_ops() if node.get_type_name() == kind]


def kind(value: Any) -> str:
    """Type of the node that makes a value."""
    name: str = value.get_node().get_type_name()
    return name


def shape_of(value: Any) -> list[int]:
    """Sizes of a value."""
    return [size.get_length() for size in value.get_partial_shape()]


def channel_parts(value: Any) -> list[Any]:
    """What a value was concatenated from along its channels (axis 1); empty if it was not."""
    joined = kind(value) == "Concat" and value.get_node().get_attributes()["axis"] in (1, 1 - len(shape_of(value)))
    return inputs(value.get_node()) if joined else []


def readers(value: Any) -> list[Any]:
    """Nodes that read a value, one for each input that does."""
    return [target.get_node() for target in value.get_target_inputs()]


def inputs(node: Any) -> list[Any]:
    """Values that a node reads."""
    return [node.input_value(index) for index in range(node.get_input_size())]


def constant(values: Any, dtype: Any = np.float32) -> Any:
    """A constant of these values."""
    return opset().constant(np.asarray(values, dtype=dtype)).output(0)


def array_of(value: Any) -> Array | None:
    """A value of any shape that depends on constants alone, as the unpacking of weights does; None for anything else."""
    node = value.get_node()
    if kind(value) == "Constant":
        return np.array(node.data) if node.get_element_type().get_type_name() in _PLAIN else None
    compute = _FOLDED.get(kind(value))
    found = [array_of(source) for source in inputs(node)] if compute else [None]
    if compute is None or any(array is None for array in found):
        return None
    return np.asarray(compute(*found)).reshape(shape_of(value))


_PLAIN = ("f32", "f16", "i8", "u8", "i32", "i64")
_FOLDED: dict[str, Any] = {
    "Convert": lambda codes: codes.astype(np.float32),
    "Subtract": np.subtract,
    "Multiply": np.multiply,
    "Reshape": lambda values, _: values,
    "Unsqueeze": lambda values, _: values,
    "Broadcast": np.broadcast_to,
}


def unwrapped(value: Any) -> Any:
    """A value behind what only gives it another shape or float type."""
    while kind(value) in ("Unsqueeze", "Reshape", "Convert"):
        value = value.get_node().input_value(0)
    return value


def same(one: Any, other: Any) -> bool:
    """Whether two handles mean one value."""
    return bool(one == other) or (one.get_index() == other.get_index() and one.get_node().get_name() == other.get_node().get_name())


def reshaped(value: Any, shape: Any) -> Any:
    """A value in other sizes."""
    return opset().reshape(value, constant(shape, np.int64), False).output(0)


def transposed(value: Any, order: Any) -> Any:
    """A value with its axes in another order."""
    return opset().transpose(value, constant(order, np.int64)).output(0)


def hand_over(value: Any, by: Any) -> None:
    """Let everything that reads ``value`` read ``by``."""
    for target in list(value.get_target_inputs()):
        target.replace_source_output(by)


def replace(value: Any, by: Any) -> None:
    """Let everything that reads ``value`` read ``by``, which takes over the node's name: layer reports look for it."""
    by.get_node().set_friendly_name(value.get_node().get_friendly_name())
    hand_over(value, by)


def read_from(chain: Sequence[Any], source: Any) -> None:
    """Let the first of nodes that follow each other read ``source``."""
    chain[0].input(0).replace_source_output(source)
    for node in chain:
        node.validate_and_infer_types()


def only_chain(value: Any, along: tuple[str, ...]) -> Iterator[Any]:
    """The nodes behind a value as long as each is the only reader of the one before it and of a type in ``along``."""
    while len(following := readers(value)) == 1 and following[0].get_type_name() in along:
        yield following[0]
        value = following[0].output(0)
