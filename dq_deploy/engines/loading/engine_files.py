"""What is checked before an engine is handed to its runtime: its files, its backend, the version of its library, the device it is for.

An engine of TensorRT is code, so nothing is deserialized before all of this fits; and where it does not, the error has the command that
builds the engine again.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...artifacts import Artifact, is_kind, of_kind, open_artifact, read_manifest
from ...artifacts.details import EngineDetails, EngineFile, GraphDetails, RunnableDetails, parse_details
from ...artifacts.reading import as_record, read_bytes
from ...errors import ArtifactError, EnvironmentProblem, UsageError
from ..build.options import BuildOptions, flag
from ..build.profiles import BATCH, in_words
from ..descriptors.descriptor import EngineDescriptor, capability_of
from ..descriptors.registry import builders


def builder_of(path: Path, details: EngineDetails) -> EngineDescriptor:
    """The engine that built what lies there, and runs it. Raises ArtifactError where nothing here has that name."""
    if details.backend not in builders():
        raise ArtifactError(
            f"{path} is an engine of '{details.backend}', and no engine here is called so: {', '.join(builders())}",
            "build it again with: dq-deploy build-engine",
        )
    return builders()[details.backend]


def options_of(path: Path, details: EngineDetails) -> BuildOptions:
    """The options that the engine there was built with. Raises ArtifactError where there are no such options."""
    hint = "build it again with: dq-deploy build-engine"
    return as_record(details.options, BuildOptions, f"{path} is not a valid engine of this dq-deploy: options", hint=hint)


def open_runnable(path: str | Path | Artifact[Any]) -> Artifact[RunnableDetails]:
    """Open a bundle, an engine or a schedule, every file verified.

    Raises UsageError (no such path) and ArtifactError (none of the three; a missing or changed file, for an engine with the command that
    builds it again).
    """
    if isinstance(path, Artifact):
        if not is_kind(path, RunnableDetails):
            raise ArtifactError(f"{path.path} is a {path.manifest.kind}, and a bundle, an engine or a schedule is needed here")
        return path
    with _rebuilding(Path(path)):
        artifact = open_artifact(path, ("bundle", "engine", "schedule"))
        for engine in of_kind([artifact, *artifact.members], EngineDetails):
            builder_of(engine.path, engine.details)
        return artifact


def open_graph(path: str | Path | Artifact[Any]) -> Artifact[GraphDetails]:
    """As ``open_runnable``, of what has one graph: a bundle or an engine, and no schedule of several."""
    if isinstance(path, Artifact):
        if not is_kind(path, GraphDetails):
            raise ArtifactError(f"{path.path} is a {path.manifest.kind}, and a bundle or engine is needed here")
        return path
    with _rebuilding(Path(path)):
        artifact = open_artifact(path, ("bundle", "engine"))
        if is_kind(artifact, EngineDetails):
            builder_of(artifact.path, artifact.details)
        return artifact


@contextmanager
def _rebuilding(path: Path) -> Iterator[None]:
    """What is wrong with an engine there comes with the command that makes it again."""
    try:
        yield
    except ArtifactError as error:
        command = _rebuild_of_damaged(path)
        if command is None:
            raise
        raise ArtifactError(error.message, command) from None


def _rebuild_of_damaged(path: Path) -> str | None:
    """The command that makes a damaged engine again, None where its manifest cannot tell."""
    try:
        manifest = read_manifest(path)
        return rebuild_hint(path, parse_details(path, manifest)) if manifest.kind == "engine" else None
    except ArtifactError:
        return None


def rebuild_hint(path: Path, details: EngineDetails, *, backend: str | None = None, capabilities: Sequence[str] | None = None) -> str:
    """What to type to build an engine again as it was, or for another backend or other compute capabilities."""
    chosen = backend or builder_of(path, details).name
    words = ["dq-deploy", "build-engine", details.bundle, "-o", str(path), "--backend", chosen]
    if builders()[chosen].building.compute_capabilities:
        requested = details.capabilities if capabilities is None else capabilities
        words += [word for capability in requested for word in ("--compute-capability", capability)]
    words += range_words(details)
    words += _option_words(details.options) if chosen == details.backend else []
    words += [word for rule in details.lint_allowed for word in ("--allow", rule)]
    return "build it again with: " + " ".join(map(shlex.quote, [*words, "--force"]))


def build_arguments(details: EngineDetails) -> dict[str, Any]:
    """Arguments of ``build_engine`` that build another such engine."""
    found: dict[str, Any] = {"backend": details.backend, "allow": tuple(details.lint_allowed), **details.options}
    if builders()[details.backend].building.compute_capabilities:
        found["compute_capabilities"] = details.capabilities
    if details.profiles:
        return {**found, "profiles": _chosen_profiles(details)}
    return {**found, "batch": details.batch, "sizes": chosen_sizes(details)}


def range_words(details: EngineDetails) -> list[str]:
    """The options that say what shapes an engine was built for."""
    if details.profiles:
        return [word for profile in _chosen_profiles(details) for word in ("--profile", in_words(profile))]
    words = ["--batch", _range(details.batch)]
    return words + [word for name, sizes in chosen_sizes(details).items() for word in (flag(name), _range(sizes))]


def outside(engine: Artifact[EngineDetails], sizes: Mapping[str, int]) -> UsageError:
    """That sizes, by name, lie in none of an engine's profiles, and which command builds it with one more."""
    details = engine.details
    asked = {name: size for name, size in sizes.items() if _is_chosen(details, name)}
    more = in_words({name: (size, size, size) for name, size in asked.items()})
    return UsageError(
        f"{' and '.join(f'{name} {size}' for name, size in asked.items())} lies in none of the {len(details.profiles)} profiles of "
        f"{engine.path}: {'; '.join(map(in_words, details.profiles))}",
        f"{rebuild_hint(engine.path, details)} --profile {shlex.quote(more)}",
    )


