"""Features of pictures, and the real ones that are computed once."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from benchmarks.accuracy import extractors
from benchmarks.accuracy.drawing import Array
from benchmarks.accuracy.extractors import Classifier, real_features, real_pictures
from dq_deploy.progress import silent


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Twelve test pictures as the Debian package has them."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 28, 28), dtype=np.uint8)
    folder = tmp_path / "data"
    folder.mkdir()
    header = struct.pack(">IIII", 0x803, 12, 28, 28)
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + pixels.tobytes()))
    return folder


def test_real_pictures_are_in_the_range_of_drawn_ones(data: Path) -> None:
    pictures = real_pictures("fashion-mnist", data, 32)
    assert pictures.shape == (12, 1, 32, 32)
    assert pictures.dtype == np.float32
    assert (pictures.min(), pictures.max()) == (0.0, 1.0)


def test_the_classifier_sees_levels_of_an_image_file() -> None:
    extractor = Classifier("fashion-mnist")
    pictures = np.random.default_rng(1).random((3, 1, 32, 32)).astype(np.float32)
    features = extractor(pictures)
    assert features.shape == (3, 128)
    assert np.array_equal(features, extractor(np.round(pictures * 255).astype(np.float32) / 255))
    assert not np.allclose(features, extractor(1 - pictures))


def test_real_features_are_computed_once_and_part_by_part(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extractors, "_PART", 5)
    calls = []

    class Counting:
        name = "counting"

        def __call__(self, pictures: Array) -> Array:
            calls.append(len(pictures))
            return pictures.mean(axis=(2, 3))

    first = real_features(Counting(), "fashion-mnist", data, 32, tmp_path, silent)
    again = real_features(Counting(), "fashion-mnist", data, 32, tmp_path, silent)
    assert np.array_equal(first, again)
    assert np.array_equal(first, Counting()(real_pictures("fashion-mnist", data, 32)))
    assert calls == [5, 5, 2, 12]
