"""The classifier's architecture, and reading its weights."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from dq_deploy.errors import ArtifactError

CLASSES = 10
FEATURES = 128
_WIDTHS = (24, 48, 96, FEATURES)


class FashionClassifier(nn.Module):
    """Four convolutions with batch normalisation, halved in between; 164,530 parameters.

    ``forward``: pictures [N, 1, 32, 32] in [-1, 1] → logits [N, 10]. ``features``: → [N, 128], not negative.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip((1, *_WIDTHS), _WIDTHS, strict=False):
            layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
        self.body = nn.Sequential(*layers[:-1])  # no pooling after the last: the mean over what is left says more than its maximum
        self.head = nn.Linear(FEATURES, CLASSES)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """What the last layer sees: means over the positions of the last feature maps [N, 128]."""
        means: torch.Tensor = self.body(images).mean(dim=(2, 3))
        return means

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits [N, 10]."""
        logits: torch.Tensor = self.head(self.features(images))
        return logits


def load_weights(path: Path) -> FashionClassifier:
    """A classifier with the weights of a safetensors file. Raises ArtifactError when it is damaged or of another network."""
    network = FashionClassifier()
    try:
        network.load_state_dict(load_file(path))
    except (SafetensorError, OSError, RuntimeError) as error:
        raise ArtifactError(f"{path} holds no weights of the classifier: {str(error).splitlines()[0]}") from None
    return network.eval()
