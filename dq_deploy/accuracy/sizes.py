"""The sizes that a checkpoint has reference samples of: which of them a bundle or an engine takes, and how it does at each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, Field

from ..artifacts import Artifact, is_kind
from ..artifacts.details import EngineDetails, GraphDetails
from ..engines.build.profiles import takes
from ..errors import UsageError
from ..quantization.calibration.trajectories import Trajectories
from ..quantization.checkpoint import Checkpoint
from .end_to_end import TimestepParity


class SizeParity(BaseModel):
    """One size, as height x width: SNRs by engine at every timestep ("": the bundle's graph as it is written), and what fails."""

    size: str
    calibrated: bool
    timesteps: dict[str, list[TimestepParity]]
    layers: int = 0
    failures: list[str] = Field(default_factory=list)

    def worst_db(self, engine: str) -> float:
        """The least SNR against the float model."""
        return min(row.snr_bundle_db for row in self.timesteps[engine])


def sizes_within(artifact: Artifact[GraphDetails], checkpoint: Checkpoint) -> Iterator[tuple[str, bool, Trajectories]]:
    """Name, whether it was calibrated, and reference samples, of each size that the artefact takes; without a name where there is one."""
    details = checkpoint.details
    named = [(str(size), size.calibrated) for size in details.calibrated_sizes] or [("", True)]
    for (name, calibrated), data in zip(named, checkpoint.reference().by_size, strict=True):
        if _takes(artifact, checkpoint, data):
            yield name, calibrated, data


def no_size(artifact: Artifact[Any], checkpoint: Checkpoint) -> UsageError:
    """There is nothing to compare at."""
    sizes = ", ".join(str(size) for size in checkpoint.details.calibrated_sizes)
    return UsageError(
        f"{artifact.path} takes none of the sizes that {checkpoint.artifact.path} has samples of ({sizes})",
        "build an engine whose range holds one: leave --height and --width out",
    )


def expected_timesteps(checkpoint: Checkpoint, size: str, data: Trajectories) -> list[float]:
    """The timesteps that must be compared: the calibrated ones.

    A scheduler may have others at a further size (FLUX shifts them by the number of tokens), and as many.
    """
    calibrated, own = checkpoint.artifact.manifest.timesteps, data.timesteps.tolist()
    sizes = checkpoint.details.calibrated_sizes
    further = bool(sizes) and size != str(sizes[0]) and len(own) == len(calibrated)
    return own if further else calibrated


def _takes(artifact: Artifact[GraphDetails], checkpoint: Checkpoint, data: Trajectories) -> bool:
    """Whether every free dimension is within what an engine was built for."""
    if not is_kind(artifact, EngineDetails):
        return True
    first = checkpoint.details.inputs[0]
    tensors = {first: data.samples[0], **data.given(0)}
    sizes = [{name: tensors[input_].shape[dim]} for name, free in checkpoint.details.free.items() for input_, dim in free.axes]
    return any(all(takes(profile, size) for size in sizes) for profile in artifact.details.profiles or [artifact.details.sizes])
