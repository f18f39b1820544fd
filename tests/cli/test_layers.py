"""``dq-deploy layers``: the layer report of an engine beside the float build's."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from dq_deploy.artifacts import Artifact
from dq_deploy.cli import run
from dq_deploy.engines.build.engine import build_engine
from tests.engines import graphs


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    folder = tmp_path_factory.mktemp("engine")
    return build_engine(graphs.network(folder / "bundle"), folder / "engine", backend="openvino", int8_kernels="always")


@pytest.fixture(scope="module")
def in_float(engine: Artifact) -> Artifact:
    """The same layers, computed in float."""
    return build_engine(engine.path.parent / "bundle", engine.path.parent / "float", backend="openvino", int8_kernels="never")


def test_beside_the_float_build(engine: Artifact, in_float: Artifact, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "layers.svg"
    assert run(["layers", str(engine.path), "--compare", str(in_float.path), "-o", str(picture), "--format", "json"]) == 0
    (found,) = json.loads(capfd.readouterr().out)["comparisons"]
    assert [(layer["precision"], layer["baseline_precision"], layer["reason"]) for layer in found["layers"]] == [("int8", "fp32", None)] * 8
    assert found["totals"]["gemm_by_precision"] == {"int8": 6}
    assert 0 < found["weights_ratio"] < 1
    assert ET.parse(picture).getroot().tag.endswith("svg")
    assert run(["layers", str(engine.path), "-o", str(picture)]) == 2
    assert "already exists" in capfd.readouterr().err


def test_the_other_way_round_names_the_reason(engine: Artifact, in_float: Artifact, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["layers", str(in_float.path), "--compare", str(engine.path)]) == 0
    out = capfd.readouterr().out
    assert "8 of 8 products are in float or not as planned" in out
    (ours, theirs) = re.findall(r"file +│ +([\d.]+) MB +│ +([\d.]+) MB", out)[0]
    sizes = [(path / "model.xml").stat().st_size + (path / "model.bin").stat().st_size for path in (in_float.path, engine.path)]
    assert [float(ours), float(theirs)] == pytest.approx([size / 1e6 for size in sizes], rel=0.01)
    assert re.search(r"weights: [\d.]+ × the baseline's \(fp\d\d\)", out)
    assert "INT8 kernels are turned off" in out
    assert "another CPU chooses again" in out.replace("\n", " ")


def test_a_bundle_is_no_engine(engine: Artifact, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["layers", str(engine.path.parent / "bundle")]) == 3
    assert "is a bundle, and an engine is needed here" in capfd.readouterr().err
