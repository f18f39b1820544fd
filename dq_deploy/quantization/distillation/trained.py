"""Which parameters a block's distillation moves, how fast, and their states."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule

from ...errors import UsageError, did_you_mean
from ..config import QuantizeConfig
from ..graph.blocks import Block
from ..graph.insertion import decode, encode
from ..graph.skip_halves import name_matches
from ..methods.method import ROLES
from ..quantizers import ActivationQuantizer
from ..weights import QuantizedLayer
from .optimizers import TableAdam

State = dict[str, torch.Tensor]
"""Trained parameters under their names in the quantized graph."""


def check_patterns(patterns: Sequence[str], layers: Mapping[str, Collection[str]]) -> None:
    """Raise UsageError naming every pattern of ``train`` that matches no quantized layer; ``layers`` are their roles by name.

    A network may have no layer of one role (feed-forward layers, say), but some layer must match.
    """
    missing = [p for p in patterns if not any(_matches(p, name, roles) for name, roles in layers.items())]
    if set(missing) - ROLES or len(missing) == len(patterns):
        example = ", ".join(list(layers)[:8])
        near = did_you_mean(missing, [*layers, *ROLES])
        raise UsageError(
            f"no quantized layer matches {', '.join(map(repr, missing))} of train", f"{near}layers are named like: {example}, …"
        )


def _matches(pattern: str, name: str, roles: Collection[str]) -> bool:
    return pattern in roles or name_matches(name, pattern)


def selected(graph_module: GraphModule, patterns: Sequence[str]) -> tuple[set[str], set[str]]:
    """Names of the layers that match a pattern, and of the quantizers that they read.

    Raises UsageError when a pattern matches nothing.
    """
    calls = [n for n in graph_module.graph.nodes if n.op == "call_module" and str(n.target).startswith("layers.")]
    roles = {decode(str(n.target)): n.meta.get("roles", ()) for n in calls}
    check_patterns(patterns, roles)
    matching = [n for n in calls if any(_matches(p, name, roles[name]) for p in patterns for name in [decode(str(n.target))])]
    quantizers = {decode(str(a.target)) for n in matching for a in n.all_input_nodes if "quantizer" in a.meta}
    return {decode(str(n.target)) for n in matching}, quantizers


@dataclass(frozen=True)
class TrainedParts:
    """The modules of one block that are trained, under their names in the graph."""

    layers: dict[str, QuantizedLayer]
    quantizers: dict[str, ActivationQuantizer]

    @classmethod
    def of(cls, block: Block, layers: set[str], quantizers: set[str]) -> TrainedParts:
        """Those of a block that have something to train and whose names are among ``layers`` and ``quantizers``."""
        modules: dict[str, Any] = dict(block.module.named_modules())
        weighted = {target: modules[target] for name in block.layers if name in layers for target in [f"layers.{encode(name)}"]}
        tables = {target: modules[target] for name in block.quantizers if name in quantizers for target in [f"quantizers.{encode(name)}"]}
        return cls({t: x for t, x in weighted.items() if list(x.parameters())}, {t: x for t, x in tables.items() if x.trained()})

    def __bool__(self) -> bool:
        return bool(self.layers or self.quantizers)

    def dense(self) -> dict[str, torch.nn.Parameter]:
        """Weights [O, ...], their log-scales [O] and biases [O]."""
        return {f"{t}.{name}": p for t, layer in self.layers.items() for name, p in layer.named_parameters()}

    def tables(self) -> dict[str, torch.nn.Parameter]:
        """What the quantizers train, [T, 1] each: log-scales, zero-points."""
        return {f"{t}.{name}": part.parameter for t, quantizer in self.quantizers.items() for name, part in quantizer.trained().items()}

    def parameters(self) -> list[torch.nn.Parameter]:
        """Everything that is trained."""
        return [*self.dense().values(), *self.tables().values()]

    def state(self) -> State:
        """A copy of every trained parameter."""
        return {name: p.detach().clone() for name, p in (self.dense() | self.tables()).items()}

    @torch.no_grad()
    def restore(self, state: State) -> None:
        """Go back to a state."""
        for name, parameter in (self.dense() | self.tables()).items():
            parameter.copy_(state[name])

    @contextmanager
    def training(self) -> Iterator[None]:
        """Gradients for these parameters, and for no others if the model has them off."""
        parameters = self.parameters()
        try:
            for parameter in parameters:
                parameter.requires_grad_(True)
            yield
        finally:
            for parameter in parameters:
                parameter.requires_grad_(False)
                parameter.grad = None

    def adam(self, config: QuantizeConfig) -> torch.optim.Adam | None:
        """Optimizer of the dense parameters, at the rates of the first step; None without any."""
        groups = [group for layer in self.layers.values() for group in layer.parameter_groups(config)]
        return torch.optim.Adam(groups, fused=True) if groups else None

    def table_adam(self, config: QuantizeConfig) -> TableAdam:
        """Optimizer of the tables."""
        trained = [part for quantizer in self.quantizers.values() for part in quantizer.trained().values()]
        return TableAdam({part.parameter: config.lr_scale * part.rate for part in trained})
