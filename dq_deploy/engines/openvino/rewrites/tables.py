"""The rows of all scale tables at once.

The exporter gathers each table for itself and shapes the row at each reader (docs/decisions/scale-tables.md says why). OpenVINO runs each
of these as a kernel. Here the tables that readers want at one rank lie side by side, with 1/s and the products of two scales as tables
beside s.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from .graph import Array, array_of, constant, hand_over, inputs, kind, of_type, opset, readers, reshaped, same, shape_of


def rows_at_once(model: Any) -> None:
    """See the module."""
    gathers = [node for node in of_type(model, "Gather") if _is_table_row(node)]
    for row in _distinct([node.input_value(1) for node in gathers]):
        shaped = [found for node in gathers if same(node.input_value(1), row) for found in _shaped(node.output(0), _table(node))]
        for rank in sorted({len(shape_of(value)) for value, _ in shaped}):
            _gather_together(row, rank, [(value, table) for value, table in shaped if len(shape_of(value)) == rank])


def _table(gather: Any) -> Array:
    table = array_of(gather.input_value(0))
    assert table is not None
    return table


def _is_table_row(gather: Any) -> bool:
    """Whether this selects rows [N] of a table [T] of floats."""
    source = gather.input_value(0)
    table = kind(source) == "Constant" and source.get_element_type().get_type_name() == "f32" and len(shape_of(source)) == 1
    return table and len(shape_of(gather.input_value(1))) == 1 and kind(gather.input_value(1)) != "Constant"


def _distinct(values: list[Any]) -> list[Any]:
    found: list[Any] = []
    for value in values:
        if not any(same(value, other) for other in found):
            found.append(value)
    return found


def _shaped(row: Any, table: Array) -> Iterator[tuple[Any, Array]]:
    """The values that are a row in its readers' shape [N, 1, ...], through 1/s and s · s'; and the table that each is a row of."""
    for reader in readers(row):
        operands = inputs(reader)
        if reader.get_type_name() == "Unsqueeze":
            yield reader.output(0), table
        elif reader.get_type_name() == "Divide" and same(operands[1], row) and _is_one(operands[0]):
            yield from _shaped(reader.output(0), (np.float32(1) / table).astype(np.float32))
        elif reader.get_type_name() == "Multiply" and (factor := _beside(row, operands)) is not None:
            yield from _shaped(reader.output(0), table * factor)


def _beside(row: Any, operands: list[Any]) -> Array | None:
    """What a row is multiplied by, where that is a number, or the same row of another table."""
    others = [value for value in operands if not same(value, row)]
    if len(others) != 1:
        return None
    number, gather = array_of(others[0]), row.get_node()
    if number is not None:
        return number.astype(np.float32) if number.size == 1 and number.ndim == 0 else None
    alike = kind(others[0]) == "Gather" and _is_table_row(others[0].get_node()) and gather.get_type_name() == "Gather"
    return _table(others[0].get_node()) if alike and same(others[0].get_node().input_value(1), gather.input_value(1)) else None


def _is_one(value: Any) -> bool:
    found = array_of(value)
    return found is not None and found.size == 1 and found.item() == 1


def _gather_together(row: Any, rank: int, shaped: list[tuple[Any, Array]]) -> None:
    tables = list({table.tobytes(): table for _, table in shaped}.values())
    if len(tables) < 2:
        return
    ops, batch = opset(), shape_of(row)[0]
    rows = ops.gather(constant(np.stack(tables, axis=1)), row, constant(0, np.int64))
    rows = reshaped(rows, [batch, len(tables)] + [1] * (rank - 2))
    columns = dict(zip([table.tobytes() for table in tables], ops.split(rows, constant(1, np.int64), len(tables)).outputs(), strict=True))
    for value, table in shaped:
        hand_over(value, columns[table.tobytes()])
