"""Consistency between frames: which dimension they are, and an error that every frame has is none."""

from __future__ import annotations

import pytest
import torch

from dq_deploy.accuracy.end_to_end import frames_snr_db
from dq_deploy.sources.frames import frame_axis


@pytest.mark.parametrize(
    ("network", "shape", "axis"),
    [
        ("WanTransformer3DModel", (4, 3, 8, 8), 2),
        (None, (4, 3, 8, 8), 2),
        ("CogVideoXTransformer3DModel", (3, 4, 8, 8), 1),
        ("ZImageTransformer2DModel", (4, 1, 8, 8), None),
        ("LTXVideoTransformer3DModel", (32, 8), None),
        ("UNet2DModel", (3, 8, 8), None),
    ],
)
def test_the_dimension_of_frames(network: str | None, shape: tuple[int, ...], axis: int | None) -> None:
    assert frame_axis(shape, {"_class_name": network} if network else None) == axis


def test_what_every_frame_has_does_not_count() -> None:
    expected = torch.randn(2, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    shift = 0.1 * torch.randn(2, 4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    assert frames_snr_db(expected, expected + shift, axis=2) > 120
    flickering = torch.tensor([1.0, -1.0, 1.0])[None, None, :, None, None]
    assert frames_snr_db(expected, expected + shift * flickering, axis=2) < 20
