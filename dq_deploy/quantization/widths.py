"""Checkpoints of several widths: of codes of 8 bits, the most significant ones are the codes of fewer bits (``config.matryoshka``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from typing import Any

from torch import nn
from torch.fx import GraphModule

from ..artifacts.details import WidthChoice
from ..artifacts.final_error import FinalError
from ..errors import ArtifactError, UsageError
from ..formats import layer_bytes, of_bits
from .checkpoint import Checkpoint
from .graph.modules import named_weights
from .graph.rotation import ROTATION
from .output_bias import output_bias
from .weights import QuantizedWeight

Width = int | Mapping[str, int]
"""Bits of all weights that can be sliced, or of each by its layer."""
_CONSTANT_BYTES = 2  # of what no layer has: embeddings, norms; fp16 in an engine


def nested_layers(model: nn.Module) -> dict[str, QuantizedWeight]:
    """The layers whose weights can be sliced, by name."""
    return {name: layer for name, layer in named_weights(model).items() if layer.widths}


@contextmanager
def at_width(model: nn.Module, width: Width | None, error_share: Mapping[str, float] | None = None) -> Iterator[None]:
    """Let the weights of ``model`` that can be sliced have so many bits, in place; None: all their bits.

    ``error_share`` as in ``WidthChoice``, where it is known.
    """
    layers, correction = nested_layers(model), output_bias(model)
    bits = _by_layer(layers, width) if width is not None else {}
    for name, layer in layers.items():
        layer.width = bits.get(name)
    if correction is not None and bits:
        correction.parts = _parts(layers, bits, error_share)
    try:
        yield
    finally:
        for layer in layers.values():
            layer.width = None
        if correction is not None:
            correction.parts = {}


def sliced(checkpoint: Checkpoint, width: Width, choice: WidthChoice | None = None) -> Checkpoint:
    """A copy of a checkpoint with weights of one width, or of one for each layer; its manifest says so too, and what ``choice`` chose it.

    Raises UsageError where the checkpoint has no such width, ArtifactError where ``width`` names other layers than those of the checkpoint.
    """
    _check_width(checkpoint, width)
    model = deepcopy(checkpoint.model)
    layers = nested_layers(model)
    bits = _by_layer(layers, width)
    if (correction := output_bias(model)) is not None:
        correction.take(_parts(layers, bits, choice.error_share if choice else None))
    for name, layer in layers.items():
        layer.slice(bits[name])
    artifact = checkpoint.artifact
    manifest = artifact.manifest
    options = {**(manifest.quantization or {}), **({"weight_bits": width} if isinstance(width, int) else {})}
    changed = manifest.model_copy(update={"details": _details(manifest.details, width, bits, choice), "quantization": options})
    return replace(checkpoint, artifact=replace(artifact, manifest=changed), model=model)


def weights_bytes(model: GraphModule, width: Width | None = None) -> int:
    """Bytes of a frozen model's weights, scales, biases and constants in an engine, at one width; None: all bits."""
    nested = nested_layers(model)
    bits = _by_layer(nested, width) if width is not None else {}
    total = 0
    for name, layer in named_weights(model).items():
        codes, scale = layer.stored
        fmt = of_bits(bits[name]) if name in bits else layer.format
        total += layer_bytes(fmt, codes.numel(), len(codes) if fmt.block else scale.numel())
    return total + _CONSTANT_BYTES * constants(model)


def constants(model: GraphModule) -> int:
    """How many numbers a quantized graph holds that are of no layer and no table."""
    return sum(_constants(model).values())


def _constants(model: GraphModule) -> dict[str, int]:
    kept = {str(node.target) for node in model.graph.nodes if node.op == "get_attr"}
    return {name: tensor.numel() for name in kept if (tensor := model.get_buffer(name)).is_floating_point()}


def parameters(model: GraphModule) -> int:
    """How many numbers the float network has: weights, biases and constants, without the rotations that quantizing added."""
    total = sum(count for name, count in _constants(model).items() if ROTATION not in name)
    layers = named_weights(model).values()
    return total + sum(layer.stored.codes.numel() + (0 if layer.bias is None else layer.bias.numel()) for layer in layers)


def check_several(checkpoint: Checkpoint) -> list[int]:
    """The widths of a checkpoint, descending. Raises UsageError where it has one."""
    known = [record.weight_bits for record in checkpoint.details.widths]
    if not known:
        raise UsageError(
            f"{checkpoint.artifact.path} has weights of one width, which nothing can be sliced from", "quantize with --matryoshka 8,6,4,3"
        )
    return known


def _check_width(checkpoint: Checkpoint, width: Width) -> None:
    path, known = checkpoint.artifact.path, check_several(checkpoint)
    asked = {width} if isinstance(width, int) else {*width.values()}
    if unknown := sorted(asked - {*known}, reverse=True):
        raise UsageError(
            f"{path} has weights of {_listed(known)} bits, not of {_listed(unknown)}", "choose one of these, or quantize for others"
        )
    if isinstance(width, Mapping) and {*width} != {*nested_layers(checkpoint.model)}:
        raise ArtifactError(f"{path} does not have the layers whose widths were chosen", "export the bundle again")


def _listed(bits: list[int]) -> str:
    *most, last = map(str, bits)
    return f"{', '.join(most)} and {last}" if most else last


def _by_layer(layers: Mapping[str, QuantizedWeight], width: Width) -> dict[str, int]:
    return dict.fromkeys(layers, width) if isinstance(width, int) else dict(width)


def _parts(layers: Mapping[str, QuantizedWeight], bits: Mapping[str, int], error_share: Mapping[str, float] | None) -> dict[int, float]:
    """Of the error that narrowing all weights adds, the part of those that have so many bits; of all weights, where that is not known.

    The mean error of the output is that of these parts: few weights can have most of it (docs/decisions/widths.md).
    """
    counts = {name: (error_share or {}).get(name, 0.0) for name in layers}
    if not any(counts.values()):
        counts = {name: float(layer.stored.codes.numel()) for name, layer in layers.items() if layer.frozen is not None}
    found: dict[int, float] = {}
    for name, count in counts.items():
        found[bits[name]] = found.get(bits[name], 0.0) + count
    return {width: count / sum(counts.values()) for width, count in found.items()}


def _details(details: dict[str, Any], width: Width, bits: Mapping[str, int], choice: WidthChoice | None) -> dict[str, Any]:
    """The manifest's details, without what was measured at all bits."""

    def of(layer: dict[str, Any]) -> dict[str, Any]:
        kept = {key: value for key, value in layer.items() if key != "widths"}
        return {**kept, "weight_bits": bits[layer["name"]]} if layer["name"] in bits else layer

    left = {key: value for key, value in details.items() if key not in ("widths", "clipped")}
    unknown = FinalError(not_measured="the checkpoint was sampled to the end with all bits of its weights alone")
    return {
        **left,
        "layers": [of(layer) for layer in details["layers"]],
        "width": width if isinstance(width, int) else dict(width),
        "final_error": unknown.model_dump(),
        **({"width_choice": choice.model_dump()} if choice else {}),
    }
