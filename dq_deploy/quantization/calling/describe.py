"""What form a call of a network has, found from its arguments."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ...errors import UsageError
from .form import NESTED, RETURN_DICT, SHARED_RANK, TIMESTEP, CallForm, forward_parameters, plain_defaults, positional, timestep_of
from .sample_lists import takes_sample_list
from .tree import SCALARS, Tree, equal, shown

_POSITIONS = {*SHARED_RANK, "image_rotary_emb", "rotary_embedding", "freqs_cis", "visual_rope_pos", "text_rope_pos"}
"""Positions of tokens, as diffusers' models call them: one set [L, ...] for the whole batch."""
_POSITIONS_RANK = 2
_LISTS = ("img_shapes", "txt_seq_lens")
"""Lists of Qwen-Image's with an entry for each sample."""


@dataclass(frozen=True)
class _Marked:
    """Tensors of a condition, in any structure, that a network gets otherwise than one for each sample."""

    value: Any
    kind: str


def whole_batch(value: Any) -> Any:
    """Marks a tensor (or any structure of tensors) of ``conditions=`` as one for the whole batch, without a batch dimension.

    Such are the positions of a transformer's tokens [L, C], and scalars.
    """
    return _Marked(value, "shared")


def stacked(value: Any) -> Any:
    """Marks tensors [P, k, ...] of ``conditions=`` as passed as [N·k, ...], such as AnimateDiff's text for each frame."""
    return _Marked(value, "stacked")


@dataclass
class Found:
    """A call's form; ``unsettled`` has the lengths of tensors that may be for the whole batch, or several for each sample."""

    form: CallForm
    unsettled: dict[str, int] = field(default_factory=dict)


def described(module: nn.Module, named: Mapping[str, Any], *, batch: int, before: tuple[Mapping[str, int], int] | None = None) -> Found:
    """The form of a call with the arguments ``named`` by parameter, at a batch of this size.

    ``before`` is what another call, of another batch, left unsettled, and that batch: a tensor whose length is the same is one for the
    whole batch, and one whose length grows with the batch has several entries for each sample.

    Raises UsageError for an argument that is neither tensors nor numbers, text and truth values.
    """
    return _Description(module, batch, before).of(named)


def from_conditions(module: nn.Module, conditions: Mapping[str, Any]) -> tuple[CallForm, dict[str, torch.Tensor]]:
    """The form of a call with ``conditions`` whose tensors are [P, ...], and those tensors by the names that the graph has for them.

    Raises UsageError as ``described`` does, and for a condition that the forward does not take.
    """
    description = _Description(module, None, None)
    known = [p.name for p in forward_parameters(module)]
    nested = {name: value for name, value in conditions.items() if name not in known}
    named = {name: value for name, value in conditions.items() if name in known}
    if nested and NESTED in known:
        named[NESTED] = {**nested, **named.get(NESTED, {})}
    elif nested and not any(p.kind == p.VAR_KEYWORD for p in forward_parameters(module)):
        raise UsageError(f"{type(module).__name__}.forward takes no {', '.join(nested)}; it takes {', '.join(known)}")
    else:
        named |= nested
    found = description.of({known[0]: None, **named})
    return found.form, description.tensors


