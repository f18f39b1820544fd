"""What is checked before an engine is handed to its runtime: its files, its backend, the version of its library, the device it is for.

An engine of TensorRT is code, so nothing is deserialized before all of this fits; and where it does not, the error has the command that
builds the engine again.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from ..artifacts import Artifact, Manifest, open_artifact, read_manifest
from ..artifacts.details import GraphInput
from ..artifacts.layer_bits import integer_activations, share_of_work, wider_weights
from ..artifacts.reading import as_record, read_bytes
from ..errors import ArtifactError, EnvironmentProblem
from .build_options import BuildOptions, flag
from .build_plan import RTX_COMPUTE_CAPABILITIES
from .build_request import Backend

_BACKENDS: dict[Backend, str] = {"tensorrt-rtx": "TensorRT-RTX", "tensorrt": "TensorRT", "openvino": "OpenVINO"}


class EngineEntry(BaseModel):
    """One device's engine in the folder."""

    model_config = ConfigDict(extra="allow", frozen=True)
    compute_capability: str | None
    file: str
    report: str


class EngineDetails(BaseModel):
    """The manifest's ``details`` of an engine (documented in build.py), as far as running it needs them."""

    model_config = ConfigDict(extra="allow", frozen=True)
    backend: Backend
    version: str
    engines: list[EngineEntry] = Field(min_length=1)
    inputs: list[GraphInput] = Field(min_length=1)
    sample_shape: list[int | str] = Field(min_length=1)
    batch: tuple[int, int, int]
    sizes: dict[str, tuple[int, int, int]] = Field(default_factory=dict)
    rows: dict[str, int] = Field(default_factory=dict)
    options: BuildOptions = BuildOptions()
    lint_allowed: dict[str, int] = Field(default_factory=dict)
    int8_without_vnni: bool = False
    bundle: str = "BUNDLE"
    checkpoint_sha256: str | None = None

    @property
    def capabilities(self) -> list[str]:
        """The compute capabilities that the engine was built for; none for a CPU."""
        return [entry.compute_capability for entry in self.engines if entry.compute_capability]


def details_of(path: Path, manifest: Manifest) -> EngineDetails:
    """Raises ArtifactError when the manifest does not say what an engine's must."""
    complaint, hint = f"{path} is no engine of this dq-deploy", "build it again with: dq-deploy build-engine"
    return as_record(manifest.details, EngineDetails, complaint, hint=hint)


_NARROW_BITS = 6
_MOST_WIDE_WORK = 0.01
"""Of a network's multiply-accumulates with weights of 7 and 8 bits. All of it loses the shipped UNet 20 dB: saturation has a noise power of
10^-2.4 of the output's there, rounding 4-bit weights one of 10^-3.5; a hundredth of the first adds 0.5 dB to the second."""


def int8_without_vnni(bundle: Artifact) -> bool:
    """Whether a CPU whose INT8 sums saturate does better on its INT8 kernels than in float: narrow weights, and mostly convolutions.

    The shipped UNet has on them a median SNR of 24 dB instead of 44 with weights of 8 bits and of 43.1 instead of 43.6 with 7; with 6 and
    fewer it has what it has in float (36.5 dB at W6A6, 35.3 at W4A8), in 0.7 to 0.8 of the time. But the shipped
    transformer, which is matrix products, takes 1.1 to 1.5 times the time of float on them. Layers are judged by their own bits.
    """
    layers = [layer for layer in bundle.manifest.details["layers"] if integer_activations(layer)]
    wide = share_of_work(layers, lambda layer: wider_weights(layer, _NARROW_BITS))
    return wide <= _MOST_WIDE_WORK and share_of_work(layers, lambda layer: layer["op"] == "conv2d") > 1 / 2


def open_runnable(path: str | Path | Artifact) -> Artifact:
    """Open a bundle or an engine, every file verified.

    Raises UsageError (no such path) and ArtifactError (neither of the two; a missing or changed file, for an engine with the command that
    builds it again).
    """
    if isinstance(path, Artifact):
        return path
    try:
        artifact = open_artifact(path, ("bundle", "engine"))
        if artifact.manifest.kind == "engine":
            details_of(artifact.path, artifact.manifest)
        return artifact
    except ArtifactError as error:
        command = _rebuild_of_damaged(Path(path))
        if command is None:
            raise
        raise ArtifactError(error.message, command) from None


