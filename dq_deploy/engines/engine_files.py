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

from ..artifacts import Artifact, Manifest, open_artifact, read_manifest
from ..errors import ArtifactError, EnvironmentProblem

_BACKENDS = {"tensorrt-rtx": "TensorRT-RTX", "tensorrt": "TensorRT", "openvino": "OpenVINO"}


def open_runnable(path: str | Path | Artifact) -> Artifact:
    """Open a bundle or an engine, every file verified.

    Raises UsageError (no such path) and ArtifactError (neither of the two; a missing or changed file, for an engine with the command that
    builds it again).
    """
    if isinstance(path, Artifact):
        return path
    try:
        return open_artifact(path, ("bundle", "engine"))
    except ArtifactError as error:
        command = _rebuild_of_damaged(Path(path))
        if command is None:
            raise
        raise ArtifactError(error.message, command) from None


def _rebuild_of_damaged(path: Path) -> str | None:
    """The command that makes a damaged engine again, None where its manifest cannot tell."""
    try:
        manifest = read_manifest(path)
        return rebuild_hint(path, manifest) if manifest.kind == "engine" else None
    except (ArtifactError, KeyError, TypeError):
        return None


def rebuild_hint(path: Path, manifest: Manifest, *, backend: str | None = None, capabilities: Sequence[str] | None = None) -> str:
    """What to type to build an engine again as it was, or for another backend or other compute capabilities."""
    details = manifest.details
    chosen = backend or details["backend"]
    built = [entry["compute_capability"] for entry in details["engines"] if entry["compute_capability"]]
    words = ["dq-deploy", "build-engine", str(details.get("bundle", "BUNDLE")), "-o", str(path), "--backend", chosen]
    if chosen == "tensorrt-rtx":
        words += [word for capability in (built if capabilities is None else capabilities) for word in ("--compute-capability", capability)]
    words += ["--batch", _range(details["batch"])]
    words += [word for name, sizes in details.get("sizes", {}).items() for word in (f"--{name}", _range(sizes))]
    words += _option_words(details.get("options", {})) if chosen == details["backend"] else []
    return "build it again with: " + " ".join(map(shlex.quote, [*words, "--force"]))


def _range(sizes: Sequence[int]) -> str:
    return ",".join(map(str, sizes))


def _option_words(options: Mapping[str, Any]) -> list[str]:
    words = []
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        words += [flag] if value is True else [flag, str(value)]
    return words


def check_backend_is(engine: Artifact, *backends: str) -> None:
    """Raise ArtifactError unless the engine was built with one of ``backends``."""
    backend = engine.manifest.details.get("backend")
    if backend not in backends:
        wanted = " or ".join(_BACKENDS[name] for name in backends)
        raise ArtifactError(
            f"{engine.path} is an engine of {_BACKENDS.get(str(backend), backend)}, and one of {wanted} is needed here",
            rebuild_hint(engine.path, engine.manifest, backend=backends[0]),
        )


def check_version(engine: Artifact, installed: str) -> None:
    """Raise EnvironmentProblem when the installed library cannot read the engine.

    TensorRT reads engines of its own version only; those built version-compatible also by later ones of the same major version. OpenVINO
    reads what an earlier OpenVINO has saved.
    """
    details = engine.manifest.details
    backend, built = details["backend"], details["version"]
    if backend == "openvino":
        fits = _numbers(installed) >= _numbers(built)
    elif details.get("options", {}).get("version_compatible"):
        fits = _numbers(installed)[:1] == _numbers(built)[:1] and _numbers(installed) >= _numbers(built)
    else:
        fits = installed == built
    if not fits:
        raise EnvironmentProblem(
            f"{engine.path} was built with {_BACKENDS[backend]} {built}, and {installed} is installed",
            f"install {backend}=={built}, or {rebuild_hint(engine.path, engine.manifest)}",
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:4]))


def entry_for(engine: Artifact, capability: str) -> dict[str, Any]:
    """The entry of the manifest's ``engines`` for a GPU's compute capability ("8.9").

    An engine that was built with ``--hardware-compatibility`` fits as far as that says. Raises EnvironmentProblem when none fits.
    """
    details = engine.manifest.details
    entries: list[dict[str, Any]] = details["engines"]
    reach = details.get("options", {}).get("hardware_compatibility")
    for entry in entries:
        if entry["compute_capability"] == capability or (reach == "ampere-plus" and _numbers(capability) >= (8, 0)):
            return entry
    built = [str(entry["compute_capability"]) for entry in entries]
    from .build_plan import RTX_COMPUTE_CAPABILITIES

    if details["backend"] == "tensorrt-rtx" and capability not in RTX_COMPUTE_CAPABILITIES:
        hint = f"TensorRT-RTX does not build for it; {rebuild_hint(engine.path, engine.manifest, backend='tensorrt')}"
    else:
        hint = rebuild_hint(engine.path, engine.manifest, capabilities=[*built, capability])
    raise EnvironmentProblem(
        f"{engine.path} was built for compute capability {', '.join(built)}, and this machine's GPU has {capability}", hint
    )


def verified_bytes(engine: Artifact, name: str) -> bytes:
    """Contents of one of an engine's files, whose sha256 is compared once more on the very bytes that are returned.

    Raises ArtifactError when the file is another by now.
    """
    content = engine.file(name).read_bytes()
    if hashlib.sha256(content).hexdigest() != engine.manifest.files[name].sha256:
        raise ArtifactError(f"{engine.path}: '{name}' has another sha256", rebuild_hint(engine.path, engine.manifest))
    return content
