"""The manifest: what an artefact folder is, what made it, and the hash of every file in it."""

from __future__ import annotations

import hashlib
import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from ..errors import ArtifactError
from ..formats import Activations
from ..versions import installed_version
from .reading.plain import as_record, read_json
from .records import Record

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"
Kind = Literal["checkpoint", "bundle", "engine", "schedule", "triton-repository", "pipeline-folder"]

# The packages whose version can change what an artefact contains.
_TOOLS = ("dq-deploy", "torch", "diffusers", "onnx", "onnxscript", "onnxruntime", "tensorrt-rtx", "tensorrt", "openvino")


_SHA256 = r"^[0-9a-f]{64}$"
_HINT = "make it again, or restore the original files"


class FileEntry(Record):
    """One file of an artefact."""

    sha256: str = Field(pattern=_SHA256)
    size: int = Field(ge=0)


class Parent(Record):
    """The artefact that this one was made from."""

    kind: Kind
    manifest_sha256: str = Field(pattern=_SHA256)


class Manifest(BaseModel):
    """Contents of ``manifest.json``. It holds no clock time, so equal inputs give an equal file.

    ``quantization`` are the bits and the method's options (the whole ``QuantizeConfig``), ``scheduler`` the source's scheduler with its
    configuration, that one's sha256 and the scheduler that the calibration ran with, ``timesteps`` the calibrated ones in ascending order,
    ``details`` what only this kind of artefact has (``artifacts/details``). A schedule has of ``quantization`` what its quantized members
    have in common, and no ``parent``.
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

    @field_validator("timesteps")
    @classmethod
    def _ascending(cls, timesteps: list[float]) -> list[float]:
        if not all(math.isfinite(t) for t in timesteps) or any(a >= b for a, b in pairwise(timesteps)):
            raise ValueError("calibrated timesteps are finite and ascend")
        return timesteps

    @field_validator("quantization")
    @classmethod
    def _known_activations(cls, options: dict[str, Any] | None) -> dict[str, Any] | None:
        given = (options or {}).get("activations")
        if given is not None and given not in list(Activations):
            raise ValueError(f"activations '{given}' is none of {', '.join(Activations)}")
        return options

    @property
    def activations(self) -> str:
        """Where the scales of activations come from, an option of ``quantization``; ``temporal`` was its name before there was a third."""
        options = self.quantization or {}
        return str(options.get("activations") or ("per-timestep" if options.get("temporal", True) else "static"))

    @property
    def low_rank(self) -> int:
        """Rank of the float branches beside layers of few bits; 0: there are none."""
        return int((self.quantization or {}).get("low_rank", 0))

    def to_json(self) -> str:
        """Deterministic JSON text."""
        return json.dumps(self.model_dump(), indent=2, sort_keys=True, allow_nan=False) + "\n"


def parse_manifest(path: Path) -> Manifest:
    """Read ``manifest.json``. Raises ArtifactError when it is not a manifest, or of a schema version that this dq-deploy does not read."""
    found = read_json(path, "a valid manifest", hint=_HINT)
    # Judged first: other fields of another version would only be called unknown.
    version = found.get("schema_version", SCHEMA_VERSION) if isinstance(found, dict) else SCHEMA_VERSION
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise ArtifactError(
            f"{path} has schema version {version}; this dq-deploy reads up to {SCHEMA_VERSION}",
            f"upgrade dq-deploy{_made_with(found)}",
        )
    if isinstance(version, int) and version < 1:
        raise ArtifactError(f"{path} has schema version {version}, and the first was 1", _HINT)
    return as_record(found, Manifest, f"{path} is not a valid manifest", hint=_HINT)


def _made_with(manifest: dict[str, Any]) -> str:
    tools = manifest.get("tools")
    version = tools.get("dq-deploy") if isinstance(tools, dict) else None
    return f" to {version} or later, which it was made with" if isinstance(version, str) else ""


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
