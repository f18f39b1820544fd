"""The layers and quantizers of a quantized graph: by name, and where it calls them."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.fx import GraphModule, Node

from ..quantizers import ActivationQuantizer
from ..weights import QuantizedLayer, QuantizedWeight
from .insertion import decode


def named_layers(model: nn.Module) -> Iterator[tuple[str, QuantizedLayer]]:
    """Quantized layers with their names."""
    for target, module in model.named_modules():
        if isinstance(module, QuantizedLayer):
            yield decode(target), module


def named_weights(model: nn.Module) -> dict[str, QuantizedWeight]:
    """Those of them that have weights, by name."""
    return {name: layer for name, layer in named_layers(model) if isinstance(layer, QuantizedWeight)}


def named_quantizers(model: nn.Module) -> Iterator[tuple[str, ActivationQuantizer]]:
    """Quantizers with their names."""
    for target, module in model.named_modules():
        if isinstance(module, ActivationQuantizer):
            yield decode(target), module


def layer_calls(model: GraphModule) -> Iterator[tuple[Node, QuantizedLayer]]:
    """The nodes that call a layer, in order, each with it. The graph may be edited meanwhile."""
    for node in list(model.graph.nodes):
        if node.op == "call_module" and isinstance(layer := model.get_submodule(str(node.target)), QuantizedLayer):
            yield node, layer


def quantizer_calls(model: GraphModule) -> Iterator[tuple[Node, ActivationQuantizer]]:
    """Likewise the nodes that call a quantizer."""
    for node in list(model.graph.nodes):
        if node.op == "call_module" and isinstance(quantizer := model.get_submodule(str(node.target)), ActivationQuantizer):
            yield node, quantizer
