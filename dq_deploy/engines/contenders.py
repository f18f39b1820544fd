"""Who takes part in a timing: a bundle on an inference engine, or a built engine, with inputs like those it will meet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ..artifacts import Artifact
from ..errors import UsageError
from .choice import Engine, engines_of, runner_on
from .engine_files import open_runnable
from .runner import TIMESTEP, Array, Runner

Inputs = Mapping[str, Array]
# Timesteps cycled through while timing; more would only lengthen the comparison of outputs that precedes it.
_TIMESTEPS = 4


@dataclass(frozen=True)
class Contender:
    """A model on an engine. ``inputs(batch)`` are the inputs to cycle through; contenders of one model get the same ones."""

    name: str
    runner: Runner
    inputs: Callable[[int], Sequence[Inputs]]
    path: str = ""


def contenders_from(
    paths: Sequence[str | Path | Artifact], *, engines: Sequence[Engine] | None = None, threads: int | None = None, seed: int = 0
) -> list[Contender]:
    """Each bundle on each of ``engines``, and each built engine on what it was built for.

    By default: every bundle on onnxruntime, and those of target ``tensorrt`` on OpenVINO too where it is installed (the other target's
    graphs have scales computed at run time, which OpenVINO computes in float). Names are "<folder> · <engine>".

    Raises UsageError (no such path, the same artefact twice), ArtifactError (neither bundle nor engine, a changed file) and
    EnvironmentProblem (an engine that was not built for what is here; a runtime that is not installed).
    """
    artifacts = [open_runnable(path) for path in paths]
    labels = _labels([artifact.path for artifact in artifacts])
    return [
        Contender(
            name=f"{label} · {engine}",
            runner=runner_on(artifact, engine, threads=threads),
            inputs=_inputs_of(artifact, seed),
            path=str(artifact.path),
        )
        for artifact, label in zip(artifacts, labels, strict=True)
        for engine in _engines_of(artifact, engines)
    ]


def _engines_of(artifact: Artifact, asked: Sequence[Engine] | None) -> Sequence[Engine]:
    if artifact.manifest.kind == "engine":
        return engines_of(artifact, asked)
    if asked:
        return asked
    with_openvino = artifact.manifest.details["target"] == "tensorrt" and find_spec("openvino") is not None
    return ("onnxruntime", "openvino") if with_openvino else ("onnxruntime",)


def _labels(paths: Sequence[Path]) -> list[str]:
    """Folder names, or whole paths where two folders have the same name."""
    if len({path.resolve() for path in paths}) < len(paths):
        raise UsageError("the same artefact is given twice: " + ", ".join(map(str, paths)))
    names = [path.resolve().name for path in paths]
    return [name if names.count(name) == 1 else str(path) for name, path in zip(names, paths, strict=True)]


def _inputs_of(artifact: Artifact, seed: int) -> Callable[[int], list[Inputs]]:
    details, timesteps = artifact.manifest.details, artifact.manifest.timesteps
    chosen = [timesteps[round(i)] for i in np.linspace(0, len(timesteps) - 1, min(_TIMESTEPS, len(timesteps)))]

    def inputs(batch: int) -> list[Inputs]:
        generator = np.random.default_rng(seed)
        others = [entry for entry in details["inputs"] if entry["name"] != TIMESTEP]
        return [
            {**{entry["name"]: _noise(entry, batch, generator) for entry in others}, TIMESTEP: np.asarray(step, np.float32)}
            for step in chosen or [0.0]
        ]

    return inputs


def _noise(entry: Mapping[str, Any], batch: int, generator: np.random.Generator) -> Array:
    """Standard normal noise in an input's shape: what a network sees at the start of sampling, and any condition's likeliest size."""
    shape = [batch if size == "batch" else size for size in entry["shape"]]
    free = [size for size in shape if not isinstance(size, int)]
    if free:
        raise UsageError(f"input '{entry['name']}' has free dimensions ({', '.join(map(str, free))}): its size for timing is unknown")
    noise = generator.standard_normal(shape)
    return noise.astype(np.float32) if entry["dtype"].startswith("float") else np.zeros(shape, entry["dtype"])
