"""Einsums of one operand as permutations, of two as matrix products.

Every letter of ``ab,bc->ac`` is in one of five roles: in both operands and the output (batch), in both and not in the output (summed),
in the left only (rows), in the right only (columns), or in one operand and nowhere else (summed away first).
"""

from __future__ import annotations

import math
from typing import Any

from torch.fx import GraphModule, Node

from ..edit import Editor, Size, aten
from .probabilities import is_softmax


def lower_einsums(graph_module: GraphModule) -> None:
    """Replace what ``aten.einsum`` computes by permute, reshape and matmul, in place.

    Three or more operands, a letter twice in one operand (a diagonal), and sizes that broadcast stay as they are.
    """
    for node in list(graph_module.graph.nodes):
        if node.target == aten.einsum.default:
            _lower(graph_module, node)
    graph_module.recompile()


def _lower(graph_module: GraphModule, node: Node) -> None:
    operands: Any = node.args[1]
    terms, output = _parse(str(node.args[0]), [x.meta["val"].dim() for x in operands])
    sizes: dict[str, set[Any]] = {}
    for letter, size in zip("".join(terms), [s for x in operands for s in x.meta["val"].shape], strict=True):
        sizes.setdefault(letter, set()).add(str(size))
    if len(operands) > 2 or any(len(set(term)) < len(term) for term in terms) or any(len(found) > 1 for found in sizes.values()):
        return
    emit = Editor(graph_module, node)
    needed = [{*output, *"".join(terms[:i] + terms[i + 1 :])} for i in range(len(terms))]
    parts = [_sum_away(emit, x, term, letters) for x, term, letters in zip(operands, terms, needed, strict=True)]
    if len(parts) == 2:
        # Parameters belong on the right, as a layer's weight; probabilities on the left (plan.insert_quantizers).
        if (is_softmax(parts[1][0]) and not is_softmax(parts[0][0])) or parts[0][0].op == "get_attr":
            parts.reverse()
        parts = [_product(emit, *parts[0], *parts[1], output)]
    (result, letters) = parts[0]
    emit.replace(emit.permute(result, [letters.index(letter) for letter in output]))


def _parse(equation: str, ranks: list[int]) -> tuple[list[str], str]:
    """Letters of every operand and of the output; an ellipsis becomes letters that no equation can use."""
    left, arrow, output = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    free = [chr(c) for c in range(0x100, 0x110)]
    hidden = max((rank - len(term.replace("...", "")) for term, rank in zip(terms, ranks, strict=True) if "..." in term), default=0)
    for i, (term, rank) in enumerate(zip(terms, ranks, strict=True)):
        count = rank - len(term.replace("...", ""))
        terms[i] = term.replace("...", "".join(free[hidden - count : hidden]))
    if not arrow:  # the output of the implicit form: the ellipsis, then the letters that stand once, in alphabetical order
        once = sorted(letter for letter in set("".join(terms)) - set(free) if "".join(terms).count(letter) == 1)
        return terms, "".join(free[:hidden] + once)
    return terms, output.replace("...", "".join(free[:hidden]))


def _sum_away(emit: Editor, x: Node, term: str, needed: set[str]) -> tuple[Node, str]:
    """Without the letters that neither the output nor the other operand has."""
    gone = [i for i, letter in enumerate(term) if letter not in needed]
    if gone:
        x = emit(aten.sum.dim_IntList, x, gone)
    return x, "".join(letter for letter in term if letter in needed)


def _product(emit: Editor, a: Node, left: str, b: Node, right: str, output: str) -> tuple[Node, str]:
    """One product; gives its output, unfolded, and that output's letters."""
    batch = [letter for letter in left if letter in right and letter in output]
    summed = [letter for letter in left if letter in right and letter not in output]
    rows = [letter for letter in left if letter not in right]
    columns = [letter for letter in right if letter not in left]
    size = {**dict(zip(right, emit.sizes(b), strict=True)), **dict(zip(left, emit.sizes(a), strict=True))}
    alone, folded = (rows, []) if not batch else ([], [rows])  # a matrix on the right serves any number of dimensions on the left
    x = _arranged(emit, a, left, [*batch, *alone], [*folded, summed], size)
    y = _arranged(emit, b, right, batch, [summed, columns], size)
    letters = [*batch, *rows, *columns]
    target = aten.matmul.default if summed else aten.mul.Tensor  # without a sum, a column times a row
    return emit.reshape(emit(target, x, y), [size[letter] for letter in letters]), "".join(letters)


def _arranged(emit: Editor, x: Node, term: str, alone: list[str], groups: list[list[str]], size: dict[str, Size]) -> Node:
    """The operand with a dimension for each letter of ``alone``, then one for each group of letters."""
    x = emit.permute(x, [term.index(letter) for letter in (*alone, *(letter for group in groups for letter in group))])
    return emit.reshape(x, [*(size[letter] for letter in alone), *(_folded(emit, group, size) for group in groups)])


def _folded(emit: Editor, letters: list[str], size: dict[str, Size]) -> Size:
    """Size of several letters as one dimension."""
    nodes = [node for letter in letters if isinstance(node := size[letter], Node)]
    count = math.prod(s for letter in letters if isinstance(s := size[letter], int))
    if not nodes:
        return count
    return emit.size(math.prod(node.meta["val"] for node in nodes) * count)