def _is_chosen(details: EngineDetails, name: str) -> bool:
    return name not in details.free or name in details.chosen


def _chosen_profiles(details: EngineDetails) -> list[dict[str, tuple[int, int, int]]]:
    return [{name: values for name, values in profile.items() if _is_chosen(details, name)} for profile in details.profiles]


def chosen_sizes(details: EngineDetails) -> dict[str, tuple[int, int, int]]:
    """Of the ranges that an engine was built for those that someone chooses: no others follow."""
    return {name: sizes for name, sizes in details.sizes.items() if _is_chosen(details, name)}


def _range(sizes: Sequence[int]) -> str:
    return ",".join(map(str, sizes))


def _option_words(options: Mapping[str, Any]) -> list[str]:
    return [word for name, value in options.items() for word in ([flag(name)] if value is True else [flag(name), str(value)])]


def check_backend_is(engine: Artifact[Any], *backends: str) -> EngineDetails:
    """The engine's details. Raises ArtifactError unless it is an engine that was built with one of ``backends``."""
    if not is_kind(engine, EngineDetails):
        raise ArtifactError(
            f"{engine.path} is a {engine.manifest.kind}, and an engine is needed here", "build one with: dq-deploy build-engine"
        )
    details = engine.details
    if details.backend not in backends:
        needed = " or ".join(builders()[name].title for name in backends)
        raise ArtifactError(
            f"{engine.path} is an engine of {builder_of(engine.path, details).title}, and one of {needed} is needed here",
            rebuild_hint(engine.path, details, backend=backends[0]),
        )
    return details


def check_version(engine: Artifact[Any], details: EngineDetails, installed: str) -> None:
    """Raise EnvironmentProblem when the installed library cannot read the engine."""
    builder = builder_of(engine.path, details)
    if not builder.building.reads(installed, details.version, options_of(engine.path, details).version_compatible):
        raise EnvironmentProblem(
            f"{engine.path} was built with {builder.title} {details.version}, and {installed} is installed",
            f"install {builder.distributions[0]}=={details.version}, or {rebuild_hint(engine.path, details)}",
        )


def entry_for(engine: Artifact[Any], details: EngineDetails, capability: str) -> EngineFile:
    """The engine for a GPU of a compute capability ("8.9").

    One that was built with ``--hardware-compatibility ampere-plus`` fits every GPU from 8.0 on. Raises EnvironmentProblem when none fits.
    """
    for entry in details.engines:
        if entry.compute_capability == capability:
            return entry
    if options_of(engine.path, details).hardware_compatibility == "ampere-plus" and capability_of(capability) >= (8, 0):
        return details.engines[0]
    found = builder_of(engine.path, details)
    builder = found.building
    if builder.compute_capabilities and capability not in builder.compute_capabilities:
        rebuild = rebuild_hint(engine.path, details, backend=builder.otherwise) if builder.otherwise else "build it for another engine"
        hint = f"{found.title} does not build for it; {rebuild}"
    else:
        hint = rebuild_hint(engine.path, details, capabilities=[*details.capabilities, capability])
    raise EnvironmentProblem(
        f"{engine.path} was built for compute capability {', '.join(details.capabilities)}, and this machine's GPU has {capability}", hint
    )


def take_to_a_gpu(engines: Sequence[Artifact[EngineDetails]]) -> str:
    """What to do where engines are, and no GPU is: what the machine with one needs."""
    needed = sorted({f"{builder_of(e.path, e.details).distributions[0]}=={e.details.version}" for e in engines})
    capabilities = sorted({capability for engine in engines for capability in engine.details.capabilities})
    return (
        f"run it on a machine with a GPU of compute capability {' or '.join(capabilities)}, its driver, torch with CUDA and "
        f"{', '.join(needed)}; take the engines' and the checkpoints' folders there"
    )


def engine_bytes(engine: Artifact[EngineDetails], capability: str | None) -> int:
    """Size in bytes of what was built for a compute capability (None: the CPU): the file, and its weights where they lie beside it."""
    entry = next(entry for entry in engine.details.engines if entry.compute_capability == capability)
    names = {entry.file, str(Path(entry.file).with_suffix(".bin"))}
    return sum(found.size for name, found in engine.manifest.files.items() if name in names)


def largest_batch(artifact: Artifact[Any]) -> int | None:
    """How many samples an artefact takes at once: what an engine was built for, the least of its profiles' and of a schedule's.

    None: as many as there are.
    """
    engines = of_kind([artifact, *artifact.members], EngineDetails)
    return min((largest for engine in engines for _, _, largest in _batches(engine.details)), default=None)


def _batches(details: EngineDetails) -> list[tuple[int, int, int]]:
    return [profile[BATCH] for profile in details.profiles] or [details.batch]


def verified_bytes(engine: Artifact[Any], name: str) -> bytes:
    """Contents of one of an engine's files, whose sha256 is compared once more on the very bytes that are returned.

    Raises ArtifactError when the file is another by now.
    """
    content = read_bytes(engine.file(name))
    if hashlib.sha256(content).hexdigest() != engine.manifest.files[name].sha256:
        hint = rebuild_hint(engine.path, engine.details)
        raise ArtifactError(f"{engine.path}: '{name}' has another sha256", hint)
    return content
