"""Codes of activations from 0 on instead of from −128 on, and their zero-points moved with them.

The exporter's codes are signed, since TensorRT takes no others. A CPU's dot products take unsigned times signed ones, so OpenVINO's INT8
kernels move signed activations up and take what that adds off again in every product: up to a quarter of a convolution's time. Here the
zero-point moves instead, and ``z · Σ W``, which is taken off anyway, does the rest. Attention's probabilities have the lowest code as
their zero-point; it becomes 0, and nothing is left to take off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .graph import Array, array_of, constant, inputs, kind, of_type, only_chain, opset, readers, replace, same, shape_of, unwrapped

_LOWEST, _HIGHEST, _CODES = -128.0, 127.0, 256
_UNPACKING = ("Convert", "Subtract", "Multiply")


@dataclass(frozen=True)
class _Corrected:
    """A product of codes and the subtraction of z · Σ W behind it; ``sums`` is None where W is another activation."""

    subtraction: Any
    sums: Array | None


@dataclass(frozen=True)
class _Quantizer:
    """round(u) + z → [clip] → FakeQuantize → int8 codes → products. ``lowest`` is the first code that there may be."""

    add: Any
    clip: Any
    codes: Any
    products: tuple[_Corrected, ...]
    lowest: float


def unsigned_codes(model: Any) -> None:
    """See the module. A zero-point moves only if everything that reads it is understood."""
    rows: dict[str, list[_Quantizer]] = {}
    for quantizer in filter(None, map(_quantizer, of_type(model, "FakeQuantize"))):
        if array_of(quantizer.add.input_value(1)) is None:
            rows.setdefault(unwrapped(quantizer.add.input_value(1)).get_node().get_name(), []).append(quantizer)
        else:
            _move_constant(quantizer)
            _count_from_zero(quantizer)
    for alike in rows.values():
        if _move_table_row(alike):
            for quantizer in alike:
                _count_from_zero(quantizer)


def _quantizes_to_int8(node: Any) -> bool:
    """Whether a FakeQuantize is QuantizeLinear with scale 1: it rounds to the signed codes and clips."""
    ranges = [array_of(value) for value in inputs(node)[1:]]
    expected = (_LOWEST, _HIGHEST, _LOWEST, _HIGHEST)
    exact = all(found is not None and found.size == 1 and found.item() == end for found, end in zip(ranges, expected, strict=True))
    return exact and node.get_attributes()["levels"] == _CODES


def _quantizer(fake: Any) -> _Quantizer | None:
    """The quantizer around a FakeQuantize; None for another, and where a product or what is taken off behind it is not understood."""
    before = fake.input_value(0)
    clip = before.get_node() if kind(before) == "Clamp" else None
    shifted = clip.input_value(0) if clip else before
    chain = list(only_chain(fake.output(0), _UNPACKING))
    if not _quantizes_to_int8(fake) or kind(shifted) != "Add" or not chain or chain[0].get_element_type().get_type_name() != "i8":
        return None
    add, lowest = shifted.get_node(), clip.get_attributes()["min"] if clip else _LOWEST
    alone = all(len(readers(node.output(0))) == 1 for node in (add, clip) if node)
    products = [_corrected(node, chain[-1].output(0), add.input_value(1), lowest) for node in readers(chain[-1].output(0))]
    if not alone or kind(add.input_value(0)) != "Round" or not products or not all(products):
        return None
    return _Quantizer(add, clip, chain[0], tuple(product for product in products if product), lowest)


def _corrected(product: Any, codes: Any, zero_point: Any, lowest: float) -> _Corrected | None:
    """A product and what follows it; None if it is another one, or if what is taken off is not z · Σ W."""
    after = readers(product.output(0))
    if product.get_type_name() not in ("Convolution", "MatMul") or len(after) != 1 or after[0].get_type_name() != "Subtract":
        return None
    if not same(product.input_value(0), codes) or not same(after[0].input_value(0), product.output(0)):
        return None
    if product.get_type_name() == "MatMul" and any(product.get_attributes()[name] for name in ("transpose_a", "transpose_b")):
        return None
    weight, fixed, taken = array_of(product.input_value(1)), array_of(zero_point), after[0].input_value(1)
    if fixed is not None and fixed.size != 1:
        return None
    if weight is None:
        vanishes = fixed is not None and fixed.item() == lowest and _is_column_sum(taken, product.input_value(1), lowest)
        return _Corrected(after[0], None) if vanishes else None
    sums = weight.astype(np.float64).sum(axis=tuple(range(1, weight.ndim)) if product.get_type_name() == "Convolution" else 0)
    factor, found = (1.0, _per_zero_point(taken, zero_point)) if fixed is None else (float(fixed.item()), array_of(taken))
    slack = 1e-4 * float(np.abs(weight).max()) * max(1.0, abs(factor))
    understood = found is not None and found.size == sums.size and np.allclose(found.ravel(), factor * sums, rtol=1e-4, atol=slack)
    return _Corrected(after[0], sums.reshape(found.shape)) if found is not None and understood else None


def _is_column_sum(taken: Any, other: Any, zero_point: float) -> bool:
    """Whether this is z · Σ over the rows of ``other``."""
    operands = inputs(taken.get_node()) if kind(taken) == "Multiply" else []
    sums = [value for value in operands if kind(value) == "ReduceSum"]
    factors = [array_of(value) for value in operands if kind(value) != "ReduceSum"]
    if len(sums) != 1 or factors[0] is None or factors[0].size != 1 or factors[0].item() != zero_point:
        return False
    axes = array_of(sums[0].get_node().input_value(1))
    return same(sums[0].get_node().input_value(0), other) and axes is not None and axes.tolist() in ([-2], [len(shape_of(other)) - 2])


def _per_zero_point(taken: Any, zero_point: Any) -> Array | None:
    """Σ W where ``taken`` is z · Σ W of this row's z."""
    operands = inputs(taken.get_node()) if kind(taken) == "Multiply" else []
    others = [value for value in operands if not same(unwrapped(value), unwrapped(zero_point))]
    return array_of(others[0]) if len(others) == 1 and len(operands) == 2 else None


