"""Other ways to select a timestep's row of the scale tables, made by rewriting an exported ``tensorrt`` graph.

gathered    as exported: a Gather [N] for each table, an Unsqueeze to the activation's rank at each reader
shaped      the row numbers have the activation's rank already, once for the graph: no Unsqueeze at the readers
one-table   all tables side by side in one [T, L]: one Gather, one Unsqueeze and one Split for each rank
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from dq_deploy.exporters.emitter import Emitter
from dq_deploy.formats.tables import ROW


def _gathers(graph: ir.Graph) -> list[ir.Node]:
    """Of the scale tables [T]; the output bias [T, C, 1, 1] has its readers' rank already."""
    found = [node for node in graph if node.op_type == "Gather" and node.inputs[1] is not None and node.inputs[1].name == ROW]
    return [node for node in found if node.inputs[0] is not None and len(node.inputs[0].shape or ()) == 1]


def _unsqueezed(value: ir.Value) -> Iterator[ir.Node]:
    """The Unsqueeze nodes behind a gathered row, through what is computed from it as [N]."""
    for user, _ in value.uses():
        if user.op_type == "Unsqueeze":
            yield user
        elif user.op_type in ("Reciprocal", "Mul"):
            yield from _unsqueezed(user.outputs[0])


def _rank(unsqueeze: ir.Node) -> int:
    axes = unsqueeze.inputs[1]
    assert axes is not None
    assert axes.const_value is not None
    return 1 + axes.const_value.size


def _drop(nodes: list[ir.Node]) -> None:
    """Let each Unsqueeze's input stand for its output."""
    for node in nodes:
        source, graph = node.inputs[0], node.graph
        assert source is not None
        assert graph is not None
        ir.convenience.replace_all_uses_with(node.outputs[0], source)
        graph.remove(node, safe=True)


def _by_rank(graph: ir.Graph) -> dict[int, list[ir.Node]]:
    """Gathers by the rank that their readers want; the readers' own Unsqueeze nodes are gone afterwards."""
    found: dict[int, list[ir.Node]] = {}
    dropped: dict[ir.Node, None] = {}
    for gather in _gathers(graph):
        readers = list(_unsqueezed(gather.outputs[0]))
        (rank,) = {_rank(node) for node in readers}
        found.setdefault(rank, []).append(gather)
        dropped |= dict.fromkeys(readers)
    _drop(list(dropped))
    return found


def shaped(model: ir.Model) -> None:
    """See the module."""
    for rank, gathers in _by_rank(model.graph).items():
        row = gathers[0].inputs[1]
        assert row is not None
        producer = row.producer()
        assert producer is not None
        rows = Emitter(model.graph, "row_selection", after=producer).unsqueeze(row, rank, f"Unsqueeze_{rank}")
        rows.type = row.type
        for gather in gathers:
            gather.replace_input_with(1, rows)


def one_table(model: ir.Model) -> None:
    """See the module."""
    graph = model.graph
    for rank, gathers in _by_rank(graph).items():
        tables = [gather.inputs[0].const_value.numpy() for gather in gathers]  # type: ignore[union-attr]
        row = gathers[0].inputs[1]
        assert row is not None
        emit = Emitter(graph, f"scale_tables_{rank}", after=row.producer())
        rows = emit.op("Gather", [emit.constant(f"scale_tables_{rank}", np.stack(tables, axis=1)), row], axis=0)
        if rank > 2:
            axes = emit.constant(f"scale_tables_{rank}.axes", np.arange(2, rank, dtype=np.int64))
            rows = emit.op("Unsqueeze", [rows, axes])
        parts = [ir.Value(name=f"{gather.outputs[0].name}:{rank}", type=ir.TensorType(ir.DataType.FLOAT)) for gather in gathers]
        attributes = [ir.AttrInt64("axis", 1), ir.AttrInt64("num_outputs", len(parts))]
        split = ir.Node("", "Split", [rows], attributes, outputs=parts, name=f"scale_tables_{rank}/Split")
        assert emit.after is not None
        graph.insert_after(emit.after, split)
        for gather, part in zip(gathers, parts, strict=True):
            ir.convenience.replace_all_uses_with(gather.outputs[0], part)
            graph.remove(gather, safe=True)


def as_exported(model: ir.Model) -> None:
    """See the module."""


FORMS: dict[str, Callable[[ir.Model], None]] = {"gathered": as_exported, "shaped": shaped, "one-table": one_table}


def rewritten(model: ir.Model, form: str) -> ir.Model:
    """The model in another form, in place."""
    FORMS[form](model)
    passes.RemoveUnusedNodesPass()(model)
    passes.TopologicalSortPass()(model)
    return model
