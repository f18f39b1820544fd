"""The bits that a model's layers have: the preset is what was asked for, and ``keep`` or a budget may have given many of them others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .manifest import Manifest

FLOAT_BITS, MOST_INTEGER_BITS = 16, 8
_WORTH_SAYING = 0.02  # of the multiply-accumulates: less is the last layer, which has 8 bits in every preset


Layer = Mapping[str, Any]
"""An entry of a manifest's ``layers`` or ``float_layers``."""


def share_of_work(layers: Iterable[Layer], counts: Callable[[Layer], bool]) -> float:
    """The share of the layers' multiply-accumulates in those that count; 0 where there are none."""
    layers = list(layers)
    total = sum(layer["macs"] for layer in layers)
    return sum(layer["macs"] for layer in layers if counts(layer)) / total if total else 0.0


def wider_weights(layer: Layer, bits: int) -> bool:
    """Whether a layer's weight has more bits than these; a product of two activations has none."""
    return (layer.get("weight_bits") or 0) > bits


def integer_activations(layer: Layer) -> bool:
    """Whether a layer multiplies integers: one that does not say how wide its activations are was left in float."""
    return bool(layer.get("activation_bits", FLOAT_BITS) <= MOST_INTEGER_BITS)


def layer_bits(manifest: Manifest) -> list[dict[str, Any]]:
    """``weight_bits``, ``activation_bits`` and ``share`` of the multiply-accumulates of layers with a weight, the largest share first.

    An engine's manifest has this list as it was made from the bundle's; where no layer is listed, the preset has all. Empty for floats.
    """
    if not manifest.quantization:
        return []
    found = manifest.details.get("layer_bits")
    if found is None:
        layers = [layer for layer in manifest.details.get("layers", []) if layer.get("weight_bits")]
        total = sum(layer["macs"] for layer in layers)
        work: dict[tuple[int, int], int] = {}
        for layer in layers:
            key = layer["weight_bits"], layer.get("activation_bits", manifest.quantization["activation_bits"])
            work[key] = work.get(key, 0) + layer["macs"]
        found = [{"weight_bits": w, "activation_bits": a, "share": macs / total} for (w, a), macs in work.items()] if total else []
    preset = {key: manifest.quantization[key] for key in ("weight_bits", "activation_bits")} | {"share": 1.0}
    return sorted(found, key=lambda row: -row["share"]) or [preset]


def bits_worth_saying(manifest: Manifest) -> list[dict[str, Any]]:
    """Those of ``layer_bits`` that do enough of the work to be named beside the first."""
    return [row for index, row in enumerate(layer_bits(manifest)) if not index or row["share"] >= _WORTH_SAYING]


def bits_label(manifest: Manifest) -> str | None:
    """As people write it, of the bits that do most of the work: W8A8. None for a float model."""
    rows = layer_bits(manifest)
    return _label(rows[0]) if rows else None


def bits_in_words(manifest: Manifest) -> str | None:
    """The label, with what part of the work is at other bits: "W4A8, 31% at W8A8"; None for a float model."""
    rows = bits_worth_saying(manifest)
    others = [f"{row['share']:.0%} at {_label(row)}" for row in rows[1:]]
    return ", ".join([_label(rows[0]), *others]) if rows else None


def _label(row: Mapping[str, Any]) -> str:
    return f"W{row['weight_bits']}A{row['activation_bits']}"