def _move_constant(quantizer: _Quantizer) -> None:
    add, shift = quantizer.add, -quantizer.lowest
    zero_point = array_of(add.input_value(1))
    assert zero_point is not None
    add.input(1).replace_source_output(constant(zero_point + shift))
    for product in quantizer.products:
        if product.sums is None:
            replace(product.subtraction.output(0), product.subtraction.input_value(0))
        else:
            taken = product.subtraction.input(1)
            sums = array_of(taken.get_source_output())
            assert sums is not None
            taken.replace_source_output(constant(sums + shift * product.sums))


def _move_table_row(alike: Sequence[_Quantizer]) -> bool:
    """Move a table of zero-points, of which all of them read a row; False, and nothing moved, where something else reads it too."""
    row = unwrapped(alike[0].add.input_value(1))
    if kind(row) != "Gather" or kind(row.get_node().input_value(0)) != "Constant" or len({one.lowest for one in alike}) > 1:
        return False
    known = {one.add.get_name() for one in alike}
    known |= {product.subtraction.input_value(1).get_node().get_name() for one in alike for product in one.products}
    if {node.get_name() for node in _behind_shapes(row)} != known:
        return False
    table = row.get_node().input_value(0).get_node().data
    row.get_node().input(0).replace_source_output(constant(table - np.float32(alike[0].lowest), table.dtype))
    return True


def _behind_shapes(value: Any) -> list[Any]:
    """What reads a value, through nodes that only give it another shape."""
    found: list[Any] = []
    for node in readers(value):
        found += _behind_shapes(node.output(0)) if node.get_type_name() in ("Unsqueeze", "Reshape", "Convert") else [node]
    return found


def _count_from_zero(quantizer: _Quantizer) -> None:
    """The clip's, FakeQuantize's and the codes' own range, for a zero-point that has moved."""
    ops, fake = opset(), quantizer.codes.input_value(0).get_node()
    if quantizer.clip:
        low, high = (quantizer.clip.get_attributes()[end] - quantizer.lowest for end in ("min", "max"))
        replace(quantizer.clip.output(0), ops.clamp(quantizer.clip.input_value(0), low, high).output(0))
    first, last = constant(0), constant(_CODES - 1)
    unsigned = ops.fake_quantize(fake.input_value(0), first, last, first, last, _CODES)
    replace(fake.output(0), unsigned.output(0))
    replace(quantizer.codes.output(0), ops.convert(unsigned, "u8").output(0))
