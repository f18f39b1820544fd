"""What ``--auto-bits`` has chosen."""

from __future__ import annotations

from pydantic import BaseModel


class LayerChoice(BaseModel):
    """A layer, its bits, and the share of the predicted error power that it has with the preset's bits, in the mean over the samples.

    Decoupled, it is the share in what its ``group`` is judged by.
    """

    layer: str
    weight_bits: int
    activation_bits: int
    raised: bool
    error_share: float
    group: str | None = None


class GroupChoice(BaseModel):
    """A group of layers, how many of them were raised, and their share of the predicted error power in what it is ``judged_by``.

    SNRs are of the whole network in that, predicted as those of ``BitChoice``.
    """

    group: str
    judged_by: str
    layers: int
    raised: int
    error_share: float
    snr_db: float
    snr_db_lowest: float
    snr_db_highest: float


class BitChoice(BaseModel):
    """What was chosen. ``keep`` goes into the configuration; SNRs are predictions for the network before dilation and distillation.

    Bytes are those of weights, scales, biases and corrections as an engine stores them; ``float_bytes`` 4 for each parameter. ``groups``
    and ``notes`` are there where layers were judged by groups: what was found, and what could not be told apart.
    """

    keep: dict[str, int]
    layers: list[LayerChoice]
    weights_bytes: int
    float_bytes: int
    snr_db: float
    snr_db_lowest: float
    snr_db_highest: float
    groups: list[GroupChoice] = []
    notes: list[str] = []
