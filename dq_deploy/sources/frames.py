"""Where the frames of a video lie in a network's samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_FRAMES_FIRST = ("CogVideoXTransformer3DModel", "UNetSpatioTemporalConditionModel", "Kandinsky5Transformer3DModel")
"""Networks of diffusers whose samples are [N, F, ...]; those of all others are [N, C, F, H, W]."""


def frame_axis(sample_shape: Sequence[int], config: Mapping[str, Any] | None) -> int | None:
    """The dimension of the network's samples and outputs, with the batch, that has its frames, from the shape without the batch.

    None where it has less than two, or is a sequence of tokens. ``config`` is the network's, as diffusers writes it.
    """
    axis = 1 if (config or {}).get("_class_name") in _FRAMES_FIRST else 2
    return axis if len(sample_shape) == 4 and sample_shape[axis - 1] > 1 else None
