"""The graph that static scales would give: every table's row 0 for every timestep."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from dq_deploy.artifacts import create_artifact, open_artifact
from dq_deploy.exporters.emitter import initializer
from dq_deploy.formats.tables import ROW


def write_static_twin(bundle: Path, output: Path) -> None:
    """Write a ``tensorrt`` bundle's twin whose selected row is a constant, so that a builder folds the scales into constants."""
    source = open_artifact(bundle, "bundle")
    model = ir.load(bundle / "model.onnx")
    graph = model.graph
    row = next(value for node in graph for value in node.outputs if value.name == ROW)
    row.name = f"{ROW}:selected"
    constant = initializer(graph, ROW, ir.tensor(np.zeros(1, dtype=np.int32), name=ROW))
    ir.convenience.replace_all_uses_with(row, constant)
    passes.RemoveUnusedNodesPass()(model)
    manifest = source.manifest.model_copy(deep=True)
    manifest.parent = source.as_parent
    with create_artifact(output, manifest, force=True) as folder:
        for name in source.manifest.files:
            if name != "model.onnx":
                shutil.copyfile(bundle / name, folder / name)
        ir.save(model, folder / "model.onnx")
