"""The exporter's optimizer makes the same graph, and does not list all of it for every node."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest
from onnx import helper
from onnxscript import optimizer
from onnxscript.rewriter import _matcher

from dq_deploy.exporters.quick_rewrites import quick_rewrites


def model(nodes: int) -> ir.Model:
    """Two slices, which a rule of two nodes starts from, and ``nodes`` others."""
    constants = {"zero": [0], "half": [2], "end": [4], "axis": [1]}
    initializers = [helper.make_tensor(name, onnx.TensorProto.INT64, [1], values) for name, values in constants.items()]
    body = [
        helper.make_node("Slice", ["x", "zero", "half", "axis"], ["a"]),
        helper.make_node("Slice", ["x", "half", "end", "axis"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["y0"]),
        *(helper.make_node("Sin", [f"y{i}"], [f"y{i + 1}"]) for i in range(nodes)),
    ]
    ends = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [2, c]) for n, c in (("x", 4), (f"y{nodes}", 2))]
    graph = helper.make_graph(body, "g", ends[:1], ends[1:], initializers)
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]))


def optimized(nodes: int) -> bytes:
    made = model(nodes)
    optimizer.optimize_ir(made)
    return ir.to_proto(made).SerializeToString(deterministic=True)


def test_the_same_graph_from_fewer_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts: list[str] = []
    match = _matcher.SimplePatternMatcher.match

    def counted(self: _matcher.SimplePatternMatcher, model: ir.Model, graph: ir.Graph, node: ir.Node, **options: object) -> object:
        if not self.pattern.has_single_output_node:
            attempts.append(node.op_type)
        return match(self, model, graph, node, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(_matcher.SimplePatternMatcher, "match", counted)
    expected = optimized(20)
    starts = attempts.count("Slice")
    assert 0 < starts < len(attempts)
    attempts.clear()
    with quick_rewrites():
        assert optimized(20) == expected
    assert attempts == ["Slice"] * starts
    attempts.clear()
    optimized(1)
    assert "Sin" in attempts  # nothing of it stays behind
