"""What presets and methods fill in where the user says nothing."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ...errors import UsageError, did_you_mean
from ...formats import Activations
from ...formats.codebook import Codebook
from ...formats.presets import PRESETS
from ..choices import Dilation
from ..methods import DILATEQUANT, METHODS, Method

_LEAST_CHOSEN_BITS = 6


def preset_named(name: str) -> Mapping[str, Any]:
    """What a preset fills in. Raises UsageError for an unknown one."""
    if name not in PRESETS:
        near = did_you_mean([name], PRESETS)
        raise UsageError(f"unknown preset '{name}'", f"{near}presets: {', '.join(PRESETS)}; or set --weight-bits and --activation-bits")
    return PRESETS[name]


def method_in(given: Mapping[str, Any]) -> Method:
    """The method that options name. Raises UsageError for an unknown one."""
    name = given.get("method", DILATEQUANT.name)
    if name not in METHODS:
        raise UsageError(f"unknown method '{name}'", f"{did_you_mean([name], METHODS)}methods: {', '.join(METHODS)}")
    return METHODS[name]


def under_current_names(given: dict[str, Any]) -> dict[str, Any]:
    """Options with ``temporal``, which is ``activations`` now, under its new name. Raises ValueError for both, and for no truth value."""
    if "temporal" not in given:
        return given
    temporal = given["temporal"]
    if "activations" in given or not isinstance(temporal, bool):
        raise ValueError(f"temporal is the former name of activations, true for per-timestep and false for static (got {temporal!r})")
    chosen = Activations.PER_TIMESTEP if temporal else Activations.STATIC
    return {name: value for name, value in given.items() if name != "temporal"} | {"activations": chosen}


def ignores_alpha(dilation: Any) -> bool:
    """Whether a rule of dilation has no use for SmoothQuant's α."""
    return dilation in (Dilation.NONE, Dilation.SYMMETRIC, Dilation.ASYMMETRIC, Dilation.LAYERWISE)


def fitting(method: Method, given: Mapping[str, Any]) -> dict[str, Any]:
    """A method's options without the α of a dilation that the user has replaced."""
    replaced = ignores_alpha(given.get("dilation"))
    return {name: value for name, value in method.options.items() if not (replaced and name == "smoothquant_alpha")}


def filled(preset: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Options with what a preset says where nobody else does."""
    own = dict(preset)
    if isinstance(codebook := given.get("codebook"), dict) and "codebook" not in own:
        with suppress(ValueError, KeyError, TypeError):  # which the option's own type says
            own["weight_bits"] = Codebook(**codebook).bits
    return {"activations": _by_bits({**own, **given}), **own, **given}


def _by_bits(options: Mapping[str, Any]) -> Activations:
    """Where scales come from unless somebody says so: chosen by layer beside integers of 6 to 8 bits.

    With 4 bits trained tables are better than scales by token (docs/decisions/activation-scales.md).
    """
    bits = options.get("activation_bits")
    chosen = options.get("products", "int8") == "int8" and isinstance(bits, int) and _LEAST_CHOSEN_BITS <= bits <= 8
    return Activations.AUTO if chosen else Activations.PER_TIMESTEP
