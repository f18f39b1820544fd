"""Fashion-MNIST in the shape that a network takes."""

from __future__ import annotations

import functools
from pathlib import Path

import torch

from training.data import Split, load_images, load_labels, to_unit_range

DATA = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's dataset-fashion-mnist puts it."""
_SIZE = 32


def pictures(split: Split, shape: tuple[int, int, int], count: int | None = None) -> torch.Tensor:
    """Pictures [count, C, 32, 32] in [-1, 1]. Raises UsageError where the data is not."""
    return as_samples(to_unit_range(_images(split)[:count]), shape)


def as_samples(images: torch.Tensor, shape: tuple[int, int, int]) -> torch.Tensor:
    """Pictures [N, 1, 32, 32] for a network of ``shape``: of 4 channels, the picture at twice the size with its pixels in fours.

    That has the shape of an autoencoder's latents, of which there is none that could be had here.
    """
    if shape[0] == 1:
        return images
    assert shape[0] == 4
    larger = torch.nn.functional.interpolate(images, scale_factor=2.0, mode="bilinear", align_corners=False)
    return torch.nn.functional.pixel_unshuffle(larger, 2)


def training_data() -> tuple[torch.Tensor, torch.Tensor]:
    """All training pictures, uint8 [N, 1, 32, 32], and their classes [N]."""
    return _images("train"), load_labels(DATA, "train")


@functools.cache
def _images(split: Split) -> torch.Tensor:
    return load_images(DATA, split, _SIZE)
