"""What changes between the frames of a video: an error that every frame has alike does not flicker."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..artifacts.details import CheckpointDetails
from ..decibels import snr_db

_FRAMES_FIRST = ("CogVideoXTransformer3DModel", "UNetSpatioTemporalConditionModel", "Kandinsky5Transformer3DModel")
"""Networks of diffusers whose samples are [N, F, ...]; those of all others are [N, C, F, H, W]."""


def frame_axis(details: CheckpointDetails) -> int | None:
    """The dimension of the network's output that has its frames; None where it has less than two, or is a sequence of tokens."""
    shape: Sequence[int] = details.sample_shape
    axis = 1 if (details.network_config or {}).get("_class_name") in _FRAMES_FIRST else 2
    return axis if len(shape) == 4 and shape[axis - 1] > 1 else None


def frames_snr_db(expected: torch.Tensor, got: torch.Tensor, axis: int) -> float:
    """SNR in dB of the differences between frames that follow each other along ``axis`` of outputs [N, C, F, H, W] or [N, F, ...]."""
    return snr_db(expected.diff(dim=axis), got.diff(dim=axis))