def _rebuild_of_damaged(path: Path) -> str | None:
    """The command that makes a damaged engine again, None where its manifest cannot tell."""
    try:
        manifest = read_manifest(path)
        return rebuild_hint(path, details_of(path, manifest)) if manifest.kind == "engine" else None
    except ArtifactError:
        return None


def rebuild_hint(path: Path, details: EngineDetails, *, backend: Backend | None = None, capabilities: Sequence[str] | None = None) -> str:
    """What to type to build an engine again as it was, or for another backend or other compute capabilities."""
    chosen = backend or details.backend
    words = ["dq-deploy", "build-engine", details.bundle, "-o", str(path), "--backend", chosen]
    if chosen == "tensorrt-rtx":
        wanted = details.capabilities if capabilities is None else capabilities
        words += [word for capability in wanted for word in ("--compute-capability", capability)]
    words += ["--batch", _range(details.batch)]
    words += [word for name, sizes in details.sizes.items() for word in (f"--{name}", _range(sizes))]
    words += _option_words(details.options.asked()) if chosen == details.backend else []
    words += [word for rule in details.lint_allowed for word in ("--allow", rule)]
    return "build it again with: " + " ".join(map(shlex.quote, [*words, "--force"]))


def _range(sizes: Sequence[int]) -> str:
    return ",".join(map(str, sizes))


def _option_words(options: Mapping[str, Any]) -> list[str]:
    return [word for name, value in options.items() for word in ([flag(name)] if value is True else [flag(name), str(value)])]


def check_backend_is(engine: Artifact, *backends: Backend) -> EngineDetails:
    """The engine's details. Raises ArtifactError unless it was built with one of ``backends``."""
    details = details_of(engine.path, engine.manifest)
    if details.backend not in backends:
        wanted = " or ".join(_BACKENDS[name] for name in backends)
        raise ArtifactError(
            f"{engine.path} is an engine of {_BACKENDS[details.backend]}, and one of {wanted} is needed here",
            rebuild_hint(engine.path, details, backend=backends[0]),
        )
    return details


def check_version(engine: Artifact, details: EngineDetails, installed: str) -> None:
    """Raise EnvironmentProblem when the installed library cannot read the engine.

    TensorRT reads engines of its own version only; those built version-compatible also by later ones of the same major version. OpenVINO
    reads what an earlier OpenVINO has saved.
    """
    now, then = _numbers(installed), _numbers(details.version)
    if details.backend == "openvino":
        fits = now >= then
    elif details.options.version_compatible:
        fits = now[:1] == then[:1] and now >= then
    else:
        fits = installed == details.version
    if not fits:
        raise EnvironmentProblem(
            f"{engine.path} was built with {_BACKENDS[details.backend]} {details.version}, and {installed} is installed",
            f"install {details.backend}=={details.version}, or {rebuild_hint(engine.path, details)}",
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:4]))


def entry_for(engine: Artifact, details: EngineDetails, capability: str) -> EngineEntry:
    """The engine for a GPU of a compute capability ("8.9").

    One that was built with ``--hardware-compatibility ampere-plus`` fits every GPU from 8.0 on. Raises EnvironmentProblem when none fits.
    """
    for entry in details.engines:
        if entry.compute_capability == capability:
            return entry
    if details.options.hardware_compatibility == "ampere-plus" and _numbers(capability) >= (8, 0):
        return details.engines[0]
    if details.backend == "tensorrt-rtx" and capability not in RTX_COMPUTE_CAPABILITIES:
        hint = f"TensorRT-RTX does not build for it; {rebuild_hint(engine.path, details, backend='tensorrt')}"
    else:
        hint = rebuild_hint(engine.path, details, capabilities=[*details.capabilities, capability])
    raise EnvironmentProblem(
        f"{engine.path} was built for compute capability {', '.join(details.capabilities)}, and this machine's GPU has {capability}", hint
    )


def verified_bytes(engine: Artifact, name: str) -> bytes:
    """Contents of one of an engine's files, whose sha256 is compared once more on the very bytes that are returned.

    Raises ArtifactError when the file is another by now.
    """
    content = read_bytes(engine.file(name))
    if hashlib.sha256(content).hexdigest() != engine.manifest.files[name].sha256:
        hint = rebuild_hint(engine.path, details_of(engine.path, engine.manifest))
        raise ArtifactError(f"{engine.path}: '{name}' has another sha256", hint)
    return content
