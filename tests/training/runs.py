"""What the training commands of different networks are tested for alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file

Train = Callable[..., Result]
"""``train(output, *options)`` of some steps."""


def run(command: Any, *more: str, data: Path, output: Path, steps: int) -> Result:
    """A training command for a few steps of 8 images, on one thread."""
    options = {"--data": data, "-o": output, "--steps": steps, "--batch-size": 8, "--warmup": 2, "--threads": 1, "--device": "cpu"}
    return CliRunner().invoke(command, [text for pair in options.items() for text in map(str, pair)] + list(more))


def assert_resumes_bit_identically(train: Train, folder: Path, steps: int, weights: Path) -> None:
    """A run that is stopped after its first step and resumed ends in the state and ``weights`` of one that is not."""
    assert train(folder / "whole").exit_code == 0
    assert f"stopped after step 1 of {steps}" in train(folder / "parts", "--max-minutes", "1e-9").stderr
    assert train(folder / "parts", "--resume").exit_code == 0
    for name in ("state.safetensors", weights):
        whole, resumed = load_file(folder / "whole" / name), load_file(folder / "parts" / name)
        apart = [key for key, tensor in whole.items() if not torch.equal(tensor, resumed[key])]
        assert apart == [], f"{name}: {len(apart)} of {len(whole)} tensors differ"
