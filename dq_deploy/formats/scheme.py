"""How finely numbers are scaled, and where the scale comes from."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Granularity(StrEnum):
    """What shares one scale: a whole tensor, an output channel, a block of input channels, or a token."""

    TENSOR = "tensor"
    CHANNEL = "channel"
    BLOCK = "block"
    TOKEN = "token"  # noqa: S105


class ScaleSource(StrEnum):
    """Where the scale comes from: it is always the same, a table has one for each timestep, or it is computed from the values."""

    CONSTANT = "constant"
    TABLE = "table"
    COMPUTED = "computed"


class Activations(StrEnum):
    """Where the scales of activations come from.

    PER_TIMESTEP is a table with a row for each calibrated timestep, STATIC one row for all. PER_TOKEN computes a scale for each token of
    what linear layers read, while the network runs; other products keep their tables. AUTO takes it for those whose outputs it brings
    nearer by a decibel, measured on calibration samples.
    """

    AUTO = "auto"
    PER_TIMESTEP = "per-timestep"
    PER_TOKEN = "per-token"  # noqa: S105
    STATIC = "static"


@dataclass(frozen=True)
class Scheme:
    """How one tensor is scaled. Symmetric: the zero-point is 0. ``block``: input channels that share a scale; 0 without blocks."""

    granularity: Granularity
    source: ScaleSource
    symmetric: bool
    block: int = 0


PER_CHANNEL = Scheme(Granularity.CHANNEL, ScaleSource.CONSTANT, symmetric=True)
"""Of weights: what engines take beside integer activations."""
