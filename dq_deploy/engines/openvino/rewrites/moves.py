"""Codes are moved instead of what they are made of: a quantizer with one scale for a sample comes before a transposition.

Queries, keys and values are laid out by heads first and quantized then, as the exporter writes them. The other way round the quantizer
joins the kernel of what comes before, and what is moved has a quarter of the bytes.
"""

from __future__ import annotations

from typing import Any

from .graph import QUANTIZER, array_of, inputs, of_type, only_chain, opset, read_from, readers, shape_of
from .linear import is_table_row


def codes_before_moves(model: Any) -> None:
    """See the module. Only what goes straight into a product of two activations."""
    for transpose in reversed(of_type(model, "Transpose")):
        order, rank = array_of(transpose.input_value(1)), len(shape_of(transpose.output(0)))
        chain = list(only_chain(transpose.output(0), QUANTIZER))
        operands = [operand for node in chain for operand in inputs(node)[1:]]
        kinds = [node.get_type_name() for node in chain]
        if order is None or order[0] != 0 or "FakeQuantize" not in kinds or kinds[-1] != "Multiply" or "Round" in kinds:
            continue
        if all(is_table_row(operand, rank) for operand in operands) and {one.get_type_name() for one in readers(chain[-1].output(0))} <= {
            "MatMul"
        }:
            _after(transpose, chain)


def _after(transpose: Any, chain: list[Any]) -> None:
    targets = list(chain[-1].output(0).get_target_inputs())
    read_from(chain, transpose.input_value(0))
    moved = opset().transpose(chain[-1].output(0), transpose.input_value(1)).output(0)
    for target in targets:
        target.replace_source_output(moved)
