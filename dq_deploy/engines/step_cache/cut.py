"""Where a graph is cut: behind its first block, and in front of what follows the last.

A cut is judged by the graph and not by the names of its nodes: everything that depends on the skipped products reaches the output through
one value, so the rest computes the same from that value, whoever gives it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from ...errors import UsageError
from .blocks import Candidate, candidates
from .flow import Flow

_PASSING = ("Cast", "Identity", "Reshape", "Transpose", "Slice", "Squeeze", "Unsqueeze", "Flatten", "Mul", "Div")
"""What leads from a sum to the next one; a product or a quotient only with a constant."""

_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


@dataclass(frozen=True)
class Cut:
    """The values to cut at: what enters the first block, what it gives, and what the skipped part gives to the rest of the graph.

    ``residual``: what the skipped part adds to ``first`` is kept; else what it gives is, as it is, which has no equal in the head.
    ``where`` names the first block, ``kept`` the block behind the skipped part, where there is one.
    """

    entry: ir.Value
    first: ir.Value
    last: ir.Value
    residual: bool
    where: str
    kept: str | None


def find_cut(flow: Flow) -> Cut:
    """The first cut that a graph has. Raises UsageError, saying why, for a graph without one."""
    if any(attribute.type in _GRAPHS for node in flow.nodes for attribute in node.attributes.values()):
        raise _uncut("its graph has control flow")
    found = candidates(flow)
    if not found:
        raise _uncut("its products are named after no chain of blocks, neither transformer_blocks.0 and on nor down_blocks and up_blocks")
    problems = []
    for candidate in found:
        cut = _cut(flow, candidate)
        if isinstance(cut, Cut):
            return cut
        problems.append(cut)
    raise _uncut("; ".join(dict.fromkeys(problems)))


def _uncut(why: str) -> UsageError:
    return UsageError(f"the network cannot be cut behind its first block: {why}", "sample without --cache")


def _cut(flow: Flow, candidate: Candidate) -> Cut | str:
    """The cut behind a candidate, or why there is none."""
    below = flow.downstream(nodes=candidate.skipped)
    ends = list(_ends(flow, candidate, below))
    if not ends:
        return f"{candidate.name} is no residual block: nothing that it gives is a sum with what it takes"
    meeting = list(flow.post_dominators(candidate.skipped))
    entry, first = ends[-1]
    if candidate.kept is not None:
        if not meeting:
            return f"what lies between {candidate.name} and {candidate.kept} reaches the output by more than one value"
        return Cut(entry, first, meeting[0], residual=False, where=candidate.name, kept=candidate.kept)
    for entry, first in reversed(ends):
        for last in meeting:
            if _shape(first) is not None and _shape(last) == _shape(first) and last.dtype == first.dtype:
                return Cut(entry, first, last, residual=True, where=candidate.name, kept=None)
    shape = ", ".join(map(str, _shape(first) or ["unknown"]))
    return f"what follows the blocks takes no single value of the shape that {candidate.name} gives, [{shape}]"


def _ends(flow: Flow, candidate: Candidate, below: frozenset[ir.Node]) -> Iterator[tuple[ir.Value, ir.Value]]:
    """(what enters the block, the last sum with it), of each stream that runs through the block and came from the sample."""
    inside = flow.downstream(nodes=candidate.first)
    found: dict[ir.Value, ir.Value] = {}
    for node in flow.nodes:
        if node.op_type == "Add" and node in inside and node not in below and (entry := _entry(flow, node.outputs[0], inside)) is not None:
            found[entry] = node.outputs[0]
    yield from found.items()


def _entry(flow: Flow, value: ir.Value, inside: frozenset[ir.Node]) -> ir.Value | None:
    """What a value was before the block added to it; None where it is no such sum, or did not come from the sample."""
    sums = 0
    while (node := value.producer()) is not None and node in inside:
        if node.op_type == "Add":
            before = _summand(flow, node)
            sums += before is not None
        else:
            before = _passed(flow, node)
        if before is None:
            return None
        value = before
    return value if sums and (value.producer() in flow.from_sample or value is flow.graph.inputs[0]) else None


def _summand(flow: Flow, node: ir.Node) -> ir.Value | None:
    """Of a sum x + f(x): x."""
    one, other = node.inputs
    assert one is not None
    assert other is not None
    if flow.depends(other, one):
        return one
    return other if flow.depends(one, other) else None


def _passed(flow: Flow, node: ir.Node) -> ir.Value | None:
    if node.op_type not in _PASSING:
        return None
    data = [value for value in node.inputs if value is not None and value.producer() in flow.from_sample]
    constant = all(value is None or value in data or value.producer() is None for value in node.inputs)
    return data[0] if len(data) == 1 and (constant or node.op_type not in ("Mul", "Div")) else None


def _shape(value: ir.Value) -> list[int | str] | None:
    return None if value.shape is None else [size if isinstance(size, int) else str(size) for size in value.shape]
