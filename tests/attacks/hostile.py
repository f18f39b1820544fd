"""Hostile artefacts: ordinary ones with one thing wrong, and a manifest that vouches for them, as one who tampers would make them."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from dq_deploy.artifacts import Artifact
from tests.tiny import resealed

Proto = onnx.ModelProto


def copy_of(artifact: Artifact | Path, path: Path) -> Path:
    return Path(shutil.copytree(artifact.path if isinstance(artifact, Artifact) else artifact, path))


def change_manifest(path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path


def change_graph(path: Path, change: Callable[[Proto], Any]) -> Path:
    """Change a bundle's graph, its data files untouched."""
    model = onnx.load(path / "model.onnx", load_external_data=False)
    change(model)
    (path / "model.onnx").write_bytes(model.SerializeToString())
    return resealed(path)


def external_tensor(model: Proto) -> TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.data_location == TensorProto.EXTERNAL)


def set_entry(key: str, value: str) -> Callable[[Proto], None]:
    """Set an entry of the first external tensor."""

    def change(model: Proto) -> None:
        tensor = external_tensor(model)
        found = [entry for entry in tensor.external_data if entry.key == key]
        if found:
            found[0].value = value
        else:
            tensor.external_data.add(key=key, value=value)

    return change


def safetensors(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A file from a header (an object, or JSON text) and the bytes behind it, its length true or not."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(begin: int, end: int, *, dtype: Any = "F32", shape: Any = (4,)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape) if isinstance(shape, tuple) else shape, "data_offsets": [begin, end]}


def relu(**changes: Any) -> Proto:
    """A valid graph of one node, to be spoilt."""
    info = helper.make_tensor_value_info
    shape = ["batch", 4]
    nodes = changes.pop("nodes", [helper.make_node("Relu", ["sample"], ["out_sample"], name="act")])
    graph = helper.make_graph(nodes, "g", [info("sample", 1, shape)], [info("out_sample", 1, shape)], changes.pop("tensors", []))
    return helper.make_model(graph, **{"opset_imports": [helper.make_opsetid("", 21)], "ir_version": 10, **changes})
