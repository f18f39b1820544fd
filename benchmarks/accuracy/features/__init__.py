"""A small Fashion-MNIST classifier whose features stand in for Inception's where thousands of small grey pictures are compared."""

from __future__ import annotations

from pathlib import Path

from .network import FashionClassifier, load_weights

WEIGHTS_PATH = Path(__file__).parent / "classifier.safetensors"


def load_classifier(weights: Path = WEIGHTS_PATH) -> FashionClassifier:
    """The trained classifier in float32 and evaluation mode; it takes pictures [N, 1, 32, 32] in [-1, 1].

    Raises ArtifactError when the file is damaged or of another network.
    """
    return load_weights(weights)


__all__ = ["WEIGHTS_PATH", "FashionClassifier", "load_classifier"]
