"""Which engine runs an artefact: the one it was built for, the one that was requested, or the best of those that are here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ...artifacts import Artifact, is_kind
from ...artifacts.details import BundleDetails, EngineDetails, ScheduleDetails
from ...errors import UsageError
from ..descriptors.descriptor import EngineDescriptor
from ..descriptors.registry import REFERENCE, engine_named, engines, runtimes
from ..running.runner import GraphRunner
from ..running.schedule import ScheduleRunner
from .engine_files import builder_of

if TYPE_CHECKING:
    from ..step_cache.runner import CachedRunner, MakeRunner

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
    return _bundle_maker(_chosen(artifact, runtime, options), options, named=named is not None)(artifact)


def make_cached_runner(artifact: Artifact, threshold: float, *, runtime: Runtime = "auto", **options: Any) -> CachedRunner:
    """The runner for a bundle that skips the body of its network at steps that move little (step_cache); raises as ``load`` does."""
    from ..step_cache.runner import CachedRunner, check_threshold  # graphs and torch, which choosing does without

    check_threshold(threshold)
    if not is_kind(artifact, BundleDetails):
        raise _not_cached(artifact)
    chosen = _chosen(artifact, runtime, options)
    if not chosen.parts:
        able = [name for name, engine in runtimes().items() if engine.parts]
        raise UsageError(
            f"{chosen.name} does not run parts of a network, as caching across steps does", f"choose one of: {', '.join(able)}"
        )
    make = cast("MakeRunner", _bundle_maker(chosen, options, named=runtime != "auto"))  # what ``parts`` says
    return CachedRunner(artifact, threshold, make)


def _not_cached(artifact: Artifact) -> UsageError:
    if artifact.members:
        why, hint = (
            "a schedule, which is not cached across steps: what one of its members keeps is not another's",
            f"give a member: {artifact.path}/1",
        )
    else:
        why = "an engine, which is not cached across steps: its network is compiled whole"
        hint = "give the bundle that it was built from, which ONNX Runtime and OpenVINO run in parts"
    return UsageError(f"{artifact.path} is {why}", hint)


def _bundle_maker(chosen: EngineDescriptor, options: Mapping[str, Any], *, named: bool) -> Callable[[Artifact[Any]], GraphRunner]:
    """Makes the runner of a bundle, or of a part of one. An engine that nobody ``named`` is given what runs a graph that it refuses."""
    shared = {name: value for name, value in options.items() if name not in _own(chosen)}

    def make(bundle: Artifact[Any]) -> GraphRunner:
        instead = {"otherwise": lambda: REFERENCE.make_runner(bundle, **shared)} if chosen.falls_back and not named else {}
        return chosen.make_runner(bundle, **{**instead, **options})

    return make


def _own(engine: EngineDescriptor) -> set[str]:
    """The options that no other runtime has."""
    others = {option for other in runtimes().values() if other is not engine for option in other.options}
    return set(engine.options) - others


def _chosen(bundle: Artifact[BundleDetails], runtime: Runtime, options: Mapping[str, Any]) -> EngineDescriptor:
    """The runtime of that name, or the one whose options were given, or else the best."""
    if runtime != "auto":
        return engine_named(runtime, runtimes(), "runtime")
    return next((engine for engine in runtimes().values() if _own(engine) & options.keys()), None) or engines()[best_runtime(bundle)]


def best_runtime(bundle: Artifact[BundleDetails]) -> Engine:
    """The fastest of the installed engines for a bundle on a CPU; each computes what its integers mean.

    The first that is here and says so of the bundle (``EngineDescriptor.prefers``), else the reference.
    """
    found = (engine for engine in runtimes().values() if engine.prefers and not engine.missing() and engine.prefers(bundle))
    return next(found, REFERENCE).name
