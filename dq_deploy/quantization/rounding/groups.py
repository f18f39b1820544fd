"""Which layers are rounded together: those that multiply the same values in the same way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch.fx import GraphModule, Node

from ...formats import NumberFormat
from ...formats.codebook import Codebook
from .. import numerics
from ..config import QuantizeConfig
from ..graph.insertion import decode, float_name
from ..graph.modules import layer_calls
from ..graph.products import frames_of
from ..quantizers import ActivationQuantizer
from ..weights import QuantizedWeight
from ..weights.base import MOST_INPUTS


@dataclass
class Group:
    """Layers that read the value ``source`` of the float graph through one quantizer (None: as it is), at the same positions.

    Their outputs do not meet, so their weights are rounded as one with more outputs. ``first`` is the node of the first of them, and
    ``frames`` of a sample lie in the batch of what they read.
    """

    source: str
    quantizer: ActivationQuantizer | None
    first: Node
    layers: dict[str, QuantizedWeight] = field(default_factory=dict)
    frames: int = 1

    @property
    def name(self) -> str:
        """That of the first layer."""
        return next(iter(self.layers))

    @property
    def codebook(self) -> Codebook | None:
        """That its layers' weights are made of; None: each weight has a code of its own."""
        return next(iter(self.layers.values())).codebook

    @property
    def format(self) -> NumberFormat:
        """Whose grid their weights are rounded to; of integers of several widths, one of them."""
        return next(iter(self.layers.values())).format

    @property
    def widths(self) -> tuple[int, ...]:
        """Bits to which the layers' codes may be sliced; the same of all."""
        return next(iter(self.layers.values())).widths

    @property
    def parts(self) -> int:
        """Into how many the inputs of a row are divided, so that none has more than ``MOST_INPUTS``: errors are made good within one."""
        shape = next(iter(self.layers.values())).matrix().shape
        channels, inputs = shape[1], shape[1:].numel()
        whole = (n for n in range(1, channels) if channels % n == 0)
        return next((n for n in whole if inputs // n <= MOST_INPUTS), channels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """[G, R, K]: weights of G independent parts, each with R rows of K inputs."""
        parts, outputs, inputs = self.stacked(QuantizedWeight.matrix).shape
        return parts, outputs, inputs

    def value(self, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """What the weights are multiplied with, of the source's x [N·frames, ...] at timesteps [N]: as they read it, quantized."""
        if self.quantizer is None:
            return x
        codes, scale = self.quantizer(x, timestep)
        value: torch.Tensor = codes * numerics.per_sample(scale, codes)
        return value

    def power(self, value: torch.Tensor) -> float:
        """Mean square of the layers' outputs for ``value`` [N, ...], before any rounding of weights."""
        outputs = [layer.float_product(value, layer.matrix()) for layer in self.layers.values()]
        return sum(float(y.double().pow(2).sum()) for y in outputs) / sum(y.numel() for y in outputs)

    def columns(self, value: torch.Tensor) -> torch.Tensor:
        """What the weights are multiplied with: [G, N, P, K] for P positions of each of N samples, its frames' together."""
        footprint = next(iter(self.layers.values())).footprint
        assert footprint is not None
        columns: torch.Tensor = footprint.columns(value).unflatten(3, (self.parts, -1))  # [g, N·frames, P, parts, K]
        columns = columns.unflatten(1, (-1, self.frames)).flatten(2, 3)
        return columns.permute(0, 3, 1, 2, 4).flatten(0, 1)

    def settled(self, scale: torch.Tensor) -> torch.Tensor:
        """Scales as near to ``scale`` [G, R, K] as a checkpoint of these layers stores them."""
        stored: torch.Tensor = next(iter(self.layers.values())).settled(scale.float()).double()
        return stored

    def stacked(self, of: Callable[[QuantizedWeight], torch.Tensor]) -> torch.Tensor:
        """What ``of`` gives for each layer, one number a weight, as [G, R, K]."""
        return torch.cat([self._divided(layer, of(layer)) for layer in self.layers.values()], dim=1)

    def unstacked(self, values: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """[G, R, K] of all layers as each layer's own [g, O/g, parts · K]."""
        return self.of_outputs(values.unflatten(0, (-1, self.parts)).transpose(1, 2).flatten(2))

    def of_outputs(self, values: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """What there is for each output of all layers [g, R, ...], as each layer's own [g, O/g, ...]."""
        counts = [len(layer.matrix()) // layer.groups for layer in self.layers.values()]
        return dict(zip(self.layers, values.split(counts, dim=1), strict=True))

    def _divided(self, layer: QuantizedWeight, values: torch.Tensor) -> torch.Tensor:
        flat: torch.Tensor = values.reshape(layer.groups, len(layer.matrix()) // layer.groups, self.parts, -1)  # [g, O/g, parts, K]
        return flat.transpose(1, 2).flatten(0, 1)


def groups_of(quantized: GraphModule, config: QuantizeConfig) -> list[Group]:
    """The groups of layers that ``config`` rounds by GPTQ and that are not frozen, in the order of their first layers in the graph."""
    found: dict[object, Group] = {}
    for node, layer in layer_calls(quantized) if config.rounds_by_gptq else ():
        if not isinstance(layer, QuantizedWeight) or layer.footprint is None or layer.frozen is not None:
            continue
        (call,) = node.all_input_nodes
        key = call, layer.footprint, layer.codebook, layer.format.kind, layer.widths
        if key not in found:
            quantizer = quantized.get_submodule(str(call.target)) if "quantizer" in call.meta else None
            assert quantizer is None or isinstance(quantizer, ActivationQuantizer)
            source = call.all_input_nodes[0] if quantizer else call
            found[key] = Group(float_name(source), quantizer, node, frames=frames_of(node))
        found[key].layers[decode(str(node.target))] = layer
    return list(found.values())
