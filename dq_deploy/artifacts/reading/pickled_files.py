"""Pickles of tensors, where the user has asked for them: torch's restricted unpickler makes tensors and calls nothing that a file names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import ArtifactError, raise_if_out_of_memory
from .plain import regular_file

if TYPE_CHECKING:
    import torch


def read_pickled_tensors(path: Path) -> dict[str, torch.Tensor]:
    """A state dict: name → tensor of any shape, on the CPU. Raises ArtifactError for anything else, of which nothing has run."""
    import torch

    regular_file(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251  the door
    except Exception as error:  # the unpickler raises a dozen kinds, with advice that nobody should follow
        raise_if_out_of_memory(error)
        asked = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it asks for {asked[1]}" if asked else type(error).__name__
        raise ArtifactError(f"{path} holds more than plain tensors, or is damaged; nothing in it was run ({reason})") from error
    if not isinstance(found, Mapping) or not all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in found.items()):
        raise ArtifactError(f"{path} is not a state dict: names of tensors, and tensors", "write the weights as safetensors")
    return dict(found)
