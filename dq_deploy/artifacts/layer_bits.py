"""The bits that a model's layers have: the preset is what was requested, and ``keep`` or a budget may have given many of them others."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from .details import BitsOfWork, BundleDetails, CheckpointDetails, EngineDetails, Product, QuantizedLayer, ScheduleDetails
from .folder import Artifact, is_kind
from .turns import turns

_WORTH_SAYING = 0.02  # of the multiply-accumulates: less is the last layer, which has 8 bits in every preset


def fraction_of_work(layers: Iterable[Product], counts: Callable[[Product], bool]) -> float:
    """The share of the layers' multiply-accumulates in those that count; 0 without any."""
    layers = list(layers)
    total = sum(layer.macs for layer in layers)
    return sum(layer.macs for layer in layers if counts(layer)) / total if total else 0.0


def wider_weights(layer: Product, bits: int) -> bool:
    """Whether a layer's weight has more bits than these; a product of two activations has none."""
    return isinstance(layer, QuantizedLayer) and (layer.weight_bits or 0) > bits


def integer_activations(layer: Product) -> bool:
    """Whether a layer multiplies integers: one that does not say how wide its activations are was left in float."""
    return isinstance(layer, QuantizedLayer) and layer.activation_format.integer


def layer_bits(artifact: Artifact) -> list[BitsOfWork]:
    """Bits and share of the multiply-accumulates of layers with a weight, the largest share first; of a schedule its members say it.

    An engine's manifest has this list as it was made from the bundle's; where no layer is listed, the preset has all. Empty for floats.
    """
    quantization, details = artifact.manifest.quantization, artifact.details
    if not quantization or isinstance(details, ScheduleDetails):
        return []
    found: list[BitsOfWork] = []
    if isinstance(details, EngineDetails):
        found = details.layer_bits
    elif isinstance(details, BundleDetails | CheckpointDetails):
        found = _of_layers([layer for layer in details.layers if layer.weight_bits])
    bits = quantization["weight_bits"], quantization["activation_bits"]
    products = {"fp8": "fp8", "nvfp4": "fp4"}.get(quantization.get("products", ""))
    preset = BitsOfWork(weight_bits=bits[0], activation_bits=bits[1], format=products, share=1.0)
    return sorted(found, key=lambda row: -row.share) or [preset]


def _of_layers(layers: Iterable[QuantizedLayer]) -> list[BitsOfWork]:
    work: dict[tuple[int, int, str | None], int] = {}
    for layer in layers:
        key = layer.weight_bits or 0, layer.activation_bits, layer.format
        work[key] = work.get(key, 0) + layer.macs
    total = sum(work.values())
    return [BitsOfWork(weight_bits=w, activation_bits=a, format=f, share=macs / total) for (w, a, f), macs in work.items()] if total else []


def bits_worth_saying(artifact: Artifact) -> list[BitsOfWork]:
    """Those of ``layer_bits`` that do enough of the work to be named beside the first."""
    return [row for index, row in enumerate(layer_bits(artifact)) if not index or row.share >= _WORTH_SAYING]


def bits_label(artifact: Artifact) -> str | None:
    """As people write it, of the bits that do most of the work: W8A8; of a schedule W4A4+W8A8. None for a float model."""
    if is_kind(artifact, ScheduleDetails):
        return "+".join(bits_label(member) or "float" for member in artifact.members)
    rows = layer_bits(artifact)
    return _label(rows[0]) if rows else None


def bits_in_words(artifact: Artifact) -> str | None:
    """The label, with what part of the work is at other bits: "W4A8, 31% at W8A8"; None for a float model.

    Of a schedule these of every member, with the timesteps that it runs: "W4A4 above 500; W8A8 500 and below".
    """
    if is_kind(artifact, ScheduleDetails):
        return "; ".join(f"{bits_in_words(turn.member) or 'float'} {turn.span}" for turn in turns(artifact))
    rows = bits_worth_saying(artifact)
    others = [f"{row.share:.0%} at {_label(row)}" for row in rows[1:]]
    return ", ".join([_label(rows[0]), *others]) if rows else None


def _label(row: BitsOfWork) -> str:
    return bits_name(row.weight_bits, row.activation_bits, row.format)


def bits_name(weight_bits: int | None, activation_bits: int, products: str | None = None) -> str:
    """As people write it: W8A8, W4A8-FP8 where products are computed in FP8, A8 for a product of two activations."""
    weights = f"W{weight_bits}" if weight_bits else ""
    return f"{weights}A{activation_bits}" + (f"-{products.upper()}" if products not in (None, "int8") else "")
