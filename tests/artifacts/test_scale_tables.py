"""Tables are data: what reads them notices what is missing, and a recalibrated one changes nothing else in the graph."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import pytest

from dq_deploy.artifacts import Artifact, open_artifact
from dq_deploy.artifacts.scale_tables import ScaleTable, read_tables
from dq_deploy.errors import ArtifactError
from dq_deploy.exporters import TARGETS, export
from dq_deploy.quantization.checkpoint import Checkpoint
from tests.tiny import WHOLE, change_tensors, resealed

QUANTIZER = "up.input"


@pytest.mark.parametrize("target", TARGETS)
def test_a_recalibrated_table_changes_its_own_initializers_and_nothing_else(
    plain_checkpoint: Checkpoint, target: str, tmp_path: Path
) -> None:
    other = shutil.copytree(plain_checkpoint.artifact.path, tmp_path / "checkpoint")

    def recalibrate(tensors: dict) -> None:  # type: ignore[type-arg]
        tensors[f"{QUANTIZER}.scale"] = tensors[f"{QUANTIZER}.scale"] * 1.5
        tensors[f"{QUANTIZER}.zero_point"] = -tensors[f"{QUANTIZER}.zero_point"] // 2

    change_tensors(other, recalibrate)
    before = export(plain_checkpoint.artifact, tmp_path / "before", target=target, **WHOLE[target])  # type: ignore[arg-type]
    after = export(other, tmp_path / "after", target=target, **WHOLE[target])  # type: ignore[arg-type]
    graphs = [onnx.load(made.path / "model.onnx").graph for made in (before, after)]
    tensors = [{i.name: i.SerializeToString() for i in graph.initializer} for graph in graphs]
    assert list(tensors[0]) == list(tensors[1])
    assert {name for name in tensors[0] if tensors[0][name] != tensors[1][name]} == {f"{QUANTIZER}.scale", f"{QUANTIZER}.zero_point"}
    for graph in graphs:
        del graph.initializer[:]
    assert graphs[0].SerializeToString() == graphs[1].SerializeToString()
    tables = [read_tables(made) for made in (before, after)]
    assert {name for name in tables[0] if tables[0][name] != tables[1][name]} == {QUANTIZER}


def test_a_table_that_is_missing_or_has_other_rows_is_named(plain_checkpoint: Checkpoint, tmp_path: Path) -> None:
    made = export(plain_checkpoint.artifact, tmp_path / "bundle", target="qdq")
    other = open_artifact(shutil.copytree(made.path, tmp_path / "other"), "bundle")
    spoil(made, f"{QUANTIZER}.scale", None)
    with pytest.raises(ArtifactError, match="no scale table for quantizer 'up.input', which its manifest names"):
        read_tables(open_artifact(made.path, "bundle"))
    spoil(other, f"{QUANTIZER}.scale", [0.1, 0.2, 0.3])
    with pytest.raises(ArtifactError, match="quantizer 'up.input' has 3 scale rows for 4 timesteps"):
        read_tables(open_artifact(other.path, "bundle"))
    spoil(other, f"{QUANTIZER}.scale", [0.1, 0.2, float("nan"), 0.3])
    with pytest.raises(ArtifactError, match="quantizer 'up.input' has scales or clipping ratios that are not positive numbers"):
        read_tables(open_artifact(other.path, "bundle"))


def spoil(bundle: Artifact, name: str, values: list[float] | None) -> None:
    path = bundle.path / "model.onnx"
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name == name and values is None:
            tensor.name = "elsewhere"
        elif tensor.name == name and values is not None:
            tensor.CopyFrom(onnx.helper.make_tensor(name, onnx.TensorProto.FLOAT, [len(values)], values))
    onnx.save(model, path)
    resealed(bundle.path)


def test_a_table_has_a_row_for_each_timestep() -> None:
    with pytest.raises(ValueError, match="3 timesteps, 2 scales and 3 zero-points"):
        ScaleTable(timesteps=[0.0, 1.0, 2.0], scales=[1.0, 2.0], zero_points=[0, 0, 0])
