"""The classifier that gives the accuracy benchmarks their features."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from benchmarks.accuracy.features import WEIGHTS_PATH, load_classifier
from dq_deploy.errors import ArtifactError
from tests.training.idx import write_labelled
from training import train_classifier
from training.data import load_images, load_labels

REAL = Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fashion-mnist")
    write_labelled(folder, train=40, test=20)
    return folder


def train(data: Path, output: Path, *more: str) -> Result:
    arguments = ["--data", data, "-o", output, "--epochs", 2, "--batch-size", 8, "--threads", 1, *more]
    return CliRunner().invoke(train_classifier.main, [str(argument) for argument in arguments])


def test_training_writes_what_loads_again_and_says_how_good_it_is(data: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    for output in (first, second):
        result = train(data, output)
        assert result.exit_code == 0, result.output
        assert "of the test images are classified correctly" in result.stdout
    assert {t.dtype for t in load_file(first).values()} == {torch.float16, torch.int64}
    assert first.read_bytes() == second.read_bytes()
    classifier = load_classifier(first)
    images = torch.rand(3, 1, 32, 32) * 2 - 1
    with torch.no_grad():
        assert torch.equal(classifier.head(classifier.features(images)), classifier(images))


def test_outputs_that_cannot_be(data: Path, tmp_path: Path) -> None:
    assert f"no such folder: {tmp_path / 'nowhere'}" in train(data, tmp_path / "nowhere/x.safetensors").stderr
    (tmp_path / "there.safetensors").touch()
    assert "already exists" in train(data, tmp_path / "there.safetensors").stderr
    diverged = train(data, tmp_path / "x.safetensors", "--learning-rate", "1e30")
    assert diverged.exit_code == 2
    assert "the loss is nan at step" in diverged.stderr
    assert not (tmp_path / "x.safetensors").exists()


def test_shipped_weights() -> None:
    classifier = load_classifier()
    assert sum(p.numel() for p in classifier.parameters()) == 164_530
    assert not classifier.training
    assert {p.dtype for p in classifier.parameters()} == {torch.float32}
    with torch.no_grad():
        features = classifier.features(torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1)
    assert features.shape == (2, 128)
    assert not torch.allclose(features[0], features[1])


@pytest.mark.skipif(not REAL.is_dir(), reason="the Debian package dataset-fashion-mnist is not installed")
def test_shipped_weights_classify_real_pictures() -> None:
    images, labels = load_images(REAL, "test", 32)[:1000], load_labels(REAL, "test")[:1000]
    assert train_classifier.accuracy(load_classifier(), images, labels) > 0.9


def test_damaged_weights(tmp_path: Path) -> None:
    (tmp_path / "cut").write_bytes(WEIGHTS_PATH.read_bytes()[:1000])
    save_file({"other": torch.zeros(1)}, tmp_path / "other")
    for name in ("cut", "other", "nothing"):
        with pytest.raises(ArtifactError, match=f"{name} holds no weights of the classifier"):
            load_classifier(tmp_path / name)
