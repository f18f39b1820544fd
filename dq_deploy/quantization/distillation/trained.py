"""Which parameters a block's distillation moves, how fast, and their states."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule

from ...errors import UsageError
from ..config import QuantizeConfig
from ..graph.blocks import Block
from ..graph.insertion import decode, encode
from ..graph.skip_halves import name_matches
from ..layers import ActivationQuantizer, QuantizedWeight
from .optimizers import TableAdam

_LR_ZERO_POINT = 50.0  # zero-points move in units of codes, log-scales in units of e: their step is this much longer

State = dict[str, torch.Tensor]
"""Trained parameters under their names in the quantized graph."""


def check_patterns(patterns: Sequence[str], layers: Sequence[str]) -> None:
    """Raise UsageError naming every pattern of ``train`` that matches no quantized layer."""
    missing = [p for p in patterns if not any(name_matches(name, p) for name in layers)]
    if missing:
        example = ", ".join(layers[:8])
        raise UsageError(f"no quantized layer matches {', '.join(map(repr, missing))} of train", f"layers are named like: {example}, …")


def selected(graph_module: GraphModule, patterns: Sequence[str]) -> tuple[set[str], set[str]]:
    """Names of the layers that match a pattern, and of the quantizers that they read.

    Raises UsageError when a pattern matches nothing.
    """
    calls = [n for n in graph_module.graph.nodes if n.op == "call_module" and str(n.target).startswith("layers.")]
    check_patterns(patterns, [decode(str(n.target)) for n in calls])
    matching = [n for n in calls if any(name_matches(decode(str(n.target)), p) for p in patterns)]
    quantizers = {decode(str(a.target)) for n in matching for a in n.all_input_nodes if "quantizer" in a.meta}
    return {decode(str(n.target)) for n in matching}, quantizers


@dataclass(frozen=True)
class TrainedParts:
    """The modules of one block that are trained, under their names in the graph."""

    layers: dict[str, QuantizedWeight]
    quantizers: dict[str, ActivationQuantizer]

    @classmethod
    def of(cls, block: Block, layers: set[str], quantizers: set[str]) -> TrainedParts:
        """Those of a block whose names are among ``layers`` and ``quantizers``; constant tables never are."""
        modules = dict(block.module.named_modules())
        weighted, tables = {}, {}
        for target in (f"layers.{encode(name)}" for name in block.layers if name in layers):
            if isinstance(layer := modules[target], QuantizedWeight):
                weighted[target] = layer
        for target in (f"quantizers.{encode(name)}" for name in block.quantizers if name in quantizers):
            if isinstance(quantizer := modules[target], ActivationQuantizer) and not quantizer.fixed:
                tables[target] = quantizer
        return cls(weighted, tables)

    def __bool__(self) -> bool:
        return bool(self.layers or self.quantizers)

    def dense(self) -> dict[str, torch.nn.Parameter]:
        """Weights [O, ...], their log-scales [O] and biases [O]."""
        return {f"{t}.{name}": p for t, layer in self.layers.items() for name, p in layer.named_parameters()}

    def tables(self) -> dict[str, torch.nn.Parameter]:
        """Log-scales and zero-points [T, 1]; a symmetric quantizer's zero-point stays 0."""
        found = {}
        for target, quantizer in self.quantizers.items():
            found[f"{target}.log_scale"] = quantizer.log_scale
            if not quantizer.symmetric:
                found[f"{target}.zero_point"] = quantizer.zero_point
        return found  # type: ignore[return-value]  # parameters, declared as tensors in the layer

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
        """Optimizer of the dense parameters, at the rates of the first step; None when there are none."""
        groups: list[dict[str, Any]] = []
        for layer in self.layers.values():
            # In units of the layer's quantization step, so that one rate fits every layer and every bit-width.
            step = float(layer.log_scale.detach().exp().mean())
            groups.append({"params": [layer.weight], "lr": config.lr_weight * step})
            groups.append({"params": [layer.log_scale], "lr": config.lr_scale})
            if layer.bias is not None:
                groups.append({"params": [layer.bias], "lr": config.lr_weight * float(layer.bias.detach().abs().mean() + step)})
        return torch.optim.Adam(groups, fused=True) if groups else None

    def table_adam(self, config: QuantizeConfig) -> TableAdam:
        """Optimizer of the tables."""
        rates = {"log_scale": config.lr_scale, "zero_point": config.lr_scale * _LR_ZERO_POINT}
        return TableAdam({table: rates[name.rpartition(".")[2]] for name, table in self.tables().items()})
