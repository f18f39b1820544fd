"""Which checkpoint an artefact came from."""

from __future__ import annotations

from .details import EngineDetails, GraphDetails
from .folder import Artifact


def origin_of(artifact: Artifact[GraphDetails]) -> str | None:
    """The manifest's hash of the checkpoint that a bundle was exported from, or an engine's bundle was."""
    if isinstance(artifact.details, EngineDetails):
        return artifact.details.checkpoint_sha256
    return artifact.manifest.parent.manifest_sha256 if artifact.manifest.parent else None