class _Description:
    def __init__(self, module: nn.Module, batch: int | None, before: tuple[Mapping[str, int], int] | None) -> None:
        """``batch`` None: every tensor is [P, ...] unless it is marked."""
        self.module, self.batch, self.before = module, batch, before
        self.parameters = [p.name for p in forward_parameters(module)]
        self.tensors: dict[str, torch.Tensor] = {}
        self.unsettled: dict[str, int] = {}
        self.sample_list = False

    def of(self, named: Mapping[str, Any]) -> Found:
        """The form of the call."""
        first, timestep = self.parameters[0], timestep_of(self.module)
        defaults, arguments = plain_defaults(self.module), {}
        self.sample_list = isinstance(named[first], list | tuple) or (self.batch is None and takes_sample_list(self.module))
        if self.sample_list:
            arguments[first] = {"rows": {"input": first}}
        for name, value in named.items():
            if name in (first, timestep, TIMESTEP, RETURN_DICT) or _empty(value):
                continue
            if name in defaults and equal(value, defaults[name]):
                continue
            tree = self._tree(value, name, () if name == NESTED else (name,))
            if tree != {"input": name}:
                arguments[name] = tree
                defaults.pop(name, None)
        return Found(CallForm(tuple(positional(self.module)), timestep, arguments, defaults), self.unsettled)

    def _tree(self, value: Any, parameter: str, path: tuple[str, ...], kind: str | None = None) -> Tree:
        if isinstance(value, _Marked):
            return self._tree(value.value, parameter, path, value.kind)
        if isinstance(value, torch.Tensor):
            tree = self._tensor(value, parameter, path, kind)
            return {"rows": tree} if self.sample_list and self.batch is None and set(tree) == {"input"} else tree
        if isinstance(value, Mapping):
            return {"dict": [[self._key(key, path), self._tree(inner, parameter, (*path, str(key)), kind)] for key, inner in value.items()]}
        if isinstance(value, list) and len(path) == 1 and (parameter in _LISTS or self.sample_list) and self.batch == len(value):
            return {"rows": self._sample(value, parameter, path)}
        if isinstance(value, list | tuple):
            parts = [self._tree(inner, parameter, (*path, str(i)), kind) for i, inner in enumerate(value)]
            return {"list" if isinstance(value, list) else "tuple": parts}
        if isinstance(value, SCALARS) and not (isinstance(value, float) and not math.isfinite(value)):
            return {"constant": value}
        raise self._no_argument(path, value)

    def _sample(self, value: list[Any], parameter: str, path: tuple[str, ...]) -> Tree:
        first = value[0]
        if isinstance(first, torch.Tensor):
            name = self._name(parameter, path)
            self.tensors[name] = first[None]
            return {"input": name}
        if any(inner != first for inner in value[1:]):
            raise self._no_argument(path, value)
        return self._tree(first, parameter, (*path, "0"))

    def _key(self, key: Any, path: tuple[str, ...]) -> str | int:
        if isinstance(key, str | int):
            return key
        raise self._no_argument(path, key)

    def _tensor(self, value: torch.Tensor, parameter: str, path: tuple[str, ...], kind: str | None) -> Tree:
        if value.is_complex():
            raise self._no_argument(path, value)
        name = self._name(parameter, path)
        tree = {"input": name, **self._kind(name, value, parameter, kind)}
        # One for the whole batch stands for every sample, as all others are [P, ...].
        self.tensors[name] = value[None] if value.dim() == tree.get("shared") else value
        return tree

    def _kind(self, name: str, value: torch.Tensor, parameter: str, kind: str | None) -> Tree:
        """What beside its name says how the network gets a tensor."""
        whole = {"shared": value.dim()}
        if kind is not None:
            return whole if kind == "shared" else {"stacked": value.shape[1]}
        if parameter in _POSITIONS and (value.dim() <= _POSITIONS_RANK or self.batch is None):
            return {"shared": min(value.dim(), _POSITIONS_RANK)}
        if self.batch is None:
            return {}
        length = len(value) if value.dim() else 0
        if length in (1, self.batch):
            return {}
        if self.before is not None and length * self.before[1] == self.before[0].get(name, 0) * self.batch:
            return {"stacked": length // self.batch}
        if length and length % self.batch == 0:
            self.unsettled[name] = length
        return whole

    def _name(self, parameter: str, path: tuple[str, ...]) -> str:
        """The graph's name of a tensor: its place, joined by underscores. Entries of ``added_cond_kwargs`` go by their own names."""
        name = "_".join("".join(c if c.isalnum() else "_" for c in part) for part in path)
        for candidate in (name, f"{parameter}_{name}"):
            taken = candidate in self.tensors or (candidate in self.parameters and (candidate,) != (parameter,)) or candidate == TIMESTEP
            if not taken:
                return candidate
        raise self._no_argument(path, "another tensor of the same name")

    def _no_argument(self, path: tuple[str, ...], value: Any) -> UsageError:
        return UsageError(
            f"{type(self.module).__name__} is called with {'.'.join(path)} = {shown(value)}, which is neither tensors nor numbers and text",
            "a graph has tensors with a batch dimension as inputs, and everything else as it is in the calibration",
        )


def _empty(value: Any) -> bool:
    return value is None or (isinstance(value, Mapping | list | tuple) and not value)
