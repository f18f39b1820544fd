"""Complex numbers as pairs of real ones: rotary embeddings written as a product with exp(i·θ).

Neither ONNX nor any engine has complex numbers. A complex value [...] becomes two real ones of that shape; ``view_as_real`` stacks them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import GraphModule, Node

from ....errors import ArtifactError
from ..edit import Editor, aten
from .constants import evaluate, is_constant

Pair = tuple[Any, Any]
# What moves numbers and is done to both parts alike.
_MOVES = (
    aten.reshape.default, aten.view.default, aten._unsafe_view.default, aten.unsqueeze.default, aten.squeeze.dim, aten.transpose.int,
    aten.permute.default, aten.expand.default, aten.slice.Tensor, aten.select.int, aten.index_select.default, aten.clone.default,
    aten.contiguous.default, aten.flatten.using_ints, aten.unflatten.int, aten.repeat.default, aten.detach.default, aten.alias.default,
    aten.neg.default, aten.sum.dim_IntList, aten.mean.dim, aten.index.Tensor, aten.lift_fresh_copy.default, aten.split.Tensor,
    aten.split_with_sizes.default, aten.chunk.default, aten.unbind.int, operator.getitem,
)  # fmt: skip


def real_numbers(graph_module: GraphModule) -> None:
    """Rewrite every complex value of the graph as two real ones, in place.

    Raises ArtifactError for an operator on complex numbers that has no rule here, and for a complex input or output.
    """
    if not any(_is_complex(node) for node in graph_module.graph.nodes):
        return
    _fold_constants(graph_module)
    pairs: dict[Node, Pair] = {}
    for node in list(graph_module.graph.nodes):
        reads = any(_is_complex(n) for n in node.all_input_nodes)
        if not reads and not _is_complex(node):
            continue
        emit = Editor(graph_module, node)
        if node.op == "get_attr":
            pairs[node] = _constant(emit, node)
        elif node.op == "call_function" and node.target in _RULES:
            result = _RULES[node.target](emit, node, pairs)
            if _is_complex(node):
                pairs[node] = result
            else:
                node.replace_all_uses_with(result)
        else:
            raise ArtifactError(
                f"the model computes with complex numbers in {node.target} ({node.meta.get('path') or node.name}), and no engine has any",
                "write it with pairs of real numbers (cos and sin); a Fourier transform has none: switch it off (FreeU: disable_freeu)",
            )
    for node in reversed(list(graph_module.graph.nodes)):
        if (_is_complex(node) or any(_is_complex(n) for n in node.all_input_nodes)) and not node.users:
            graph_module.graph.erase_node(node)
    graph_module.graph.eliminate_dead_code()
    graph_module.recompile()


def _is_complex(node: Node) -> bool:
    """Whether a node is a complex tensor, or a list of these."""
    value = node.meta.get("val")
    parts = value if isinstance(value, list | tuple) else [value]
    return any(isinstance(part, torch.Tensor) and part.is_complex() for part in parts)


def _fold_constants(graph_module: GraphModule) -> None:
    """Tables that depend on nothing that comes in, whatever computes them, as the constants that they are."""
    known: dict[Node, Any] = {}
    for node in list(graph_module.graph.nodes):
        if node.op == "call_function" and isinstance(node.meta.get("val"), torch.Tensor) and _is_complex(node) and is_constant(node):
            constant = Editor(graph_module, node).constant(
                f"{node.meta.get('path') or node.name}.{node.name}", evaluate(graph_module, node, known)
            )
            node.replace_all_uses_with(constant)
    graph_module.graph.eliminate_dead_code()


def _constant(emit: Editor, node: Node) -> Pair:
    tensor = emit.graph_module.get_buffer(str(node.target))
    parts = []
    for name, part in (("real", tensor.real), ("imag", tensor.imag)):
        parts.append(emit.constant(f"{node.target}_{name}", part.contiguous()))
    return parts[0], parts[1]


def _pair(value: Any, pairs: dict[Node, Pair]) -> Pair:
    """A complex node's parts; a real one, or a number, and no imaginary part (None)."""
    if isinstance(value, complex):
        return value.real, value.imag
    return pairs[value] if isinstance(value, Node) and value in pairs else (value, None)


def _times(emit: Editor, x: Any, y: Any) -> Any:
    if x is None or y is None:
        return None
    return emit(aten.mul.Tensor, x, y) if isinstance(x, Node) else emit(aten.mul.Tensor, y, x)


def _plus(emit: Editor, x: Any, y: Any, target: Any = aten.add.Tensor) -> Any:
    if y is None:
        return x
    if x is None:
        return y if target is aten.add.Tensor else emit(aten.neg.default, y)
    if isinstance(x, Node):
        return emit(target, x, y)
    return emit(aten.add.Tensor, y if target is aten.add.Tensor else emit(aten.neg.default, y), x)


def _mul(emit: Editor, node: Node, pairs: dict[Node, Pair]) -> Pair:
    """(a + bi)(c + di) = ac − bd + (ad + bc)i."""
    (a, b), (c, d) = (_pair(x, pairs) for x in node.args[:2])
    minus = aten.sub.Tensor
    return _plus(emit, _times(emit, a, c), _times(emit, b, d), minus), _plus(emit, _times(emit, a, d), _times(emit, b, c))


