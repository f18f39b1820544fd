"""An argument's structure as JSON, so that a manifest can hold it: what of it is a tensor of the graph, and what is fixed.

A tree is one of
    {"input": name}                 the graph's input of that name, [N, ...]
    {"input": name, "shared": r}    the same; the network gets one of rank r for the whole batch: the input's first sample
    {"input": name, "stacked": k}   the same, [N, k, ...]; the network gets [N·k, ...]
    {"constant": value}             a number, text, truth value or None that the graph was made with
    {"list": [tree, ...]}, {"tuple": [tree, ...]}, {"dict": [[key, tree], ...]}
    {"rows": tree}                  a list with an entry for each sample of the batch
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from ...errors import UsageError

Tree = dict[str, Any]
SCALARS = (bool, int, float, str, type(None))
_AGAIN = "give what it was quantized with, or quantize the model again, with the arguments of its calls"


def leaves(tree: Tree) -> Iterator[Tree]:
    """Every input and constant."""
    if "rows" in tree:
        yield from leaves(tree["rows"])
    elif "dict" in tree:
        for _, part in tree["dict"]:
            yield from leaves(part)
    elif "list" in tree or "tuple" in tree:
        for part in tree["list"] if "list" in tree else tree["tuple"]:
            yield from leaves(part)
    else:
        yield tree


def input_names(tree: Tree) -> list[str]:
    """Names of the graph's inputs in it, in their order."""
    return [leaf["input"] for leaf in leaves(tree) if "input" in leaf]


def build(tree: Tree, tensors: Mapping[str, torch.Tensor], batch: int) -> Any:
    """The argument, with ``tensors`` [N, ...] in it. ``batch`` is N, or what stands for it where N is a symbol."""
    if "input" in tree:
        tensor = tensors[tree["input"]]
        return tensor[0] if "shared" in tree else tensor.flatten(0, 1) if "stacked" in tree else tensor
    if "constant" in tree:
        return tree["constant"]
    if "dict" in tree:
        return {key: build(part, tensors, batch) for key, part in tree["dict"]}
    if "rows" in tree:
        inner = tree["rows"]
        if "input" in inner:
            return list(tensors[inner["input"]].unbind(0))
        return [build(inner, tensors, batch) for _ in range(batch)]
    if "list" in tree:
        return [build(part, tensors, batch) for part in tree["list"]]
    return tuple(build(part, tensors, batch) for part in tree["tuple"])


def match(tree: Tree, value: Any, path: str, batch: int) -> dict[str, Any]:
    """The graph's inputs in an argument of this structure, each [N, ...] for ``batch`` N.

    Raises UsageError where ``value`` has another structure or other constants.
    """
    if "input" in tree:
        return {tree["input"]: _batched(tree, value, path, batch)}
    if "constant" in tree:
        if not same(value, tree["constant"]):
            raise UsageError(f"{path} is {shown(value)}, and the graph was made with {tree['constant']!r}", _AGAIN)
        return {}
    if "rows" in tree:
        return _match_samples(tree["rows"], value, path, batch)
    found: dict[str, Any] = {}
    for key, part, inner in _parts(tree, value, path):
        found |= match(part, inner, f"{path}.{key}", batch)
    return found


def _parts(tree: Tree, value: Any, path: str) -> Iterator[tuple[Any, Tree, Any]]:
    """Key, tree and value of every entry of a collection."""
    if "dict" in tree:
        expected = {key: part for key, part in tree["dict"] if not nothing(part)}
        given = {key: inner for key, inner in value.items() if not none_in(inner)} if isinstance(value, Mapping) else {}
        if set(expected) != set(given):
            raise UsageError(
                f"{path} is {shown(value)}, and the graph was made with a dictionary of {', '.join(map(str, expected))}",
                _AGAIN,
            )
        yield from ((key, part, given[key]) for key, part in expected.items())
        return
    parts = tree.get("list", tree.get("tuple"))
    assert parts is not None
    if isinstance(value, torch.Tensor | str) or not isinstance(value, Sequence) or len(value) != len(parts):
        raise UsageError(f"{path} is {shown(value)}, and the graph was made with {len(parts)} of them", _AGAIN)
    yield from ((i, part, inner) for i, (part, inner) in enumerate(zip(parts, value, strict=True)))


