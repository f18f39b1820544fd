"""Artefact folders: manifests, safe reading and writing."""

from .folder import Artifact, check_output, create_artifact, is_kind, of_kind, open_artifact, read_manifest
from .manifest import MANIFEST_NAME, SCHEMA_VERSION, Kind, Manifest, Parent, sha256_file, sha256_json

__all__ = [
    "MANIFEST_NAME",
    "SCHEMA_VERSION",
    "Artifact",
    "Kind",
    "Manifest",
    "Parent",
    "check_output",
    "create_artifact",
    "is_kind",
    "of_kind",
    "open_artifact",
    "read_manifest",
    "sha256_file",
    "sha256_json",
]
