"""Small files in the format of Fashion-MNIST's."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import torch


def write_images(path: Path, count: int, edge: int = 28) -> torch.Tensor:
    """Gradients of random direction with a border of background, as Fashion-MNIST stores its images."""
    generator = torch.Generator().manual_seed(count)
    ramp = torch.linspace(0, 255, edge)
    weight = torch.rand(count, 1, 1, generator=generator)
    images = (weight * ramp[:, None] + (1 - weight) * ramp[None, :]).to(torch.uint8)
    _write(path, struct.pack(">IIII", 0x803, count, edge, edge) + images.numpy().tobytes())
    return images


def write_labels(path: Path, count: int) -> torch.Tensor:
    """Labels 0 to 9, again and again."""
    labels = (torch.arange(count) % 10).to(torch.uint8)
    _write(path, struct.pack(">II", 0x801, count) + labels.numpy().tobytes())
    return labels


def write_labelled(folder: Path, *, train: int, test: int) -> None:
    """Images and labels of both splits, so many of each."""
    for split, count in (("train", train), ("t10k", test)):
        write_images(folder / f"{split}-images-idx3-ubyte", count)
        write_labels(folder / f"{split}-labels-idx1-ubyte", count)


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
