"""Which engine runs an artefact: the one it was built for, the one that was requested, or the best of those that are here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..artifacts import Artifact, is_kind
from ..artifacts.details import BundleDetails, EngineDetails, ScheduleDetails
from ..errors import UsageError
from .descriptor import EngineDescriptor
from .engine_files import builder_of
from .registry import REFERENCE, engine_named, engines, runtimes
from .runner import GraphRunner
from .schedule import ScheduleRunner

Runtime = str
"""What runs a bundle: "auto", or the name of an engine that runs bundles (registry.runtimes)."""
Engine = str
"""The name of an engine, or of a setting of one (registry.engines): what can be requested where engines are compared."""


def runner_on(artifact: Artifact, engine: Engine, *, threads: int | None = None) -> GraphRunner:
    """The runner for a bundle, an engine or a schedule on the engine of that name; raises as ``load`` does."""
    chosen = engine_named(engine)
    if is_kind(artifact, ScheduleDetails):
        return ScheduleRunner([runner_on(member, engine, threads=threads) for member in artifact.members], artifact.details.switches)
    if artifact.manifest.kind not in chosen.runs:
        other = "engines" if artifact.manifest.kind == "bundle" else "bundles"
        hint = f"dq-deploy build-engine {artifact.path} -o ENGINE --backend {engine}" if chosen.builder else "give the bundle"
        raise UsageError(f"{artifact.path} is a {artifact.manifest.kind}, and {engine} runs {other}", hint)
    return chosen.make_runner(artifact, **_settings(chosen, threads))


def file_runner(file: Path, engine: Engine, like: Mapping[str, Any], *, threads: int | None = None) -> GraphRunner:
    """An ONNX file (a part of a bundle's graph, say) on the engine that ran the bundle, with the settings in that runner's details."""
    chosen = engine_named(engine)
    return chosen.make_runner(file, **{**_settings(chosen, threads), **{name: like[name] for name in chosen.kept}})


def _settings(engine: EngineDescriptor, threads: int | None) -> dict[str, Any]:
    return {**engine.settings, **({"threads": threads} if "threads" in engine.options else {})}


def engines_of(artifact: Artifact[EngineDetails], asked: Sequence[Engine] | None) -> Sequence[Engine]:
    """What a built engine runs on: what it was built for, and of what was requested, those that are that. Raises UsageError for none."""
    backend = artifact.details.backend
    fitting = [name for name in asked or [backend] if engine_named(name).base == backend]
    if not fitting:
        raise UsageError(
            f"{artifact.path} is an engine of {backend}, and does not run on {', '.join(asked or ())}", f"add --engine {backend}"
        )
    return fitting


def engines_on(artifact: Artifact[Any], asked: Sequence[Engine] | None) -> Sequence[Engine]:
    """What an artefact is compared on: ``engines_of`` an engine, of a bundle what was requested or ``engines_for`` it, and of a schedule
    what all its members are compared on. Raises UsageError where that is nothing.
    """  # noqa: D205
    if is_kind(artifact, EngineDetails):
        return engines_of(artifact, asked)
    if is_kind(artifact, BundleDetails):
        return asked or engines_for(artifact)
    found = [engines_on(member, asked) for member in artifact.members]
    shared = [engine for engine in found[0] if all(engine in others for others in found)]
    if not shared:
        each = "; ".join(f"{member.path}: {', '.join(names)}" for member, names in zip(artifact.members, found, strict=True))
        raise UsageError(f"no engine runs all members of {artifact.path} ({each})", "time them one by one")
    return shared


def engines_for(bundle: Artifact[BundleDetails]) -> list[Engine]:
    """What a bundle is compared on when nobody says: the reference, and every engine here that runs its target as integers."""
    fitting = [engine for engine in runtimes().values() if bundle.details.target in engine.targets]
    return [engine.name for engine in fitting if engine is REFERENCE or not engine.missing()]


def runtime_name(artifact: Artifact[Any], runtime: Runtime = "auto") -> str:
    """What runs an artefact when ``runtime`` is requested; of a schedule those of its members."""
    if is_kind(artifact, EngineDetails):
        return artifact.details.backend
    if is_kind(artifact, BundleDetails):
        return best_runtime(artifact) if runtime == "auto" else runtime
    return "+".join(dict.fromkeys(runtime_name(member, runtime) for member in artifact.members))


def make_runner(artifact: Artifact, *, runtime: Runtime = "auto", **options: Any) -> GraphRunner:
    """The runner for a bundle, an engine or a schedule; raises as ``load`` does."""
    if is_kind(artifact, ScheduleDetails):
        made = [make_runner(member, runtime=runtime, **options) for member in artifact.members]
        return ScheduleRunner(made, artifact.details.switches)
    named = None if runtime == "auto" else engine_named(runtime, runtimes(), "runtime")
    if is_kind(artifact, EngineDetails):
        built_for = builder_of(artifact.path, artifact.details)
        if named not in (None, built_for):
            raise UsageError(
                f"{artifact.path} is an engine of {built_for.name}, and {runtime} runs bundles",
                "leave the runtime at auto, or give the bundle",
            )
        return built_for.make_runner(artifact, **options)
    assert is_kind(artifact, BundleDetails)
    chosen = named or _chosen(artifact, options)
    if named is None and chosen.falls_back:
        shared = {name: value for name, value in options.items() if name not in _own(chosen)}
        options = {"otherwise": lambda: REFERENCE.make_runner(artifact, **shared), **options}
    return chosen.make_runner(artifact, **options)


def _own(engine: EngineDescriptor) -> set[str]:
    """The options that no other runtime has."""
    others = {option for other in runtimes().values() if other is not engine for option in other.options}
    return set(engine.options) - others


def _chosen(bundle: Artifact[BundleDetails], options: Mapping[str, Any]) -> EngineDescriptor:
    """The runtime whose options were given, or else the best."""
    return next((engine for engine in runtimes().values() if _own(engine) & options.keys()), None) or engines()[best_runtime(bundle)]


def best_runtime(bundle: Artifact[BundleDetails]) -> Engine:
    """The fastest of the installed engines for a bundle on a CPU; each computes what its integers mean.

    The first that is here and says so of the bundle (``EngineDescriptor.prefers``), else the reference.
    """
    found = (engine for engine in runtimes().values() if engine.prefers and not engine.missing() and engine.prefers(bundle))
    return next(found, REFERENCE).name
