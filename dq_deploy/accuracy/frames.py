"""What changes between the frames of a video: an error that every frame has alike does not flicker."""

from __future__ import annotations

import torch

from ..decibels import snr_db


def frames_snr_db(expected: torch.Tensor, got: torch.Tensor, axis: int) -> float:
    """SNR in dB of the differences between frames that follow each other along ``axis`` of outputs [N, C, F, H, W] or [N, F, ...]."""
    return snr_db(expected.diff(dim=axis), got.diff(dim=axis))
