"""What attacks are made from, and the guard that no engine was called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest

from dq_deploy.artifacts import Artifact, create_artifact, open_artifact
from tests.engines import graphs


@pytest.fixture(scope="session")
def outside_bundle(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A bundle whose weights are in ``model.onnx.data``. Copy it before a change."""
    folder = tmp_path_factory.mktemp("attacked")
    whole = graphs.network(folder / "whole")
    with create_artifact(folder / "bundle", whole.manifest.model_copy(deep=True)) as work:
        model = onnx.load(whole.file("model.onnx"))
        onnx.save(model, work / "model.onnx", save_as_external_data=True, location="model.onnx.data", size_threshold=1024)
    return open_artifact(folder / "bundle", "bundle")


@pytest.fixture
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail as soon as an engine, or a builder, is handed anything."""
    import onnxruntime
    import openvino

    from dq_deploy.engines.build import engine as build

    def called(*_: Any, **__: Any) -> None:
        pytest.fail("a hostile file has reached an engine")

    monkeypatch.setattr(onnxruntime, "InferenceSession", called)
    monkeypatch.setattr(openvino.Core, "read_model", called)
    monkeypatch.setattr(build, "run_child", called)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A file beside the artefacts that none of them may reach."""
    path = tmp_path / "secret"
    path.write_bytes(bytes(1 << 20))
    return path
