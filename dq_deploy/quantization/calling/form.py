"""A network's arguments: those that are plain tensors need no word, all others are described."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ...errors import UsageError
from .tree import Tree, build, equal, input_names, match, none_in, nothing, plain, shown

TIMESTEP = "timestep"
NESTED = "added_cond_kwargs"
"""The dictionary of diffusers' UNets, whose entries are inputs under their own names (SDXL's ``text_embeds`` and ``time_ids``)."""
SHARED_RANK = {"img_ids": 2, "txt_ids": 2}
"""Positions of FLUX's tokens [L, 3]: one for the whole batch, in artefacts that do not say so themselves too."""
_TIMESTEPS = (TIMESTEP, "timesteps", "timestep_ratio", "t", "time", "sigma", "noise_level")
RETURN_DICT = "return_dict"  # says how the output comes back, and not what it is


def forward_parameters(module: nn.Module) -> list[inspect.Parameter]:
    """Parameters of the module's forward."""
    return list(inspect.signature(module.forward).parameters.values())


def positional(module: nn.Module) -> list[str]:
    """Names of the parameters that may be given by position."""
    return [p.name for p in forward_parameters(module) if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def timestep_of(module: nn.Module) -> str:
    """What the module's forward calls its timestep: one of the usual names, or its second parameter.

    Raises UsageError for a forward of fewer than two parameters.
    """
    names = positional(module)
    if len(names) < 2:
        raise UsageError(f"{type(module).__name__}.forward takes {names}: a diffusion model takes (sample, timestep, ...)")
    return next((name for name in _TIMESTEPS if name in names[1:]), names[1])


def plain_defaults(module: nn.Module) -> dict[str, Any]:
    """What the forward's options are where they are not given: numbers, text, truth values and lists of these, as JSON has them."""
    defaults = {p.name: plain(p.default) for p in forward_parameters(module) if p.default is not p.empty and p.name != RETURN_DICT}
    return {name: value for name, value in defaults.items() if value is not None and not isinstance(value, dict)}


@dataclass(frozen=True)
class CallForm:
    """How a graph's inputs, which are tensors [N, ...] by name, are the arguments of its network.

    ``parameters`` are those that may be given by position, in their order, ``timestep`` what the timestep is called among them.
    ``arguments`` has the structure of every argument that is more than one tensor with a batch dimension (see ``tree``); ``defaults`` are
    options of the forward that were left as they are.
    """

    parameters: tuple[str, ...]
    timestep: str = TIMESTEP
    arguments: Mapping[str, Tree] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def plain(cls, module: nn.Module, conditions: Sequence[str] = ()) -> CallForm:
        """Every condition a tensor of its own. What the forward has no parameter for goes into ``added_cond_kwargs`` where it has that."""
        names = [p.name for p in forward_parameters(module)]
        arguments: dict[str, Tree] = {
            name: {"input": name, "shared": rank} for name, rank in SHARED_RANK.items() if name in conditions and name in names
        }
        if NESTED in names and (foreign := [name for name in conditions if name not in names]):
            arguments[NESTED] = {"dict": [[name, {"input": name}] for name in sorted(foreign)]}
        return cls(tuple(positional(module)), timestep_of(module), arguments, plain_defaults(module))

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> CallForm:
        """From what a manifest holds."""
        return cls(tuple(record["parameters"]), record["timestep"], record["arguments"], record["defaults"])

    def record(self, inputs: Sequence[str]) -> dict[str, Any] | None:
        """What a manifest is to hold; None where the ``inputs`` are the first arguments, all of them plain."""
        known = {name: tree for name, tree in self.arguments.items() if tree != {"input": name, "shared": SHARED_RANK.get(name)}}
        if not known and not self.defaults and tuple(inputs) == self.parameters[: len(inputs)]:
            return None
        return {
            "parameters": list(self.parameters),
            "timestep": self.timestep,
            "arguments": dict(self.arguments),
            "defaults": dict(self.defaults),
        }

    def order(self, module: nn.Module, conditions: Sequence[str]) -> list[str]:
        """The graph's inputs in the order of the forward: ``conditions``, and before or among them the sample and the timestep."""
        names = [p.name for p in forward_parameters(module)]
        home = {inner: name for name, tree in self.arguments.items() for inner in input_names(tree) if name != NESTED}
        place = {name: index for index, name in enumerate(names)}
        place[TIMESTEP] = place[self.timestep]

        def rank(name: str) -> int:
            return place.get(home.get(name, name), len(place)) if name not in self._nested else len(place)

        return [names[0], *sorted([TIMESTEP, *conditions], key=rank)]

    @property
    def sample_list(self) -> bool:
        """Whether the network takes its batch as a list of samples."""
        return "rows" in self.arguments.get(self.parameters[0], {})

    @property
    def inside(self) -> set[str]:
        """The graph's inputs that are in an argument of another structure than one tensor [N, ...]."""
        return {name for tree in self.arguments.values() for name in input_names(tree)}

    @property
    def _nested(self) -> set[str]:
        return set(input_names(self.arguments[NESTED])) if NESTED in self.arguments else set()

    def call(self, module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> Any:
        """The module's own output for the graph's inputs [N, ...] by name."""
        named = dict(tensors)
        batch = named[self.parameters[0]].shape[0]
        size = batch if isinstance(batch, int) else 2  # the graph is captured at 2, and what is equal for all may be as long as it likes
        built = {name: build(tree, named, size) for name, tree in self.arguments.items()}
        first = self.parameters[0]
        sample = built.pop(first) if first in built else named[first]
        rest = {name: value for name, value in named.items() if name not in self.inside and name not in (first, TIMESTEP)} | built
        if self.parameters[1:2] == (self.timestep,) and self.timestep != TIMESTEP:
            return module(sample, named[TIMESTEP], **rest)
        return module(sample, **rest, **{self.timestep: named[TIMESTEP]})

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any], inputs: Sequence[str] | None = None) -> dict[str, Any]:
        """The graph's ``inputs`` by name (None: whatever there is), out of the arguments of a call of its network.

        Raises UsageError for an argument that the graph does not have, is given twice, or was made with otherwise.
        """
        given = self._named(args, kwargs, inputs)
        first = self.parameters[0]
        if given.get(first) is None:
            raise UsageError(f"input '{first}' is missing")
        batch = _batch(given[first])
        found: dict[str, Any] = {}
        unknown: list[str] = []
        for name, value in given.items():
            if name in self.arguments:
                if not (none_in(value) and nothing(self.arguments[name])):
                    found |= match(self.arguments[name], value, name, batch)
            elif name in self.defaults:
                _check_default(name, value, self.defaults[name])
            elif not none_in(value):
                named = {TIMESTEP if name == self.timestep else name: value}
                # Pipelines hand some conditions over in a dictionary: in a bundle without a description their names say where they belong.
                named = {k: v for k, v in value.items() if v is not None} if isinstance(value, Mapping) else named
                if twice := sorted(named.keys() & found.keys()):
                    raise _twice(twice[0], inputs or self.parameters)
                unknown += [inner for inner in named if inputs is not None and inner not in inputs]
                found |= named
        if unknown and inputs is not None:
            raise UsageError(f"this model was exported without {', '.join(sorted(unknown))}; it takes {', '.join(inputs)}")
        absent = {name: tree for name, tree in self.arguments.items() if name not in given and not nothing(tree)}
        if absent:
            missing = [f"{name}={tree['constant']!r}" if "constant" in tree else name for name, tree in absent.items()]
            raise UsageError(f"this model is called with {', '.join(missing)}, which is missing")
        return found

    def _named(self, args: Sequence[Any], kwargs: Mapping[str, Any], inputs: Sequence[str] | None) -> dict[str, Any]:
        taken = list(self.parameters)
        if len(args) > len(taken):
            raise UsageError(f"{len(args)} inputs were given, and this model takes {', '.join(inputs or taken)}")
        given = dict(zip(taken, args, strict=False))
        alias = {TIMESTEP: self.timestep} if self.timestep != TIMESTEP and self.timestep not in kwargs else {}
        named = {alias.get(name, name): value for name, value in kwargs.items()}
        if twice := [name for name in named if name in given]:
            raise _twice(twice[0], inputs or taken)
        return {name: value for name, value in (given | named).items() if name != RETURN_DICT}


def _batch(sample: Any) -> int:
    return len(sample) if not isinstance(sample, torch.Tensor) or sample.dim() else 1


def _twice(name: str, inputs: Sequence[str]) -> UsageError:
    return UsageError(f"input '{name}' is given twice", f"inputs in their order: {', '.join(inputs)}")


def _check_default(name: str, value: Any, default: Any) -> None:
    if not none_in(value) and not equal(value, default):
        raise UsageError(f"{name} is {shown(value)}, and the graph was made with {default!r}", f"leave it out, or quantize with {name}")
