"""What every engine that can run here has in common: inputs by name go in, the model's output comes out.

An engine's own module says how to load a graph and how to run one batch that fits it; this one checks and shapes what the caller
hands in, so that every engine accepts the same inputs and complains in the same words.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from ...artifacts import Artifact, open_artifact
from ...artifacts.reading import check_onnx
from ...errors import ArtifactError, UsageError
from .finite import Nonfinite, spoiled

TIMESTEP = "timestep"
MODEL_FILE = "model.onnx"
Array = NDArray[Any]
_OTHER_SIZES = (
    "where a number stands it takes this one size, and a picture's is the one that it was quantized for: quantize for another with "
    "--height and --width, or for several with --sizes"
)


class Runner(Protocol):
    """Something that runs the model: an inference engine with a graph loaded."""

    @property
    def name(self) -> str:
        """The engine, as people call it: ``onnxruntime``, ``openvino``."""

    @property
    def details(self) -> dict[str, Any]:
        """What a reader of a number needs to know: versions, provider, precision hint, threads. JSON-able."""

    def run(self, inputs: Mapping[str, Array]) -> Array:
        """Run one batch: ``sample`` [N, C, H, W] → the same shape.

        ``timestep`` is a scalar, [1] or [N], int or float; other inputs are as the graph has them.
        """


@dataclass(frozen=True)
class InputSpec:
    """One graph input. A dimension that the caller chooses (batch, height, tokens) is None.

    ``limits`` has the (smallest, largest) size of each dimension where an engine was built for a range; empty: any size will do.
    ``entries``: how many entries the table has that the values select from (classes, say); None: no table, or it is not known.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: np.dtype[Any]
    limits: tuple[tuple[int, int], ...] = ()
    entries: int | None = None

    @property
    def batched(self) -> bool:
        """Whether the first dimension is the batch."""
        return bool(self.shape) and self.shape[0] is None


class GraphRunner(ABC):
    """A loaded ONNX graph. Subclasses fill ``name``, ``details`` and ``specs`` and run one batch that already fits.

    ``nonfinite`` says what happens to samples with NaN or infinity (finite.py).
    """

    name: str
    details: dict[str, Any]
    specs: tuple[InputSpec, ...]
    nonfinite: Nonfinite = "refuse"
    each_timestep: ClassVar[bool] = False
    """Whether a batch that mixes timesteps is always split by them, and not only where the graph takes one at a time."""

    @abstractmethod
    def _infer(self, feeds: dict[str, Array]) -> Array:
        """Run the graph on inputs of exactly its shapes and dtypes."""

    def run(self, inputs: Mapping[str, Array]) -> Array:
        """Run one batch (see ``Runner.run``).

        A graph whose ``timestep`` is [1] takes one table row at a time: a batch that mixes timesteps is split by their values, run in
        parts and put together in the caller's order.

        Raises UsageError naming every input that does not fit, or that has values which are not finite.
        """
        feeds = bind_inputs(self.specs, inputs)
        lost = spoiled(self.specs, feeds, self.nonfinite)
        output = self._infer_in_parts(feeds)
        if lost is not None:
            output[lost] = np.nan
        return output

    def _infer_in_parts(self, feeds: dict[str, Array]) -> Array:
        parts = list(_parts_by_timestep(self.specs, feeds, each=self.each_timestep))
        if len(parts) == 1:
            return self._infer(parts[0][1])
        return gathered([(samples, self._infer(part)) for samples, part in parts])


class PartsRunner(GraphRunner):
    """A loaded graph that gives all its outputs, so it may be a part of a network (``EngineDescriptor.parts``)."""

    @abstractmethod
    def infer_all(self, feeds: Mapping[str, Array]) -> list[Array]:
        """Every output [N, ...] of the graph, in its order, for inputs [N, ...] of exactly its shapes and dtypes."""


