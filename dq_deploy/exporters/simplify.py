"""A freshly exported graph without what computes nothing, and with every value as it was.

``torch.onnx.export`` offers an optimizer of its own, which takes two constants for one where they differ by 1e-8 or by 1e-5 of their size:
``x + 1e-10`` becomes ``x``. So it is not used. The passes here either evaluate (folding of constants, equal expressions once) or change
shapes alone; a rule that would compare floating-point constants, or join Clip, Relu, Min and Max, has no place among them.
"""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as passes
from onnxscript import optimizer, rewriter
from onnxscript.rewriter.rules import common as rules

from .circular import circular_pads

_NAMES = ("materialize_reshape_shape_rule", "transpose_transpose_rule", "unsqueeze_unsqueeze_rule", "squeeze_reshape_1d_rule")
# Without one of them, which an older onnxscript may lack, a graph has some more nodes of the same values.
_OF_SHAPES = tuple(getattr(rules, name) for name in _NAMES if hasattr(rules, name))
_ROUNDS = 2  # what the rules leave constant is folded the second time


def simplify(model: ir.Model) -> None:
    """Fold constants, drop what is not read, merge equal expressions and chains of reshapes, transpositions and unsqueezes, in place."""
    passes.InlinePass()(model)
    for _ in range(_ROUNDS):
        optimizer.fold_constants_ir(model, onnx_shape_inference=True)
        rewriter.RewritePass(_OF_SHAPES)(model)
        passes.RemoveUnusedNodesPass()(model)
        passes.RemoveUnusedFunctionsPass()(model)
        passes.RemoveUnusedOpsetsPass()(model)
    _booleans_by_logic(model.graph)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    circular_pads(model.graph)
    passes.LiftSubgraphInitializersToMainGraphPass()(model)
    passes.DeduplicateInitializersPass()(model)
    passes.CommonSubexpressionEliminationPass()(model)
    passes.OutputFixPass()(model)
    passes.NameFixPass()(model)


def _booleans_by_logic(graph: ir.Graph) -> None:
    """Where(c, a, b) of booleans as (c and a) or (not c and b): ONNX Runtime has no Where for them."""
    for node in list(graph):
        kinds = {value.dtype for value in (*node.inputs[1:], *node.outputs) if value is not None}
        if node.op_type != "Where" or node.domain or ir.DataType.BOOL not in kinds:
            continue
        choice, yes, no = node.inputs
        opposite = ir.node("Not", [choice])
        parts = [ir.node("And", [choice, yes]), ir.node("And", [opposite.outputs[0], no])]
        chosen = ir.node("Or", [part.outputs[0] for part in parts])
        for made in (opposite, *parts, chosen):
            made.name = f"{node.name}/{made.op_type}" + ("" if made is not parts[1] else "_1")
            made.outputs[0].name, made.outputs[0].type = f"{made.name}:0", ir.TensorType(ir.DataType.BOOL)
            graph.insert_before(node, made)
        chosen.outputs[0].shape = node.outputs[0].shape
        ir.convenience.replace_all_uses_with(node.outputs[0], chosen.outputs[0], replace_graph_outputs=True)
        graph.remove(node, safe=True)