def _match_samples(tree: Tree, value: Any, path: str, batch: int) -> dict[str, Any]:
    if isinstance(value, torch.Tensor):
        value = list(value)
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != batch:
        raise UsageError(f"{path} is {shown(value)}, and a list with an entry for each of the {batch} samples is needed")
    if "input" not in tree:
        for i, inner in enumerate(value):
            match(tree, inner, f"{path}.{i}", batch)
        return {}
    shapes = {tuple(sample.shape) for sample in value}
    if len(shapes) != 1:
        raise UsageError(
            f"{path} has entries of the shapes {', '.join(map(str, map(list, sorted(shapes))))}, and a batch of the graph has one",
            "choose prompts of one length and pictures of one size, or call it with one at a time",
        )
    return {tree["input"]: torch.stack(list(value))}


def _batched(tree: Tree, value: Any, path: str, batch: int) -> Any:
    """A tensor of a call as the graph has it."""
    if value is None or isinstance(value, str | Mapping | Sequence):
        raise UsageError(f"{path} is {shown(value)}, and the graph was made with a tensor", _AGAIN)
    tensor = torch.as_tensor(value)
    if "shared" in tree:
        return tensor[None].expand(batch, *tensor.shape) if tensor.dim() == tree["shared"] else tensor
    if "stacked" in tree:
        if tensor.dim() == 0 or len(tensor) != batch * tree["stacked"]:
            raise UsageError(f"{path} is {shown(value)}, and {tree['stacked']} for each of the {batch} samples are needed", _AGAIN)
        return tensor.unflatten(0, (batch, tree["stacked"]))
    return tensor.expand(batch, *tensor.shape[1:]) if tensor.dim() and len(tensor) == 1 else tensor


def same(a: Any, b: Any) -> bool:
    """Whether two constants are one: True is not 1, and 1 is 1.0."""
    return isinstance(a, SCALARS) and isinstance(a, bool) == isinstance(b, bool) and bool(a == b)


def plain(value: Any) -> Any:
    """A constant as JSON has it; None for what is not a number, text, truth value or list of these."""
    if isinstance(value, list | tuple):
        inner = [plain(entry) for entry in value]
        return inner if None not in inner else None
    return value if isinstance(value, SCALARS) and not (isinstance(value, float) and not math.isfinite(value)) else None


def equal(value: Any, default: Any) -> bool:
    """Whether an argument is the default, which is as JSON has it."""
    if isinstance(default, list):
        return isinstance(value, list | tuple) and len(value) == len(default) and all(map(equal, value, default))
    return same(value, default)


def nothing(tree: Tree) -> bool:
    """Whether nothing but None is in it."""
    return all("constant" in leaf and leaf["constant"] is None for leaf in leaves(tree))


def none_in(value: Any) -> bool:
    """Whether a value of a call says nothing: None, or a collection without anything else in it."""
    if isinstance(value, Mapping):
        return all(map(none_in, value.values()))
    if isinstance(value, list | tuple):
        return all(map(none_in, value))
    return value is None


def shown(value: Any) -> str:
    """A value of a call, in a message."""
    if isinstance(value, torch.Tensor):
        return f"a tensor {list(value.shape)}"
    if isinstance(value, Mapping):
        return f"a dictionary of {', '.join(map(str, value)) or 'nothing'}"
    if isinstance(value, list | tuple) and any(isinstance(inner, torch.Tensor) for inner in value):
        return f"a {type(value).__name__} of {len(value)}: {', '.join(map(shown, value[:4]))}{', …' if len(value) > 4 else ''}"
    return repr(value)[:80]
