"""Who takes part in a timing: a bundle on an inference engine, or a built engine, with inputs like those it will meet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ...artifacts import Artifact, is_kind
from ...artifacts.details import EngineDetails, GraphInput, RunnableDetails, ScheduleDetails
from ...artifacts.turns import turns
from ...errors import UsageError
from ..loading.choice import Engine, engines_on, runner_on
from ..loading.engine_files import open_runnable
from ..loading.size_range import SizeRange
from ..running.runner import TIMESTEP, Array, Runner
from ..running.schedule import ScheduleRunner

Inputs = Mapping[str, Array]
# Timesteps cycled through while timing; more would only lengthen the comparison of outputs that precedes it.
_TIMESTEPS = 4


@dataclass(frozen=True)
class Contender:
    """A model on an engine. ``inputs(batch)`` are the inputs to cycle through; contenders of one model get the same ones.

    Of a schedule ``turns`` has its members' names, which are contenders too, and the fraction of the calibrated timesteps that each runs:
    the schedule's time is that of a step on average. A member says whose it is in ``part_of``.
    """

    name: str
    runner: Runner
    inputs: Callable[[int], Sequence[Inputs]]
    path: str = ""
    turns: Mapping[str, float] = field(default_factory=dict)
    part_of: str | None = None


def contenders_from(
    paths: Sequence[str | Path | Artifact[RunnableDetails]],
    *,
    engines: Sequence[Engine] | None = None,
    threads: int | None = None,
    seed: int = 0,
    sizes: Mapping[str, int] | None = None,
) -> list[Contender]:
    """Each bundle on each of ``engines``, each built engine on what it was built for, and each schedule with its members after it.

    By default every bundle on the reference, and on every other engine that is installed and runs its target as integers
    (``EngineDescriptor.targets``), a schedule on those that serve all its members. Names are "<folder> · <engine>". ``sizes`` are those of
    free dimensions, by their names and as the network gets them; by default an engine's usual one, or the first that was calibrated.

    Raises UsageError (no such path, the same artefact twice, a size that one does not take), ArtifactError (neither bundle nor engine nor
    schedule, a changed file) and EnvironmentProblem (an engine that was not built for what is here; a runtime that is not installed).
    """
    artifacts = [open_runnable(path) for path in paths]
    if unknown := sorted(set(sizes or {}) - {name for artifact in artifacts for name in artifact.details.chosen}):
        raise UsageError(
            f"a {' and a '.join(unknown)} is given, which is free in none of these", "leave it out, or quantize with --sizes or --tokens"
        )
    for artifact in artifacts:
        SizeRange.of(artifact).check_sizes(sizes or {})
    labels = _labels([artifact.path for artifact in artifacts])
    return [
        contender
        for artifact, label in zip(artifacts, labels, strict=True)
        for engine in engines_on(artifact, engines)
        for contender in _contenders(artifact, label, engine, threads, inputs_of(artifact, seed, sizes))
    ]


def _contenders(artifact: Artifact[RunnableDetails], label: str, engine: Engine, threads: int | None,
                inputs: Callable[[int], Sequence[Inputs]]) -> list[Contender]:  # fmt: skip
    """One, and of a schedule its members too, which it shares its runners with."""
    runner, name = runner_on(artifact, engine, threads=threads), f"{label} · {engine}"
    if not isinstance(runner, ScheduleRunner) or not is_kind(artifact, ScheduleDetails):
        return [Contender(name, runner, inputs, str(artifact.path))]
    parts, shares = [], {}
    for turn, member in zip(turns(artifact), runner.members, strict=True):
        part = f"{label}/{turn.member.path.name} · {engine}"
        shares[part] = len(turn.timesteps) / len(artifact.manifest.timesteps)
        parts.append(Contender(part, member, inputs, str(turn.member.path), part_of=name))
    return [Contender(name, runner, inputs, str(artifact.path), turns=shares), *parts]


def _labels(paths: Sequence[Path]) -> list[str]:
    """Folder names, or whole paths where two folders have the same name."""
    if len({path.resolve() for path in paths}) < len(paths):
        raise UsageError("the same artefact is given twice: " + ", ".join(map(str, paths)))
    names = [path.resolve().name for path in paths]
    return [name if names.count(name) == 1 else str(path) for name, path in zip(names, paths, strict=True)]


def inputs_of(artifact: Artifact[RunnableDetails], seed: int = 0, sizes: Mapping[str, int] | None = None) -> Callable[[int], list[Inputs]]:
    """Inputs to cycle through, by batch: noise, at timesteps from all over the calibrated ones; ``sizes`` as ``contenders_from`` says."""
    details, timesteps = artifact.details, artifact.manifest.timesteps
    built = artifact.details.sizes if is_kind(artifact, EngineDetails) else {}
    usual = {name: built.get(name, free.range)[1] for name, free in details.free.items()}
    chosen_sizes = {**usual, **{name: size for name, size in (sizes or {}).items() if name in usual}}
    followers = {name: free.following(chosen_sizes[free.of]) for name, free in details.free.items() if free.of is not None}
    chosen_sizes |= followers
    chosen = [timesteps[round(i)] for i in np.linspace(0, len(timesteps) - 1, min(_TIMESTEPS, len(timesteps)))]

    def inputs(batch: int) -> list[Inputs]:
        generator = np.random.default_rng(seed)
        others = [entry for entry in details.inputs if entry.name != TIMESTEP]
        return [
            {
                **{entry.name: _noise(entry, {**chosen_sizes, "batch": batch}, generator) for entry in others},
                TIMESTEP: np.asarray(step, np.float32),
            }
            for step in chosen or [0.0]
        ]

    return inputs


def _noise(entry: GraphInput, sizes: Mapping[str, int], generator: np.random.Generator) -> Array:
    """Standard normal noise in an input's shape: what a network sees at the start of sampling, and any condition's likeliest size."""
    if free := [size for size in entry.shape if isinstance(size, str) and size not in sizes]:
        raise UsageError(f"input '{entry.name}' has free dimensions ({', '.join(free)}): its size for timing is unknown")
    shape = [size if isinstance(size, int) else sizes[size] for size in entry.shape]
    noise = generator.standard_normal(shape)
    dtype = entry.dtype or "float32"
    return noise.astype(np.float32) if dtype.startswith("float") else np.zeros(shape, dtype)