def _div(emit: Editor, node: Node, pairs: dict[Node, Pair]) -> Pair:
    """(a + bi) / (c + di) = (a + bi)(c − di) / (c² + d²)."""
    (a, b), (c, d) = (_pair(x, pairs) for x in node.args[:2])
    if d is None:
        return emit(aten.div.Tensor, a, c), emit(aten.div.Tensor, b, c)
    size = emit(aten.add.Tensor, _times(emit, c, c), _times(emit, d, d))
    real = _plus(emit, _times(emit, a, c), _times(emit, b, d))
    imag = _plus(emit, _times(emit, b, c), _times(emit, a, d), aten.sub.Tensor)
    return emit(aten.div.Tensor, real, size), emit(aten.div.Tensor, imag, size)


def _sum(target: Any) -> Callable[[Editor, Node, dict[Node, Pair]], Pair]:
    def rule(emit: Editor, node: Node, pairs: dict[Node, Pair]) -> Pair:
        (a, b), (c, d) = (_pair(x, pairs) for x in node.args[:2])
        return _full(emit, node, (_plus(emit, a, c, target), _plus(emit, b, d, target)))

    return rule


def _full(emit: Editor, node: Node, pair: Pair) -> Pair:
    """Both parts in the value's own shape: one that had none may be smaller."""
    shape = node.meta["val"].shape
    return tuple(part if part.meta["val"].shape == shape else emit(aten.expand.default, part, emit.sizes(node)) for part in pair)  # type: ignore[return-value]


def _moved(emit: Editor, node: Node, pairs: dict[Node, Pair]) -> Pair:
    source: Any = node.args[0]
    real, imag = (emit(node.target, part, *node.args[1:], **node.kwargs) for part in pairs[source])  # type: ignore[arg-type]
    return real, imag


def _joined(emit: Editor, node: Node, pairs: dict[Node, Pair]) -> Pair:
    sources: Any = node.args[0]
    real, imag = (emit(node.target, [pairs[x][index] for x in sources], *node.args[1:]) for index in range(2))  # type: ignore[arg-type]
    return real, imag


def _from_pairs(emit: Editor, node: Node, pairs: dict[Node, Pair]) -> Pair:  # noqa: ARG001
    return emit(aten.select.int, node.args[0], -1, 0), emit(aten.select.int, node.args[0], -1, 1)


def _to_pairs(emit: Editor, node: Node, pairs: dict[Node, Pair]) -> Node:
    return emit(aten.stack.default, list(_pair(node.args[0], pairs)), -1)


def _polar(emit: Editor, node: Node, pairs: dict[Node, Pair]) -> Pair:  # noqa: ARG001
    """r·cos θ + r·sin θ·i."""
    r, angle = node.args[:2]
    return _full(emit, node, (_times(emit, r, emit(aten.cos.default, angle)), _times(emit, r, emit(aten.sin.default, angle))))


def _complex(emit: Editor, node: Node, pairs: dict[Node, Pair]) -> Pair:  # noqa: ARG001
    real, imag = node.args[:2]
    return _full(emit, node, (real, imag))


def _conjugate(emit: Editor, node: Node, pairs: dict[Node, Pair]) -> Pair:
    real, imag = _pair(node.args[0], pairs)
    return real, emit(aten.neg.default, imag)


def _part(index: int) -> Callable[[Editor, Node, dict[Node, Pair]], Any]:
    def rule(emit: Editor, node: Node, pairs: dict[Node, Pair]) -> Any:  # noqa: ARG001
        return _pair(node.args[0], pairs)[index]

    return rule


def _magnitude(emit: Editor, node: Node, pairs: dict[Node, Pair]) -> Node:
    real, imag = _pair(node.args[0], pairs)
    made: Node = emit(aten.sqrt.default, emit(aten.add.Tensor, _times(emit, real, real), _times(emit, imag, imag)))
    return made


def _cast(emit: Editor, node: Node, pairs: dict[Node, Pair]) -> Any:
    """To another width, to complex from real, or to real: PyTorch drops the imaginary part then."""
    real, imag = _pair(node.args[0], pairs)
    dtype = node.meta["val"].dtype
    plain = {torch.complex64: torch.float32, torch.complex128: torch.float64, torch.complex32: torch.float16}.get(dtype, dtype)
    real = emit(aten.to.dtype, real, plain)
    if not dtype.is_complex:
        return real
    return real, emit(aten.zeros_like.default, real) if imag is None else emit(aten.to.dtype, imag, plain)


_RULES: dict[Any, Callable[[Editor, Node, dict[Node, Pair]], Any]] = {
    aten.view_as_complex.default: _from_pairs,
    aten.view_as_real.default: _to_pairs,
    aten.polar.default: _polar,
    aten.complex.default: _complex,
    aten.mul.Tensor: _mul,
    aten.mul.Scalar: _mul,
    aten.div.Tensor: _div,
    aten.div.Scalar: _div,
    aten.add.Tensor: _sum(aten.add.Tensor),
    aten.sub.Tensor: _sum(aten.sub.Tensor),
    aten.conj.default: _conjugate,
    aten._conj.default: _conjugate,
    aten.conj_physical.default: _conjugate,
    aten.resolve_conj.default: lambda emit, node, pairs: _pair(node.args[0], pairs),  # noqa: ARG005
    aten.real.default: _part(0),
    aten.imag.default: _part(1),
    aten.abs.default: _magnitude,
    aten.cat.default: _joined,
    aten.stack.default: _joined,
    aten.to.dtype: _cast,
    aten.to.dtype_layout: _cast,
    aten.to.device: _cast,
    aten._to_copy.default: _cast,
    **dict.fromkeys(_MOVES, _moved),
}
