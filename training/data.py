"""Fashion-MNIST from its IDX files, and the batch of each training step."""

from __future__ import annotations

import gzip
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from dq_deploy.errors import ArtifactError, UsageError

Split = Literal["train", "test"]
_NAMES: dict[Split, str] = {"train": "train-images-idx3-ubyte", "test": "t10k-images-idx3-ubyte"}
# Two zero bytes, unsigned bytes, three dimensions.
_MAGIC = 0x00000803
_HEADER = struct.Struct(">IIII")


@dataclass(frozen=True)
class Batch:
    """What one step sees: ``images``, ``noise`` [B, 1, S, S] float32 (images in [-1, 1]) and ``timesteps`` [B] int64."""

    images: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor


def load_images(folder: Path, split: Split, size: int) -> torch.Tensor:
    """Images of a split as uint8 [N, 1, size, size], padded with background (0) on all sides; plain and gzipped files are read.

    Raises UsageError (no such folder or file, images larger than ``size``) and ArtifactError (a file that is no whole IDX file of images).
    """
    name = _NAMES[split]
    path = next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)
    if path is None:
        raise UsageError(f"{folder} holds neither {name} nor {name}.gz", "on Debian: apt-get install dataset-fashion-mnist")
    images = _read_idx(path)
    height, width = images.shape[1:]
    if height > size or width > size:
        raise UsageError(f"{path}: images of {height}x{width} do not fit into the model's {size}x{size}")
    top, left = (size - height) // 2, (size - width) // 2
    return torch.nn.functional.pad(images, (left, size - width - left, top, size - height - top)).unsqueeze(1)


def _read_idx(path: Path) -> torch.Tensor:
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, EOFError) as error:
        raise ArtifactError(f"{path} is no whole gzip file: {error}") from None
    if len(data) < _HEADER.size or _HEADER.unpack_from(data)[0] != _MAGIC:
        raise ArtifactError(f"{path} is no IDX file of images")
    _, count, height, width = _HEADER.unpack_from(data)
    if count == 0 or len(data) != _HEADER.size + count * height * width:
        raise ArtifactError(f"{path} announces {count} images of {height}x{width}, and holds {len(data) - _HEADER.size} bytes of them")
    pixels = np.frombuffer(data, np.uint8, offset=_HEADER.size).reshape(count, height, width)
    return torch.from_numpy(pixels.copy())


def to_unit_range(images: torch.Tensor) -> torch.Tensor:
    """Uint8 pixels as float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def training_batch(images: torch.Tensor, step: int, *, batch_size: int, timesteps: int, seed: int) -> Batch:
    """The batch of a step, a function of ``seed`` and ``step`` alone: resuming needs no generator's state.

    Every image is drawn once an epoch, each flipped left to right with probability ½.
    """
    picked = torch.cat([_epoch_order(len(images), epoch, seed)[part] for epoch, part in _spans(len(images), step, batch_size)])
    generator = _generator(seed, step, stream=1)
    batch = to_unit_range(images[picked])
    flip = torch.rand(batch_size, generator=generator) < 0.5
    batch = torch.where(flip[:, None, None, None], batch.flip(-1), batch)
    noise = torch.randn(batch.shape, generator=generator)
    return Batch(batch, noise, torch.randint(0, timesteps, (batch_size,), generator=generator))


def held_out_batches(images: torch.Tensor, *, batch_size: int, timesteps: int, draw: int, seed: int) -> list[Batch]:
    """All images once, each with a fixed noise and timestep; over the images the timesteps are spread evenly, so that bins compare."""
    count = len(images)
    generator = _generator(seed, draw, stream=2)
    spread = (torch.randperm(count, generator=generator) * timesteps // count).to(torch.int64)
    batches = []
    for start in range(0, count, batch_size):
        part = slice(start, min(start + batch_size, count))
        chosen = to_unit_range(images[part])
        batches.append(Batch(chosen, torch.randn(chosen.shape, generator=generator), spread[part]))
    return batches


def _spans(count: int, step: int, batch_size: int) -> list[tuple[int, slice]]:
    """Epochs and positions in them that a step's batch covers; a batch may cross from one epoch into the next."""
    first, last = step * batch_size, (step + 1) * batch_size
    epochs = range(first // count, math.ceil(last / count))
    return [(epoch, slice(max(first - epoch * count, 0), min(last - epoch * count, count))) for epoch in epochs]


def _epoch_order(count: int, epoch: int, seed: int) -> torch.Tensor:
    return torch.randperm(count, generator=_generator(seed, epoch, stream=0))


def _generator(seed: int, number: int, *, stream: int) -> torch.Generator:
    # SeedSequence mixes the three, so that neighbouring seeds and steps share nothing.
    mixed = int(np.random.SeedSequence((seed, stream, number)).generate_state(1, np.uint64)[0] >> 1)
    return torch.Generator().manual_seed(mixed)
