"""Free sizes of a captured graph's inputs, and every other size as arithmetic on them.

torch.export takes a size from whatever value has it. Here each is computed from the sizes of the graph's inputs, which every block of the
graph can be given, and which an engine's compiler can follow.
"""

from __future__ import annotations

import itertools
import operator
from functools import partial, reduce
from typing import Any

import torch
from torch.fx import GraphModule, Node

aten = torch.ops.aten
_ARITHMETIC = {"FloorDiv": operator.floordiv, "CleanDiv": operator.floordiv, "Mod": operator.mod, "PythonMod": operator.mod}


def size_node(graph_module: GraphModule, value: torch.SymInt) -> Node | None:
    """A node, right behind the inputs, that computes a size from theirs; None where it is not made of them by arithmetic."""
    return _Emitter(graph_module).of(value)


class _Emitter:
    def __init__(self, graph_module: GraphModule) -> None:
        self.graph = graph_module.graph
        inputs = self.graph.find_nodes(op="placeholder")
        self.places = {
            str(size.node.expr): (node, dim)
            for node in reversed(inputs)
            for dim, size in reversed(list(enumerate(node.meta["val"].shape)))
            if isinstance(size, torch.SymInt) and size.node.expr.is_symbol
        }
        behind = (n for n in self.graph.nodes if n.op == "call_function")
        self.known = {(n.target, n.args): n for n in itertools.takewhile(_is_size, behind)}
        self.last = list(self.known.values())[-1] if self.known else inputs[-1]

    def of(self, value: torch.SymInt) -> Node | None:
        """A node for the value."""
        made = self._expression(value.node.expr)
        if isinstance(made, Node):
            made.meta.setdefault("val", value)
            return made
        return None

    def _expression(self, expression: Any) -> int | Node | None:
        """A number or a node; None for what has no arithmetic of Python."""
        if expression.is_Integer:
            return int(expression)
        if expression.is_symbol:
            place = self.places.get(str(expression))
            return self._made(aten.sym_size.int, *place) if place else None
        parts = [self._expression(part) for part in expression.args]
        if any(part is None for part in parts):
            return None
        if expression.is_Add or expression.is_Mul:
            joined: int | Node | None = reduce(partial(self._made, operator.add if expression.is_Add else operator.mul), parts)
            return joined
        target: Any = _ARITHMETIC.get(type(expression).__name__)
        return self._made(target, *parts) if target is not None else None

    def _made(self, target: Any, *arguments: Any) -> int | Node:
        if all(isinstance(argument, int) for argument in arguments):
            return int(target(*arguments))
        arguments = tuple(reversed(arguments)) if isinstance(arguments[0], int) and target in (operator.add, operator.mul) else arguments
        known: Node | None = self.known.get((target, arguments))
        if known is None:
            with self.graph.inserting_after(self.last):
                self.last = known = self.graph.call_function(target, arguments)
            known.meta = {"path": "", "stack": [], "val": _value(target, arguments)}
            self.known[target, arguments] = known
        return known


def _value(target: Any, arguments: tuple[Any, ...]) -> Any:
    if target is aten.sym_size.int:
        return arguments[0].meta["val"].shape[arguments[1]]
    return target(*(a.meta["val"] if isinstance(a, Node) else a for a in arguments))


def _is_size(node: Node) -> bool:
    return isinstance(node.meta.get("val"), torch.SymInt)
