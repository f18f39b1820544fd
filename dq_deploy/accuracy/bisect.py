"""``check --bisect``: where what runs leaves the checkpoint, and where the checkpoint's own error comes from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, Field

from ..artifacts import Artifact
from ..artifacts.details import BundleDetails
from ..engines.loading.choice import file_runner
from ..engines.onnxruntime.runner import OnnxRuntimeRunner
from ..engines.running.runner import GraphRunner
from ..errors import ArtifactError, UsageError
from ..progress import Progress, silent
from ..quantization.checkpoint import Checkpoint
from .divergence import Divergence, first_divergence
from .end_to_end import TimestepParity
from .error_sources import ErrorSources, error_sources
from .regions import RegionParity

if TYPE_CHECKING:
    from .verdict import CheckResult


class Bisection(BaseModel):
    """``divergences``: one for each of what was compared that failed. ``sources`` are of the worst timestep.

    ``nodes``: the float parts that are wrong, each with the node of the PyTorch forward that the graph does not compute.

    ``sources`` is None, with the reason in ``no_sources``, where there is no float model to compare with.
    """

    divergences: list[Divergence]
    nodes: list[RegionParity] = Field(default_factory=list)
    sources: ErrorSources | None = None
    no_sources: str | None = None


def bisect(bundle: Artifact[BundleDetails], checkpoint: Checkpoint, result: CheckResult, *, min_snr: float | None = None,
           threads: int | None = None, progress: Progress = silent) -> Bisection:  # fmt: skip
    """Find the first layer and timestep at which each failed comparison of ``result`` went wrong, and the layers that cost most.

    The timestep of the second question is the one with the lowest SNR of the PyTorch quantized forward.
    """
    compared: list[tuple[str, Sequence[TimestepParity], Mapping[str, Any] | None]] = [("onnxruntime, as written", result.timesteps, None)]
    compared += [(engine.engine, engine.timesteps, engine.details) for engine in result.engines]
    divergences = []
    for name, rows, details in compared:

        def run(file: Path, feeds: Mapping[str, Any], name: str = name, details: Mapping[str, Any] | None = details) -> torch.Tensor:
            runner = OnnxRuntimeRunner(file, optimized=False) if details is None else file_runner(file, name, details, threads=threads)
            return _run_on(runner, feeds)

        if found := first_divergence(bundle, checkpoint, name, list(rows), run, progress):
            divergences.append(found)
    nodes = [row for row in result.regions if not row.passed]
    worst = min(result.timesteps, key=lambda row: math.inf if row.snr_reference_db is None else row.snr_reference_db)
    try:
        return Bisection(
            divergences=divergences, nodes=nodes, sources=error_sources(checkpoint, worst.timestep, min_snr=min_snr, progress=progress)
        )
    except (UsageError, ArtifactError) as error:
        return Bisection(divergences=divergences, nodes=nodes, no_sources=error.message)


def _run_on(runner: GraphRunner, feeds: Mapping[str, Any]) -> torch.Tensor:
    """Run a part of a graph, which may take fewer inputs than the whole."""
    names = {spec.name for spec in runner.specs}
    return torch.from_numpy(runner.run({name: value for name, value in feeds.items() if name in names})).float()
