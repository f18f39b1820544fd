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
_IMAGES: dict[Split, str] = {"train": "train-images-idx3-ubyte", "test": "t10k-images-idx3-ubyte"}
_LABELS: dict[Split, str] = {"train": "train-labels-idx1-ubyte", "test": "t10k-labels-idx1-ubyte"}
# An IDX file begins with two zero bytes, 8 for unsigned bytes and the number of dimensions; each dimension follows as four bytes.
_UNSIGNED_BYTES = 0x00000800
CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


@dataclass(frozen=True)
class Batch:
    """What one step sees: ``images`` in [-1, 1] and ``noise`` [B, 1, S, S] float32, ``timesteps`` and, if any, ``labels`` [B] int64."""

    images: torch.Tensor
    noise: torch.Tensor
    timesteps: torch.Tensor
    labels: torch.Tensor | None = None


@dataclass(frozen=True)
class TrainingSet:
    """What a network learns from.

    ``images`` are uint8 [N, 1, S, S]; with ``flip`` half of them are seen mirrored. ``labels``, int64 [N], are for class-conditional
    networks: a share ``label_dropout`` of them is replaced by ``null_label``, which teaches the unconditional case.
    """

    images: torch.Tensor
    labels: torch.Tensor | None = None
    null_label: int = len(CLASSES)
    label_dropout: float = 0.0
    flip: bool = True


def load_images(folder: Path, split: Split, size: int) -> torch.Tensor:
    """Images of a split as uint8 [N, 1, size, size], padded with background (0) on all sides; plain and gzipped files are read.

    Raises UsageError (no such folder or file, images larger than ``size``) and ArtifactError (not a whole IDX file of images).
    """
    path = _find(folder, _IMAGES[split])
    images = _read_idx(path, dimensions=3, what="images")
    height, width = images.shape[1:]
    if height > size or width > size:
        raise UsageError(f"{path}: images of {height}x{width} do not fit into the model's {size}x{size}")
    top, left = (size - height) // 2, (size - width) // 2
    return torch.nn.functional.pad(images, (left, size - width - left, top, size - height - top)).unsqueeze(1)


def load_labels(folder: Path, split: Split) -> torch.Tensor:
    """Class labels of a split, 0 to 9, as int64 [N]; names in ``CLASSES``. Errors as for `load_images`, and for a label above 9."""
    path = _find(folder, _LABELS[split])
    labels = _read_idx(path, dimensions=1, what="labels").long()
    if labels.max() >= len(CLASSES):
        raise ArtifactError(f"{path} has the label {labels.max()}; Fashion-MNIST's go from 0 to {len(CLASSES) - 1}")
    return labels


def _find(folder: Path, name: str) -> Path:
    path = next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)
    if path is None:
        raise UsageError(f"{folder} holds neither {name} nor {name}.gz", "on Debian: apt-get install dataset-fashion-mnist")
    return path


def _read_idx(path: Path, *, dimensions: int, what: str) -> torch.Tensor:
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, EOFError) as error:
        raise ArtifactError(f"{path} is not a whole gzip file: {error}") from None
    header = struct.Struct(f">{1 + dimensions}I")
    magic, *shape = header.unpack_from(data) if len(data) >= header.size else (0,)
    if magic != _UNSIGNED_BYTES + dimensions:
        raise ArtifactError(f"{path} is not an IDX file of {what}")
    if shape[0] == 0 or len(data) != header.size + math.prod(shape):
        size = "" if dimensions == 1 else f" of {'x'.join(map(str, shape[1:]))}"
        raise ArtifactError(f"{path} announces {shape[0]} {what}{size}, and holds {len(data) - header.size} bytes of them")
    return torch.from_numpy(np.frombuffer(data, np.uint8, offset=header.size).reshape(shape).copy())


def to_unit_range(images: torch.Tensor) -> torch.Tensor:
    """Uint8 pixels as float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def training_batch(data: TrainingSet, step: int, *, batch_size: int, timesteps: int, seed: int) -> Batch:
    """The batch of a step, a function of ``seed`` and ``step`` alone: resuming needs no generator's state.

    Every image is drawn once an epoch, and mirrored with probability ½ where the set asks for it.
    """
    picked = epoch_picks(len(data.images), step, batch_size=batch_size, seed=seed)
    generator = draws(seed, step)
    images = to_unit_range(data.images[picked])
    flip = torch.rand(batch_size, generator=generator) < (0.5 if data.flip else 0)
    images = torch.where(flip[:, None, None, None], images.flip(-1), images)
    noise = torch.randn(images.shape, generator=generator)
    drawn = torch.randint(0, timesteps, (batch_size,), generator=generator)
    if data.labels is None:
        return Batch(images, noise, drawn)
    dropped = torch.rand(batch_size, generator=generator) < data.label_dropout
    return Batch(images, noise, drawn, data.labels[picked].masked_fill(dropped, data.null_label))


def epoch_picks(count: int, step: int, *, batch_size: int, seed: int) -> torch.Tensor:
    """Which of ``count`` samples a step sees, int64 [batch_size]: each of them once an epoch, in an order of the epoch's own."""
    return torch.cat([_epoch_order(count, epoch, seed)[part] for epoch, part in _spans(count, step, batch_size)])


def draws(seed: int, step: int) -> torch.Generator:
    """What a step draws its noises and all else from."""
    return _generator(seed, step, stream=1)


def held_out_batches(data: TrainingSet, *, batch_size: int, timesteps: int, draw: int, seed: int) -> list[Batch]:
    """All images once as they are, each with its own label and a fixed noise and timestep.

    The timesteps are spread evenly over the images, so that bins compare.
    """
    count = len(data.images)
    generator = _generator(seed, draw, stream=2)
    spread = (torch.randperm(count, generator=generator) * timesteps // count).to(torch.int64)
    batches = []
    for start in range(0, count, batch_size):
        part = slice(start, min(start + batch_size, count))
        chosen = to_unit_range(data.images[part])
        labels = None if data.labels is None else data.labels[part]
        batches.append(Batch(chosen, torch.randn(chosen.shape, generator=generator), spread[part], labels))
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
