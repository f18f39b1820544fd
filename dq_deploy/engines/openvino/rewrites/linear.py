"""A linear layer as the exporter writes it: a product with INT8 weights, and steps after it that are the same for all rows or pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .graph import Array, array_of, constant, inputs, kind, only_chain, opset, same, shape_of, unwrapped

_STEPS = ("Subtract", "Multiply", "Add")


@dataclass(frozen=True)
class Step:
    """``− z · Σ W``, ``· s`` or ``+ bias``: the operation, and a timestep's row [N, 1, ...], constants of the output channels, or both."""

    node: Any
    row: Any
    channels: Array | None

    @property
    def kind(self) -> str:
        """Subtract, Multiply or Add."""
        name: str = self.node.get_type_name()
        return name

    def like(self, other: Step) -> bool:
        """Whether it differs from ``other`` in its constants alone."""
        rows = self.row is None if other.row is None else self.row is not None and _same_table_row(self.row, other.row)
        return self.kind == other.kind and rows and (self.channels is None) == (other.channels is None)


@dataclass(frozen=True)
class Linear:
    """A MatMul of constant weights: ``codes`` int8 [in, out], ``scale`` [out]; and the steps that follow it."""

    product: Any
    codes: Array
    scale: Array
    steps: tuple[Step, ...]

    @property
    def end(self) -> Any:
        """The value after the last step."""
        return (self.steps[-1].node if self.steps else self.product).output(0)


def linear_of(node: Any) -> Linear | None:
    """A MatMul with what we know of its weights and of what follows; None if it is another kind of product."""
    if node.get_type_name() != "MatMul" or any(node.get_attributes()[name] for name in ("transpose_a", "transpose_b")):
        return None
    weight = _codes(node.input_value(1))
    if weight is None:
        return None
    codes, scale = weight
    return Linear(node, codes, scale, tuple(_steps(node.output(0), codes.shape[1])))


def joined(linears: Sequence[Linear]) -> Linear:
    """One layer with the outputs of all, side by side, and the steps that they have in common. Its nodes are the first one's."""
    first = linears[0]
    steps: list[Step] = []
    for alike in zip(*(linear.steps for linear in linears), strict=False):
        if not all(step.like(alike[0]) for step in alike):
            break
        channels = None if alike[0].channels is None else np.concatenate([step.channels for step in alike if step.channels is not None])
        steps.append(Step(alike[0].node, alike[0].row, channels))
    codes = np.concatenate([linear.codes for linear in linears], axis=1)
    return Linear(first.product, codes, np.concatenate([linear.scale for linear in linears]), tuple(steps))


def is_table_row(value: Any, rank: int) -> bool:
    """Whether every sample of a value of this rank meets one number: [N, 1, ...] of that rank, or a single one."""
    shape = shape_of(value)
    return set(shape[1:]) <= {1} and (len(shape) == rank or set(shape) <= {1})


def weight_of(linear: Linear, arranged: Callable[[Array], Array]) -> Any:
    """The weights as a value, ``arranged`` from [in, out] and, for the scales, from [1, out]."""
    dtype = _dtype(linear.product)
    codes = opset().convert(constant(arranged(linear.codes), np.int8), linear.product.get_element_type().get_type_name())
    return opset().multiply(codes, constant(arranged(linear.scale[None]), dtype)).output(0)


def followed(value: Any, linear: Linear, row: Callable[[Any], Any], channels: Callable[[Array], Array]) -> Any:
    """``value`` after the layer's steps, ``row`` and ``channels`` ([out]) giving their operands the rank of ``value``."""
    ops = opset()
    for step in linear.steps:
        operands = [] if step.row is None else [row(step.row)]
        operands += [] if step.channels is None else [constant(channels(step.channels), _dtype(linear.product))]
        operand = operands[0] if len(operands) == 1 else ops.multiply(*operands)
        value = getattr(ops, step.kind.lower())(value, operand).output(0)
    return value


def _dtype(node: Any) -> Any:
    return np.float16 if node.get_element_type().get_type_name() == "f16" else np.float32


def _codes(weight: Any) -> tuple[Array, Array] | None:
    """INT8 codes [in, out] and scales [out] of (codes − 0) · scale."""
    if kind(weight) != "Multiply":
        return None
    unpacked, scale = inputs(weight.get_node())
    if kind(unpacked) == "Subtract":
        unpacked, zero_point = inputs(unpacked.get_node())
        zeros = array_of(zero_point)
        if zeros is None or zeros.any():
            return None
    source = unpacked.get_node().input_value(0) if kind(unpacked) == "Convert" else unpacked
    codes, scales = array_of(source), array_of(scale)
    if codes is None or codes.dtype != np.int8 or codes.ndim != 2 or scales is None or scales.size not in (1, codes.shape[1]):
        return None
    return codes, np.broadcast_to(scales.ravel(), codes.shape[1:])


def _steps(value: Any, width: int) -> Iterator[Step]:
    for node in only_chain(value, _STEPS):
        others = [operand for operand in inputs(node) if not same(operand, value)]
        found = _factors(others[0], width, len(shape_of(value))) if len(others) == 1 and same(node.input_value(0), value) else None
        if found is None:
            return
        yield Step(node, *found)
        value = node.output(0)


def _factors(value: Any, width: int, rank: int) -> tuple[Any, Array | None] | None:
    """A row and constants whose product the value is, one of which may be missing; None if it is anything else."""
    constants = _channels(value, width)
    if constants is not None:
        return None, constants
    if is_table_row(value, rank):
        return value, None
    if kind(value) != "Multiply":
        return None
    one, other = inputs(value.get_node())
    row, constants = (one, _channels(other, width)) if is_table_row(one, rank) else (other, _channels(one, width))
    return None if constants is None or not is_table_row(row, rank) else (row, constants)


def _channels(value: Any, width: int) -> Array | None:
    """Constants [width] of the last axis, or one number for all of it."""
    array = array_of(value)
    if array is None or array.size not in (1, width) or array.shape[-1:] not in ((), (array.size,)):
        return None
    return np.broadcast_to(array.ravel(), (width,))


def _same_table_row(one: Any, other: Any) -> bool:
    return same(unwrapped(one), unwrapped(other)) and shape_of(one) == shape_of(other)
