"""``config.pbtxt`` of a Triton model: inputs and outputs without the batch's dimension, batching, instances, warm-up.

Triton batches requests along the first dimension of every input. In a graph of target ``qdq`` ``timestep`` is [N], a number for each
sample: requests at different denoising steps share a batch. In one of target ``onnxruntime`` it is [1], one for the whole batch:
Triton must not put requests together, so such a model has ``max_batch_size: 0`` and each request is a batch of its own at one timestep.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from jinja2 import Environment, PackageLoader, StrictUndefined

from ...artifacts.details import GraphInput, GraphOutput
from ...errors import ArtifactError, UsageError

Kind = Literal["KIND_AUTO", "KIND_CPU", "KIND_GPU"]
BATCH = "batch"
_TYPES = {
    "float32": "TYPE_FP32", "float16": "TYPE_FP16", "bfloat16": "TYPE_BF16", "float64": "TYPE_FP64",
    "int64": "TYPE_INT64", "int32": "TYPE_INT32", "bool": "TYPE_BOOL",
}  # fmt: skip
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
_TENSOR_NAME = re.compile(r"[\w./:-]+", re.ASCII)


@dataclass(frozen=True)
class TritonTensor:
    """An input or output. ``dims`` are a request's, without the batch; a ``scalar`` is [] in the graph and [1] in a request."""

    name: str
    data_type: str
    dims: tuple[int, ...]
    scalar: bool = False


@dataclass(frozen=True)
class TritonConfig:
    """All of ``config.pbtxt``. ``warmup`` are (batch size, dims by input), ``files_by_capability`` plans by compute capability."""

    name: str
    backend: str
    platform: str
    max_batch_size: int
    inputs: tuple[TritonTensor, ...]
    outputs: tuple[TritonTensor, ...]
    kind: Kind
    instances: int
    preferred: tuple[int, ...]
    queue_delay_us: int
    warmup: tuple[tuple[int, dict[str, tuple[int, ...]]], ...]
    files_by_capability: dict[str, str] = field(default_factory=dict)

    def text(self) -> str:
        """The file's contents: protobuf's text format."""
        loader = PackageLoader("dq_deploy.engines.triton")
        # No HTML: what is quoted in the file are names, which are checked, and types.
        environment = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False)  # noqa: S701
        return environment.get_template("config.pbtxt.j2").render(config=self)


def check_name(name: str) -> str:
    """A model's name, which is a folder's and a quoted string's. Raises UsageError."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"'{name}' is not a name for a model of Triton's", "letters, digits, '.', '_' and '-', the first a letter or digit"
        )
    return name


def shares_batches(inputs: Sequence[GraphInput]) -> bool:
    """Whether every input has the batch as its first dimension, so that requests can be put together."""
    return all(entry.shape and entry.shape[0] == BATCH for entry in inputs)


def tensors_of(inputs: Sequence[GraphInput | GraphOutput], *, batched: bool) -> tuple[TritonTensor, ...]:
    """Inputs or outputs as Triton has them.

    Raises ArtifactError for a type that Triton lacks, and for a name that cannot be quoted.
    """
    tensors = []
    for entry in inputs:
        if not _TENSOR_NAME.fullmatch(entry.name):
            raise ArtifactError(f"'{entry.name}' cannot be the name of an input or output")
        if entry.dtype not in _TYPES:
            raise ArtifactError(f"input '{entry.name}' is {entry.dtype}, which Triton has no type for")
        shape = entry.shape[1:] if batched else entry.shape
        dims = tuple(size if isinstance(size, int) else -1 for size in shape)
        tensors.append(TritonTensor(entry.name, _TYPES[entry.dtype], dims or (1,), scalar=not dims))
    return tuple(tensors)


def warmup_of(
    inputs: Sequence[GraphInput], sizes: Mapping[str, int], batches: Sequence[int], *, batched: bool
) -> tuple[tuple[int, dict[str, tuple[int, ...]]], ...]:
    """A warm-up at each batch size; ``sizes`` has the usual size of every other dynamic dimension.

    A model that does not batch is warmed up with whole shapes, batch included, which Triton counts as one.
    """
    return tuple(
        (batch if batched else 1, {e.name: _warm_dims(e.shape, {**sizes, BATCH: batch}, batched=batched) for e in inputs})
        for batch in dict.fromkeys(batches)
    )


def _warm_dims(shape: Sequence[int | str], sizes: Mapping[str, int], *, batched: bool) -> tuple[int, ...]:
    dims = tuple(size if isinstance(size, int) else sizes[size] for size in (shape[1:] if batched else shape))
    return dims or (1,)
