"""A seed for every picture, so that a picture does not depend on the others drawn with it."""

from __future__ import annotations

import numpy as np
import torch


def picture_seed(seed: int, number: int) -> int:
    """Unrelated for every pair: neighbouring seeds share no picture."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0] >> 1)


def generators(seed: int, numbers: range) -> list[torch.Generator]:
    """One for each picture."""
    return [torch.Generator().manual_seed(picture_seed(seed, number)) for number in numbers]
