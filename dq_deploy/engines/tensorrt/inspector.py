"""What TensorRT's engine inspector says of a loaded engine: the kernels that run on this GPU, as the builder's log has them elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import ArtifactError
from ..layer_report.kernels import Kernel, Tensor
from .layer_dump import dtype_of, onnx_nodes

_FORMATS = ("Format/Datatype", "Datatype", "Format")


def inspected_kernels(information: str) -> tuple[Kernel, ...]:
    """The kernels of an engine from the inspector's JSON. Raises ArtifactError where it has no details of them."""
    try:
        layers = json.loads(information)["Layers"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"the engine inspector's answer cannot be read ({error})", "report the answer: it is another version's"
        ) from None
    if not layers or not all(isinstance(layer, Mapping) for layer in layers):
        raise ArtifactError(
            "the engine inspector names kernels and says nothing of them", "build the engine again with: dq-deploy build-engine"
        )
    return tuple(map(_kernel, layers))


def _kernel(layer: Mapping[str, Any]) -> Kernel:
    weights = [_tensor(layer[name]) for name in ("Weights", "Bias") if isinstance(layer.get(name), Mapping)]
    return Kernel(
        name=str(layer.get("Name", "")), type=str(layer.get("LayerType", "")), inputs=_tensors(layer.get("Inputs")),
        constants=(*_tensors(layer.get("Constants")), *weights), outputs=_tensors(layer.get("Outputs")),
        nodes=onnx_nodes(str(layer.get("Metadata", ""))),
    )  # fmt: skip


def _tensors(entries: Sequence[Mapping[str, Any]] | None) -> tuple[Tensor, ...]:
    return tuple(map(_tensor, entries or ()))


def _tensor(entry: Mapping[str, Any]) -> Tensor:
    if "Count" in entry:  # weights of the enterprise TensorRT: {"Type": "Int8", "Count": 9216}
        return Tensor(dtype=dtype_of(str(entry.get("Type", ""))), shape=(int(entry["Count"]),))
    said = next((str(entry[name]) for name in _FORMATS if entry.get(name)), "")
    return Tensor(dtype=dtype_of(said), shape=tuple(int(size) for size in entry.get("Dimensions", ())))
