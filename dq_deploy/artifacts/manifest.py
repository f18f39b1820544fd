"""The manifest: what an artefact folder is, what made it, and the hash of every file in it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..versions import installed_version

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"
Kind = Literal["checkpoint", "bundle", "engine", "triton-repository"]

# The packages whose version can change what an artefact contains.
_TOOLS = ("dq-deploy", "torch", "diffusers", "onnx", "onnxscript", "onnxruntime", "tensorrt-rtx", "tensorrt", "openvino")


class FileEntry(BaseModel):
    """One file of an artefact."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    sha256: str
    size: int = Field(ge=0)


class Parent(BaseModel):
    """The artefact that this one was made from."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: Kind
    manifest_sha256: str


class Manifest(BaseModel):
    """Contents of ``manifest.json``. It holds no clock time, so equal inputs give an equal file.

    ``quantization`` are the bits and the method's options (the whole ``QuantizeConfig``), ``scheduler`` the diffusers scheduler's
    configuration with its sha256, ``timesteps`` the calibrated ones in ascending order, ``details`` what only this kind of artefact has
    (documented where it is written: ``quantization/checkpoint.py``, ``exporters/bundle.py``, ``engines/build.py``, ``engines/triton.py``).
    """

    model_config = ConfigDict(extra="forbid")
    schema_version: int = SCHEMA_VERSION
    kind: Kind
    model: str
    parent: Parent | None = None
    quantization: dict[str, Any] | None = None
    scheduler: dict[str, Any] | None = None
    timesteps: list[float] = Field(default_factory=list)
    details: dict[str, Any] = Field(default_factory=dict)
    tools: dict[str, str] = Field(default_factory=dict)
    files: dict[str, FileEntry] = Field(default_factory=dict)

    def to_json(self) -> str:
        """Deterministic JSON text."""
        return json.dumps(self.model_dump(), indent=2, sort_keys=True, allow_nan=False) + "\n"


def tool_versions() -> dict[str, str]:
    """Installed version of every tool that can change an artefact; absent ones are left out."""
    return {name: version for name in _TOOLS if (version := installed_version(name))}


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file, read in chunks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Hex sha256 of a JSON value in canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
