"""Artefacts and pipelines as Hugging Face's cache keeps them: every file a link to ``../../blobs/<hash>``."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from dq_deploy.artifacts import Artifact, open_artifact
from dq_deploy.artifacts.reading import read_ir
from dq_deploy.engines.build.engine import build_engine
from dq_deploy.engines.dropin import make_runner
from dq_deploy.errors import ArtifactError
from dq_deploy.exporters.lint import lint


def as_cached(folder: Path, root: Path, *, owner: str = "models--someone--model") -> Path:
    """A folder as a snapshot of the hub's cache."""
    repository = root / owner
    snapshot = repository / "snapshots" / "0123abcd"
    (repository / "blobs").mkdir(parents=True)
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        blob = repository / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        blob.write_bytes(path.read_bytes())
        link = snapshot / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


@pytest.fixture(scope="module")
def cached(outside_bundle: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return open_artifact(as_cached(outside_bundle.path, tmp_path_factory.mktemp("hub")), "bundle")


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_bundle_with_its_weights_outside_runs(cached: Artifact, outside_bundle: Artifact, runtime: str) -> None:
    inputs = {"sample": np.random.default_rng(0).normal(size=(1, 8, 8, 8)).astype(np.float32), "timestep": np.array(2)}
    # ONNX Runtime's optimizer refuses this graph, wherever its weights are.
    options = {"optimized": False} if runtime == "onnxruntime" else {}
    results = [make_runner(bundle, runtime=runtime, **options).run(inputs) for bundle in (outside_bundle, cached)]  # type: ignore[arg-type]
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("backend", ["tensorrt-rtx", "openvino"])
def test_an_engine_is_built_from_it(cached: Artifact, tmp_path: Path, backend: str) -> None:
    options = {"compute_capabilities": ["8.9"]} if backend == "tensorrt-rtx" else {}
    engine = build_engine(cached, tmp_path / "engine", backend=backend, batch=(1, 1, 1), **options)  # type: ignore[arg-type]
    assert engine.manifest.details["engines"][0]["kernels"] > 0
    snapshot = as_cached(engine.path, tmp_path / "hub")
    if backend == "openvino":
        inputs = {"sample": np.ones((1, 8, 8, 8), np.float32), "timestep": np.array(2)}
        np.testing.assert_array_equal(make_runner(open_artifact(snapshot, "engine")).run(inputs), make_runner(engine).run(inputs))
    leftovers = [path.name for path in (cached.path.parents[1] / "blobs").iterdir() if path.name.startswith(".")]
    assert leftovers == []


def test_lint_and_the_harness_read_it(cached: Artifact, outside_bundle: Artifact) -> None:
    assert lint(cached).findings == lint(outside_bundle).findings
    graphs = [read_ir(bundle.file("model.onnx"), listed=bundle.manifest.files).graph for bundle in (cached, outside_bundle)]
    for name, value in graphs[1].initializers.items():
        assert value.const_value is not None
        found = graphs[0].initializers[name].const_value
        assert found is not None
        np.testing.assert_array_equal(found.numpy(), value.const_value.numpy())


@pytest.mark.parametrize("owner", ["models--someone--model", "plain"])
def test_only_the_blobs_of_the_same_repository_are_followed(outside_bundle: Artifact, tmp_path: Path, owner: str) -> None:
    snapshot = as_cached(outside_bundle.path, tmp_path, owner=owner)
    if owner == "plain":  # no cache of the hub by its name
        with pytest.raises(ArtifactError, match="manifest.json leaves the folder through a link"):
            open_artifact(snapshot, "bundle")
        return
    blob = (snapshot / "model.onnx.data").resolve()
    blob.rename(tmp_path / "stolen")
    blob.symlink_to(tmp_path / "stolen")
    with pytest.raises(ArtifactError, match=r"'model\.onnx\.data' leaves the folder through a link"):
        open_artifact(snapshot, "bundle")
