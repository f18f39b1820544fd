"""The options of ``export`` that made a bundle, from what its manifest says: to make another like it."""

from __future__ import annotations

from typing import Any

from ..artifacts.details import BundleDetails, GraphDetails
from ..formats import of_bits

_NARROW = {"int4", "planes", "codebook", "fp4"}


def export_options(details: GraphDetails) -> dict[str, Any]:
    """Target and dtype, and whatever is not the default; of an engine's manifest those of the bundle that it was built from."""
    options: dict[str, Any] = {"target": details.target, "dtype": details.dtype}
    if details.float:
        return {**options, "float": True}
    if isinstance(details.width, int):
        options["weight_bits"] = details.width
    if details.width_choice:
        options["weight_budget"] = details.width_choice.budget
    if details.weight_storage == "int8" or _in_bytes(details):
        options["weight_storage"] = "int8"
    if isinstance(details, BundleDetails) and details.convolutions in ("integer", "float"):  # "auto" is what happens without being asked
        options["convolutions"] = details.convolutions
    if details.attention != "auto" and not _floats_only(details):
        options["attention"] = details.attention
    return options


def _in_bytes(details: GraphDetails) -> bool:
    """Whether weights that fit in less take a byte each, in a bundle from before its manifest said that this was asked for."""
    if not isinstance(details, BundleDetails) or details.target != "qdq":
        return False
    stored = {layer.weight_storage for layer in details.layers if layer.weight_storage and of_bits(layer.weight_bits or 8).packed}
    return bool(stored) and not stored & _NARROW


def _floats_only(details: GraphDetails) -> bool:
    """A bundle without quantizers, whose attention could not be anything but float."""
    return isinstance(details, BundleDetails) and not details.quantizers
