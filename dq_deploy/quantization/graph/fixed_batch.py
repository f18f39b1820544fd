"""A graph for every batch out of two that are bound to their own.

Where a forward turns the batch size into a number of Python (``len(x)``, ``[0] * n``), torch.export takes it for a constant. The model is
captured at two batch sizes as it is, and what differs between the graphs is what depends on the batch: numbers become c·N + d, and tensors
of as many equal entries are made from one. Anything else that differs is bound to the batch, and the model's line that made it is named.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from ...errors import ArtifactError
from .edit import aten
from .exporting import source_line
from .rewrites.clean import drop_checks


def freed(small: GraphModule, large: GraphModule, tensors: Sequence[torch.Tensor]) -> GraphModule:
    """``small``, captured at the batch of ``tensors`` [N, ...], for every batch; ``large`` was captured at one sample more.

    Its values in ``meta`` have the batch as a symbol. Raises ArtifactError with the model's line that is bound to the batch.
    """
    batch = len(tensors[0])
    for graph_module in (small, large):
        drop_checks(graph_module.graph)
    pairs = _pairs(small, large)
    placeholders = small.graph.find_nodes(op="placeholder")
    with small.graph.inserting_after(placeholders[-1]):
        size = small.graph.call_function(aten.sym_size.int, (placeholders[0], 0))
    size.meta = {}
    emit = _Emitter(small, size, batch)
    for node, other in pairs:
        if node.op == "get_attr":
            emit.repeated(node, _tensor(small, node), _tensor(large, other))
        elif node.op != "placeholder":
            node.args = emit.argument(node, node.args, other.args)
            node.kwargs = emit.argument(node, node.kwargs, other.kwargs)
    small.graph.lint()
    small.recompile()
    _propagate(small, tensors)
    return small


def _pairs(small: GraphModule, large: GraphModule) -> list[tuple[Node, Node]]:
    first, second = list(small.graph.nodes), list(large.graph.nodes)
    for node, other in zip(first, second, strict=False):
        same = node.target == other.target or node.op in {"get_attr", "placeholder"}
        if node.op != other.op or not same:
            raise _bound(node, "what it computes next")
    if len(first) != len(second):
        raise _bound(min(first, second, key=len)[-2], "how much it computes after this")
    return list(zip(first, second, strict=True))


def _bound(node: Node, what: str) -> ArtifactError:
    return ArtifactError(
        f"the graph, and not the model, is bound to the batch that it was captured at: {what} depends on the batch size{source_line(node)}",
        "take sizes from x.shape and leave them whole (no len, int, list or range of the batch), so that they stay symbols",
    )


class _Emitter:
    """Puts expressions of the batch in the place of what differs."""

    def __init__(self, graph_module: GraphModule, size: Node, batch: int) -> None:
        self.graph_module, self.size, self.batch = graph_module, size, batch
        self.made: dict[tuple[int, int], Node] = {}
        self.last = size  # after which the next expression goes

    def argument(self, node: Node, value: Any, other: Any) -> Any:
        """The first graph's argument, with the batch as a symbol wherever the second graph's differs."""
        if isinstance(value, list | tuple) and isinstance(other, list | tuple) and len(value) == len(other):
            parts = [self.argument(node, a, b) for a, b in zip(value, other, strict=True)]
            return type(value)(parts)
        if isinstance(value, dict) and isinstance(other, dict) and value.keys() == other.keys():
            return {key: self.argument(node, value[key], other[key]) for key in value}
        if isinstance(value, Node) and isinstance(other, Node):
            return value
        if type(value) is int and type(other) is int:
            return value if value == other else self.expression(value, other - value)
        if type(value) is not type(other) or value != other:
            raise _bound(node, f"an argument of {node.target} ({value} at batch {self.batch}, {other} at {self.batch + 1})")
        return value

    def expression(self, value: int, factor: int) -> Node:
        """factor·N + what is left of ``value``."""
        rest = value - factor * self.batch
        node = self.size
        if factor != 1:
            node = self._made((factor, 0), operator.mul, node, factor)
        return node if rest == 0 else self._made((factor, rest), operator.add, node, rest)

    def _made(self, key: tuple[int, int], target: Any, *arguments: Any) -> Node:
        if key not in self.made:
            with self.graph_module.graph.inserting_after(self.last):
                self.last = self.made[key] = self.graph_module.graph.call_function(target, arguments)
            self.last.meta = {}
        return self.made[key]

    def repeated(self, node: Node, tensor: torch.Tensor, other: torch.Tensor) -> None:
        """A constant that has an entry for each sample, all equal, as one that is repeated."""
        if tensor.shape == other.shape and torch.equal(tensor, other):
            return
        dims = [d for d in range(tensor.dim()) if tensor.dim() == other.dim() and tensor.shape[d] != other.shape[d]]
        entry = tensor.narrow(dims[0], 0, 1) if len(dims) == 1 else tensor
        if len(dims) != 1 or not torch.equal(entry.expand_as(tensor), tensor) or not torch.equal(entry.expand_as(other), other):
            user = min(node.users)
            raise _bound(user, f"a constant of shape {list(tensor.shape)} at batch {self.batch}")
        size = self.expression(tensor.shape[dims[0]], other.shape[dims[0]] - tensor.shape[dims[0]])
        path, _, leaf = str(node.target).rpartition(".")
        parent: nn.Module = self.graph_module.get_submodule(path)
        delattr(parent, leaf)
        parent.register_buffer(leaf, entry.clone(), persistent=False)
        users = list(node.users)
        with self.graph_module.graph.inserting_before(min(users)):
            sizes = [size if d == dims[0] else int(tensor.shape[d]) for d in range(tensor.dim())]
            expanded = self.graph_module.graph.call_function(aten.expand.default, (node, sizes))
        expanded.meta = {key: min(users).meta[key] for key in ("nn_module_stack", "stack_trace") if key in min(users).meta}
        for user in users:
            user.replace_input_with(node, expanded)


def _tensor(graph_module: GraphModule, node: Node) -> torch.Tensor:
    tensor: torch.Tensor = operator.attrgetter(str(node.target))(graph_module)
    return tensor.detach()


def _propagate(graph_module: GraphModule, tensors: Sequence[torch.Tensor]) -> None:
    """Every node's value under fake tensors whose first dimension is one symbol, in ``meta["val"]``."""
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    fakes = []
    for tensor in tensors:
        sizes = [DimDynamic.DUCK, *[DimDynamic.STATIC] * (tensor.dim() - 1)]
        context: Any = StatelessSymbolicContext(dynamic_sizes=sizes, constraint_sizes=[None] * tensor.dim())
        fakes.append(mode.from_tensor(tensor, symbolic_context=context))

    class Symbolic(Interpreter):
        def run_node(self, n: Node) -> Any:
            value = super().run_node(n)
            if n.op == "get_attr":
                value = mode.from_tensor(value, static_shapes=True)
            n.meta["val"] = value
            return value

    # With torch's decompositions in Python: some in C++ (nearest upsampling) ask for sizes as numbers, which makes the symbol one for good.
    with mode, enable_python_dispatcher(), torch.no_grad():
        Symbolic(graph_module).run(*fakes)
