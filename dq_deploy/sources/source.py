"""A loaded model and everything later stages need to know of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..artifacts.origin import absolute_place
from ..errors import ArtifactError
from .pipeline_index import Component

_MOST_LISTED = 10


@dataclass(frozen=True)
class Source:
    """A denoiser in float32 and evaluation mode, on the CPU, with its scheduler.

    ``scheduler`` is a diffusers ``SchedulerMixin``, whose attributes diffusers sets where no type checker sees them.
    ``reference`` is what the user typed, ``config`` the model's configuration as plain JSON with ``_class_name``, ``sample_shape`` the
    shape of one sample without the batch, ``sha256`` the hash of the weights (see `weights_sha256`). ``component`` is the pipeline's
    attribute that holds the model; "module" means a bare ``nn.Module``, which has no pipeline: ``pipeline_class`` is then "".
    ``pipeline`` is the whole pipeline where it is at hand, and ``place`` the folder that it was loaded from where that is the user's own.
    ``controlnet`` steers the denoiser; ``beside`` is what a manifest says of what lies beside its own folder: the LoRA that was fused, the
    IP-Adapter that was loaded, the ControlNet's folder, or of a ControlNet the pipeline's.
    """

    name: str
    reference: str
    model: torch.nn.Module
    component: Component
    scheduler: Any
    config: dict[str, Any]
    pipeline_class: str
    sample_shape: tuple[int, ...]
    sha256: str
    pipeline: Any = field(default=None, compare=False, repr=False)
    place: Path | None = None
    controlnet: Any = field(default=None, compare=False, repr=False)
    beside: Mapping[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def origin(self) -> dict[str, Any]:
        """What a manifest says of where the weights came from."""
        place = {"absolute": absolute_place(self.place)} if self.place else {}
        return {"reference": self.reference, "sha256": self.sha256} | place | dict(self.beside)


def weights_sha256(state: Mapping[str, torch.Tensor]) -> str:
    """Hex sha256 over name, shape [...] and float32 bytes of every tensor, by name: the same for an fp16 file and its float32 copy."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().to("cpu")
        tensor = tensor.float() if tensor.is_floating_point() else tensor
        digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_finite(label: str, state: Mapping[str, torch.Tensor]) -> None:
    """Raise ArtifactError, naming the tensors, when a weight of any shape holds a NaN or an infinity."""
    bad = [name for name, tensor in state.items() if tensor.is_floating_point() and not torch.isfinite(tensor).all()]
    if bad:
        listed = ", ".join(bad[:_MOST_LISTED]) + (f" and {len(bad) - _MOST_LISTED} more" if len(bad) > _MOST_LISTED else "")
        raise ArtifactError(f"{label}: NaN or infinite values in {len(bad)} of {len(state)} tensors: {listed}", "the weights are damaged")
