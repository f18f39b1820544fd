"""Where an engine leaves its checkpoint: the first layer after which it computes something else, found by cutting its graph short.

The graph up to a layer's output is compiled and run as the whole one was, and compared with the same output of the PyTorch quantized
forward. An extra output in the whole graph would be cheaper, and would change what the engine fuses, which may be what goes wrong.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from pydantic import BaseModel

from ..artifacts import Artifact
from ..artifacts.details import BundleDetails
from ..artifacts.reading import read_ir
from ..errors import ArtifactError
from ..exporters.bundle import write_model
from ..exporters.cutting import cut_to, named_values
from ..progress import Progress, silent
from ..quantization.checkpoint import Checkpoint
from .end_to_end import TimestepParity, relative_error
from .recording import layer_outputs

Run = Callable[[Path, Mapping[str, Any]], torch.Tensor]
"""Compile an ONNX file as the engine in question does, and run it on these inputs, of which the graph may want fewer."""


class Divergence(BaseModel):
    """A layer whose output an engine gets wrong from inputs that it gets right, at the first timestep at which it fails.

    ``error`` is ‖engine − PyTorch‖ / ‖PyTorch‖ of the layer's output, ``before`` the largest of the layers that it reads (None: it reads
    none), ``allowed`` the one that would move the network's own SNR by the bound of the check. ``layer`` is None where every layer that
    the output reads is within it, and the difference is made after them; ``before`` is theirs then.
    """

    engine: str
    timestep: float
    layer: str | None
    error: float | None
    before: float | None
    allowed: float
    compiled: int


@torch.no_grad()
def first_divergence(bundle: Artifact[BundleDetails], checkpoint: Checkpoint, engine: str, rows: list[TimestepParity], run: Run,
                     progress: Progress = silent) -> Divergence | None:  # fmt: skip
    """Search the layers of ``bundle`` by halves at the first of ``rows`` that differ from the reference's; None when none does.

    It takes some log2(layers) builds of a part of the graph, a few times over: beside a broken layer stand others that do not read it, so
    that halves alone may end at one that only passes the error on.
    """
    failed = next((row for row in reversed(rows) if not row.alike), None)  # rows ascend, and sampling begins at the noisiest
    if failed is None or failed.snr_reference_db is None:
        return None
    inputs = _inputs(checkpoint, failed.timestep)
    expected = layer_outputs(checkpoint, inputs)
    cuts = [layer for layer in bundle.details.layers if layer.name in expected]
    if not cuts:
        raise ArtifactError(f"{bundle.path} names no layer of its checkpoint")
    allowed = (10 ** (failed.allowed_db / 10) - 1) ** 0.5 * 10 ** (-failed.snr_reference_db / 20)
    feeds = {name: value.numpy() for name, value in inputs.items()}
    errors: dict[int, float] = {}

    def wrong(index: int) -> bool:
        """Whether the output of layer number ``index`` is wrong; NaN is."""
        if index in errors:
            return not errors[index] <= allowed
        with tempfile.TemporaryDirectory(prefix="dq-deploy-bisect-") as folder:
            file = Path(folder) / "model.onnx"
            _write_part(bundle, cuts[index].output, file)
            got = run(file, feeds)
        errors[index] = relative_error(expected[cuts[index].name], got)
        advance(1, cuts[index].name)
        return not errors[index] <= allowed

    reads = _layers_read(bundle, [layer.output for layer in cuts])
    with progress(f"bisect on {engine}", len(cuts).bit_length() + 2) as advance:
        first = _first(wrong, range(len(cuts)))
        found = _back(wrong, reads, len(cuts) if first is None else first)
    layer, error = (cuts[found].name, errors[found]) if found < len(cuts) else (None, None)
    before = max((errors[index] for index in reads[found]), default=None)
    return Divergence(
        engine=engine, timestep=failed.timestep, layer=layer, error=error, before=before, allowed=allowed, compiled=len(errors)
    )


def _first(wrong: Callable[[int], bool], numbers: Sequence[int]) -> int | None:
    """The first of ``numbers`` that is wrong, if what comes after a wrong one is; None if the last one is right."""
    if not wrong(numbers[-1]):
        return None
    low, high = 0, len(numbers) - 1  # everything below low is right, high is wrong
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if wrong(numbers[middle]) else (middle + 1, high)
    return numbers[high]


def _back(wrong: Callable[[int], bool], reads: Sequence[Sequence[int]], found: int) -> int:
    """From number ``found`` to a wrong one whose reads are all right; ``reads`` [layers + 1] has the output's last.

    What a wrong one depends on is searched by halves in its turn, so that a long chain of wrong ones is not compiled one by one.
    """
    while earlier := [index for index in reads[found] if wrong(index)]:
        first = _first(wrong, _depends_on(reads, earlier[0]))
        found = earlier[0] if first is None else first
    return found


def _depends_on(reads: Sequence[Sequence[int]], number: int) -> list[int]:
    """The numbers that one depends on through any others, and itself, ascending."""
    found, waiting = {number}, [number]
    while waiting:
        new = set(reads[waiting.pop()]) - found
        found |= new
        waiting += new
    return sorted(found)


def _layers_read(bundle: Artifact[BundleDetails], cuts: Sequence[str]) -> list[list[int]]:
    """By layer the numbers of the layers that it reads with none between, and last those that the graph's outputs read."""
    graph = read_ir(bundle.file("model.onnx"), listed=bundle.manifest.files).graph
    number = {name: index for index, name in enumerate(cuts)}

    def read(ends: Iterable[ir.Value | None]) -> list[int]:
        waiting, seen = list(ends), set[ir.Value]()
        while waiting:
            value = waiting.pop()
            if value is None or value in seen:
                continue
            seen.add(value)
            if value.name not in number and (node := value.producer()):
                waiting += node.inputs
        return sorted(number[str(value.name)] for value in seen if value.name in number)

    values = named_values(bundle, graph, cuts)
    nodes = [values[name].producer() for name in cuts]
    return [*(read(node.inputs if node else ()) for node in nodes), read(graph.outputs)]


def _inputs(checkpoint: Checkpoint, timestep: float) -> dict[str, torch.Tensor]:
    """The first reference seed at a timestep, in the order of the checkpoint's inputs."""
    reference = checkpoint.reference()
    row = reference.timesteps.tolist().index(timestep)
    return checkpoint.inputs(reference, row, slice(reference.per_seed))


def _write_part(bundle: Artifact, value: str, path: Path) -> None:
    """The bundle's graph up to a value, with the inputs that this takes."""
    model = read_ir(bundle.file("model.onnx"), listed=bundle.manifest.files)
    cut_to(model, [value])
    write_model(model, path)
