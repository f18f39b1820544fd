"""Artefacts that an earlier version has made are read, run and judged by this one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from dq_deploy.accuracy import check
from dq_deploy.artifacts import Artifact, open_artifact
from dq_deploy.artifacts.scale_tables import read_tables
from dq_deploy.engines.dropin import make_runner
from dq_deploy.exporters import export
from dq_deploy.quantization import load_checkpoint
from tests.golden import exports
from tests.nightly import mostly_nightly

HERE = Path(__file__).parent
VERSIONS = sorted(HERE.glob("schema-*"))


@pytest.mark.parametrize("folder", VERSIONS, ids=lambda path: path.name)
def test_a_checkpoint_and_its_bundle(folder: Path, tmp_path: Path) -> None:
    checkpoint, bundle = load_checkpoint(folder / "checkpoint"), open_artifact(folder / "bundle", "bundle")
    assert {layer.weight_bits for layer in checkpoint.details.layers if layer.op != "matmul"} == {4, 8}
    assert read_tables(checkpoint.artifact).keys() == read_tables(bundle).keys() != set()
    result = check(bundle, checkpoint.artifact)
    assert result.failures == []
    again = export(folder / "checkpoint", tmp_path / "bundle", target="qdq", dtype="fp32")
    inputs = {
        "x": np.random.default_rng(0).normal(size=(2, 1, 8, 8)).astype(np.float32),
        "timestep": np.array(bundle.manifest.timesteps[:2]),
    }
    outputs = [make_runner(made).run(inputs) for made in (bundle, again)]
    np.testing.assert_allclose(*outputs, atol=1e-5)


@pytest.mark.parametrize("case", mostly_nightly(exports.CASES, "qdq fp32", "qdq fp16", "onnxruntime fp32"))
@pytest.mark.parametrize("folder", VERSIONS, ids=lambda path: path.name)
def test_a_checkpoint_exports_to_the_graph_that_it_always_did(folder: Path, case: str, tmp_path: Path, exported_anew: None) -> None:
    """``python -m tests.golden.exports`` records another one, where that is meant."""
    recorded = json.loads((folder / exports.FILE).read_text())
    found = exports.exported(folder / "checkpoint", case, tmp_path / "bundle")
    assert found["lowered"] == recorded[case]["lowered"]
    if exports.tools() == recorded["tools"]:  # another torch may export the float part in other nodes
        assert found == recorded[case]


def test_a_hash_tells_one_changed_number_and_one_changed_node(tmp_path: Path) -> None:
    bundle = open_artifact(VERSIONS[0] / "bundle", "bundle")
    before = exports.hashes(bundle)
    copied = Artifact(Path(shutil.copytree(bundle.path, tmp_path / "b")), bundle.manifest)
    model = ir.load(bundle.path / "model.onnx")
    table = next(v for name, v in model.graph.initializers.items() if name.endswith(".input.scale"))
    assert table.const_value is not None
    table.const_value = ir.tensor(np.nextafter(table.const_value.numpy(), np.float32(9)), name=table.name)
    ir.save(model, copied.path / "model.onnx")
    changed = exports.hashes(copied)
    assert not set(changed.values()) & set(before.values())
    model = ir.load(bundle.path / "model.onnx")
    node = next(node for node in model.graph if node.op_type == "Sigmoid")
    node.op_type = "Tanh"
    ir.save(model, copied.path / "model.onnx")
    changed = exports.hashes(copied)
    assert (changed["graph"] != before["graph"], changed["lowered"] == before["lowered"]) == (True, True)


def test_there_is_one_of_every_version_and_they_are_small() -> None:
    from dq_deploy.artifacts import SCHEMA_VERSION

    assert [path.name for path in VERSIONS] == [f"schema-{version}" for version in range(1, SCHEMA_VERSION + 1)]
    for folder in VERSIONS:
        assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 200_000


def test_one_changed_byte_is_found(tmp_path: Path) -> None:
    from dq_deploy.errors import ArtifactError

    copied = Path(shutil.copytree(VERSIONS[-1] / "checkpoint", tmp_path / "c"))
    data = bytearray((copied / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (copied / "model.safetensors").write_bytes(data)
    with pytest.raises(ArtifactError, match=r"'model\.safetensors' has another sha256"):
        load_checkpoint(copied)