def taken(specs: Sequence[InputSpec], feeds: dict[str, Array], samples: Array) -> dict[str, Array]:
    """The inputs of some ``samples`` [n] of a batch, whose timesteps are [N]."""
    batched = {TIMESTEP, *(spec.name for spec in specs if spec.batched)}
    if len(samples) == len(feeds.get(TIMESTEP, samples)):
        return feeds
    return {name: array[samples] if name in batched else array for name, array in feeds.items()}


def gathered(parts: Sequence[tuple[Array, Array]]) -> Array:
    """One batch of what came of its parts: (samples [n], output [n, ...]) each."""
    outputs = [output for _, output in parts]
    whole = np.empty((sum(map(len, outputs)), *outputs[0].shape[1:]), np.result_type(*outputs))
    for samples, output in parts:
        whole[samples] = output
    return whole


def graph_file(source: str | Path | Artifact) -> Path:
    """The ONNX file of a bundle (folder or opened artefact), or the file itself when the path names one.

    Raises UsageError (no such path) and ArtifactError (a folder that is not a bundle, or whose files do not match its manifest; a
    graph that names data outside of its folder).
    """
    if isinstance(source, Artifact):
        if source.manifest.kind != "bundle":
            raise ArtifactError(f"{source.path} is a {source.manifest.kind}, and a bundle is needed here")
        check_onnx(source.file(MODEL_FILE), listed=source.manifest.files)
        return source.file(MODEL_FILE)
    path = Path(source)
    if path.is_file():
        check_onnx(path)
        return path
    return graph_file(open_artifact(path, "bundle"))


