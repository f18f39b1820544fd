"""Leaving convolutions in float where ONNX Runtime has no integer kernel that is faster: the checkpoint's weights, activations as they are.

The same rewritten checkpoint is what the graph is exported from and what the exported bundle is judged against, as for attention.
"""

from __future__ import annotations

from collections.abc import Collection
from copy import deepcopy
from typing import Any, Literal

import torch
from torch.fx import Node

from ..errors import ArtifactError
from ..formats import FP16
from ..quantization.checkpoint import Checkpoint
from ..quantization.graph.insertion import decode
from ..quantization.graph.modules import layer_calls
from ..quantization.initial.dilation import dilate
from ..quantization.quantizers import ActivationQuantizer
from ..quantization.weights import QuantizedConv2d, QuantizedLayer, WeightOnlyConv2d
from .attention import rewritten

Convolutions = Literal["auto", "integer", "float"]
CONVOLUTIONS = ("auto", "integer", "float")
_LEAST_CHANNELS = 32  # docs/decisions/onnxruntime-convolutions.md: of 16 an integer product takes 1.1 to 1.9 of the float one's time


def in_float(checkpoint: Checkpoint, choice: Convolutions) -> list[str]:
    """Names of the quantized convolutions that a choice leaves in float."""
    names = [name for name, layer in checkpoint.layers.items() if _quantized(layer)]
    return {"float": names, "auto": [name for name in names if _slow(checkpoint.layers[name])], "integer": []}[choice]


def _quantized(layer: QuantizedLayer) -> bool:
    return isinstance(layer, QuantizedConv2d) and not layer.weight_only


def _slow(layer: QuantizedLayer) -> bool:
    """Whether an integer product takes longer than the float convolution: few channels to copy at a time, or none to sum over."""
    assert isinstance(layer, QuantizedConv2d)
    return layer.groups > 1 or layer.stored.codes.shape[1] < _LEAST_CHANNELS


def float_convolutions(checkpoint: Checkpoint, names: Collection[str]) -> Checkpoint:
    """A copy of the checkpoint in which these convolutions take their activations unquantized; its manifest says so too.

    Raises ArtifactError for a name that is not a quantized convolution.
    """
    layers = checkpoint.layers
    if unknown := sorted(name for name in names if name not in layers or not _quantized(layers[name])):
        raise ArtifactError(f"the checkpoint has no quantized convolution {', '.join(unknown[:5])}", "export the bundle again")
    model = deepcopy(checkpoint.model)
    for node, layer in layer_calls(model):
        if decode(str(node.target)) in names:
            (quantizer,) = node.args
            assert isinstance(layer, QuantizedConv2d)
            assert isinstance(quantizer, Node)
            read = model.get_submodule(str(quantizer.target))
            assert isinstance(read, ActivationQuantizer)
            model.set_submodule(str(node.target), _unquantized(layer, read.dilation))
            node.args = quantizer.args[:1]
    return rewritten(checkpoint, model, _details(checkpoint.artifact.manifest.details, names))


class _UndividedConv2d(WeightOnlyConv2d):
    """Of codes of a dilated weight s ∘ W, for an activation that no quantizer has divided by s."""

    divisors: torch.Tensor

    def unpacking(self) -> torch.Tensor:
        """What the codes are multiplied with: [O, C/g, 1, 1], the scales divided by s again."""
        codes, _ = self.integer_weight()
        return super().unpacking() * dilate(torch.ones_like(codes[:, :, :1, :1]), 1 / self.divisors)


def _unquantized(layer: QuantizedConv2d, dilation: torch.Tensor) -> WeightOnlyConv2d:
    codes, scale = layer.stored
    dilated = bool((dilation != 1).any())
    made = (_UndividedConv2d if dilated else WeightOnlyConv2d)(codes, layer.bias, layer.format, **layer.geometry)
    made.set_frozen(codes, scale)
    if dilated:
        made.register_buffer("divisors", dilation.clone())
    return made


def _details(details: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    """The manifest's details with those layers' activations as float ones, and without the quantizers that only they read."""
    moved = {"quantizers": [], "activation_bits": FP16.bits}
    layers = [{**layer, **moved} if layer["name"] in names else layer for layer in details["layers"]]
    used = {name for layer in layers for name in layer["quantizers"]}
    return {**details, "layers": layers, "quantizers": [entry for entry in details["quantizers"] if entry["name"] in used]}
