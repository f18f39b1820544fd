"""Features of pictures, and of the real ones that they are compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from dq_deploy.progress import Progress

from .drawing import Array
from .models import Dataset
from .workspace import load_array, locked, save_array

REAL_SPLIT: Literal["test"] = "test"
"""The real pictures of every Fréchet distance: those that neither the generators nor the classifier were trained on."""
_PART = 256


class Extractor(Protocol):
    """Pictures [n, C, H, W] in [0, 1] → features [n, d]."""

    name: str

    def __call__(self, pictures: Array) -> Array:
        """Features, float32."""


class Classifier:
    """The small classifier that the project trains on the same data (``benchmarks/accuracy/features``)."""

    def __init__(self, dataset: Dataset) -> None:
        from .features import load_classifier

        self.network: Any = load_classifier()
        self.name = f"{dataset} classifier"

    def __call__(self, pictures: Array) -> Array:
        """Features of pictures as an image file holds them, rounded to 256 levels."""
        import torch

        levels = torch.from_numpy(np.round(pictures * 255).astype(np.float32) / 127.5 - 1)  # it was trained on [-1, 1]
        with torch.inference_mode():
            parts = [self.network.features(levels[start : start + 256]).float().cpu().numpy() for start in range(0, len(levels), 256)]
        return np.concatenate(parts)

    def classes(self, pictures: Array) -> Array:
        """The class [n] that it sees in each picture, by the features."""
        import torch

        with torch.inference_mode():
            seen: Array = self.network.head(torch.from_numpy(self(pictures))).argmax(1).numpy()
        return seen


def real_pictures(dataset: Dataset, data: Path, size: int) -> Array:
    """The real pictures [n, 1, size, size] in [0, 1]. Raises UsageError where the data is not."""
    from training.data import load_images

    assert dataset == "fashion-mnist"
    return load_images(data, REAL_SPLIT, size).numpy().astype(np.float32) / 255


def features(extractor: Extractor, pictures: Array, progress: Progress) -> Array:
    """Features [n, d] of pictures, part by part: Inception takes minutes."""
    parts = []
    with progress(f"features, {extractor.name}", len(pictures)) as advance:
        for start in range(0, len(pictures), _PART):
            parts.append(extractor(pictures[start : start + _PART]))
            advance(len(parts[-1]))
    return np.concatenate(parts)


def real_features(extractor: Extractor, dataset: Dataset, data: Path, size: int, cache: Path, progress: Progress) -> Array:
    """Features [n, d] of the real pictures, computed once for each extractor."""
    file = cache / f"{dataset}-{REAL_SPLIT}-{size}-{type(extractor).__name__.lower()}.npy"
    with locked(file):
        found = load_array(file)
        if found is None:
            found = features(extractor, real_pictures(dataset, data, size), progress)
            save_array(file, found)
    return found