def bind_inputs(specs: Sequence[InputSpec], inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The caller's inputs in the graph's dtypes, ``timestep`` as [N] even where the graph takes [1].

    Raises UsageError naming all missing, unknown and misshapen inputs together, and those whose values another type would change.
    """
    names = [spec.name for spec in specs]
    problems = [f"input '{name}' is missing" for name in names if name not in inputs]
    problems += [f"the graph has no input '{name}' (it has {', '.join(names)})" for name in inputs if name not in names]
    if problems:
        raise UsageError("; ".join(problems))
    given = {spec.name: _as_array(spec.name, inputs[spec.name]) for spec in specs if spec.name != TIMESTEP}
    problems = [problem for spec in specs if spec.name != TIMESTEP for problem in _type_problems(spec, given[spec.name])]
    if problems:
        raise UsageError("; ".join(problems))
    with np.errstate(over="ignore"):  # what float16 cannot hold becomes infinity, which finite.py finds
        arrays = {spec.name: np.ascontiguousarray(given[spec.name], dtype=spec.dtype) for spec in specs if spec.name != TIMESTEP}
    misshapen = [problem for spec in specs if spec.name != TIMESTEP for problem in _shape_problems(spec, arrays[spec.name])]
    if misshapen and all(len(arrays[spec.name].shape) == len(spec.shape) for spec in specs if spec.name != TIMESTEP):
        raise UsageError("; ".join(misshapen), _OTHER_SIZES)
    problems = misshapen + [problem for spec in specs if spec.name != TIMESTEP for problem in _entry_problems(spec, arrays[spec.name])]
    batches = {spec.name: len(arrays[spec.name]) for spec in specs if spec.name in arrays and spec.batched and arrays[spec.name].ndim}
    if len(set(batches.values())) > 1:
        problems.append("the inputs' batches differ: " + ", ".join(f"{name} has {size}" for name, size in batches.items()))
    if problems:
        raise UsageError("; ".join(problems))
    for spec in specs:
        if spec.name == TIMESTEP:
            arrays[TIMESTEP] = _bind_timestep(spec, inputs[TIMESTEP], next(iter(batches.values()), None))
    return arrays


def _as_array(name: str, value: Array) -> Array:
    try:
        return np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:  # lists of different lengths, tensors of torch that numpy cannot show
        raise UsageError(f"input '{name}' is not an array: {error}") from None


def _type_problems(spec: InputSpec, array: Array) -> Iterator[str]:
    """Why the graph's type is not a type for these values: a cast would change them, or a float model would not take them."""
    floating = array.dtype.kind == "f" or array.dtype.name == "bfloat16"  # numpy itself has none
    if not floating and array.dtype.kind not in "biu":
        yield f"input '{spec.name}' has dtype {array.dtype}, and the graph takes {spec.dtype}"
    elif spec.dtype.kind == "f":
        if not floating:
            yield f"input '{spec.name}' has dtype {array.dtype}, and the graph takes {spec.dtype}: convert it if that is what it means"
    elif array.dtype != spec.dtype:
        with np.errstate(invalid="ignore"):
            changed = np.flatnonzero((array.astype(spec.dtype) != array).reshape(-1))
        if changed.size:
            value = array.reshape(-1)[changed[0]]
            yield f"input '{spec.name}' has {value} in it, which is not of type {spec.dtype}, and the graph takes that"


def _entry_problems(spec: InputSpec, array: Array) -> Iterator[str]:
    """Indices beyond a table: engines take other entries in their place, or zeros."""
    if spec.entries is not None and array.size:
        outside = np.flatnonzero((array.reshape(-1) < 0) | (array.reshape(-1) >= spec.entries))
        if outside.size:
            yield f"input '{spec.name}' is {array.reshape(-1)[outside[0]]}, and the graph has entries 0 to {spec.entries - 1} for it"


def _shape_problems(spec: InputSpec, array: Array) -> Iterator[str]:
    shape = array.shape
    fits = len(shape) == len(spec.shape) and all(want in (None, have) for want, have in zip(spec.shape, shape, strict=True))
    if not fits:
        expected = ", ".join("any" if size is None else str(size) for size in spec.shape)
        yield f"input '{spec.name}' has shape {list(shape)}, and the graph takes [{expected}]"
    elif 0 in shape:
        yield f"input '{spec.name}' is empty: its shape is {list(shape)}"
    elif not all(low <= size <= high for size, (low, high) in zip(shape, spec.limits, strict=False)):
        smallest, largest = ([limit[i] for limit in spec.limits] for i in range(2))
        yield f"input '{spec.name}' has shape {list(shape)}, and the engine was built for {smallest} to {largest}"


def _bind_timestep(spec: InputSpec, value: Array, batch: int | None) -> Array:
    """``value`` (a scalar, [1] or [N]) as [N]."""
    steps = _as_array(TIMESTEP, value)
    if steps.dtype.kind not in "iuf":
        raise UsageError(f"input 'timestep' has dtype {steps.dtype}, and a number is needed")
    steps = steps.astype(spec.dtype)
    size = batch or max(steps.size, 1)
    if steps.ndim > 1 or steps.size not in (1, size):
        raise UsageError(f"input 'timestep' has shape {list(steps.shape)}: give a scalar, [1] or one for each of the {size} samples")
    bad = np.flatnonzero(~np.isfinite(steps.reshape(-1)))
    if bad.size:
        raise UsageError(f"input 'timestep' is {steps.reshape(-1)[bad[0]]} at sample {bad[0]}: it selects no row of the scale tables")
    return np.ascontiguousarray(np.broadcast_to(steps.reshape(-1), (size,)))


def _parts_by_timestep(
    specs: Sequence[InputSpec], feeds: dict[str, Array], *, each: bool
) -> Iterator[tuple[Array, dict[str, Array]]]:  # fmt: skip
    """(samples [n], feeds) of the runs that a batch needs: one, unless it mixes timesteps and the graph takes one, or ``each`` is true."""
    steps = feeds.get(TIMESTEP)
    shape = next((spec.shape for spec in specs if spec.name == TIMESTEP), None)
    # The shape of a timestep that is the whole batch's.
    one: tuple[int, ...] | None = (1,) if shape == (1,) else () if shape == () else None
    if steps is None or not (one is not None or each):
        yield np.arange(len(steps) if steps is not None else 0), feeds
        return
    for value in np.unique(steps):
        samples = np.flatnonzero(steps == value)
        part = taken(specs, feeds, samples)
        yield samples, {**part, TIMESTEP: np.full(one, value, steps.dtype) if one is not None else steps[samples]}
