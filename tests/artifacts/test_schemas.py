"""The published schemas are those of the code, and real artefacts and results fit them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from dq_deploy.artifacts import Artifact
from dq_deploy.engines.build.engine import build_engine
from dq_deploy.engines.pipeline_folder.folder import pipeline_folder
from dq_deploy.engines.schedules.combine import combine
from dq_deploy.engines.triton import triton_repository
from dq_deploy.schemas import schemas, write_schemas
from tests.command_line import Cli
from tests.engines import graphs
from tests.engines.pipeline_folder.exported import make_bundle, make_exported
from tests.flow import Flow

PUBLISHED = Path(__file__).parents[2] / "docs" / "schemas"


def published(name: str) -> jsonschema.Draft202012Validator:
    schema = json.loads((PUBLISHED / f"{name}.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_they_are_up_to_date(tmp_path: Path) -> None:
    """Otherwise: ``make schemas``."""
    written = {path.name: path.read_text() for path in write_schemas(tmp_path / "schemas")}
    assert written == {path.name: path.read_text() for path in PUBLISHED.glob("*.json")}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    root = tmp_path_factory.mktemp("engine")
    return build_engine(graphs.network(root / "bundle"), root / "engine", backend="openvino")


def test_manifests_fit_those_of_their_kind_and_of_no_other(flow: Flow, engine: Artifact, tmp_path: Path) -> None:
    folders = {"checkpoint": [flow.checkpoint], "bundle": list(flow.bundles.values()), "engine": [engine.path]}
    folders["schedule"] = [combine([flow.bundles["qdq"], flow.bundles["float"]], tmp_path / "schedule", switches=[400]).path]
    folders["triton-repository"] = [triton_repository(engine, tmp_path / "repository").path]
    exported = make_exported(tmp_path / "exported", "onnx", timestep="float timestep")
    whole = pipeline_folder(make_bundle(tmp_path / "denoiser"), tmp_path / "pipeline", "optimum-onnx", exported=exported)
    folders["pipeline-folder"] = [whole.path]
    for kind, paths in folders.items():
        for path in paths:
            manifest = json.loads((path / "manifest.json").read_text())
            for other in folders:
                assert published(f"manifest-{other}").is_valid(manifest) == (kind == other), (path, other)


def test_a_manifest_with_less_or_more_does_not_fit(flow: Flow) -> None:
    manifest = json.loads((flow.bundles["qdq"] / "manifest.json").read_text())
    for change in ({"surprise": 1}, {"schema_version": "1"}, {"details": {}}, {"files": {"x": {"sha256": "short", "size": 1}}}):
        assert not published("manifest-bundle").is_valid({**manifest, **change})


def test_what_commands_print_fits(cli: Cli, flow: Flow, engine: Artifact, tmp_path: Path) -> None:
    def printed(*arguments: object) -> Any:
        ended = cli(*arguments, "--format", "json")
        assert ended.code == 0, ended.err
        return json.loads(ended.out)

    bundle = flow.bundles["qdq"]
    results = {
        "advice": printed("advise"),
        "check-result": printed("check", bundle, "--checkpoint", flow.checkpoint),
        "lint-result": printed("check", bundle, "--lint"),
        "bench-result": printed("bench", bundle, "--runs", 2, "--engine", "onnxruntime"),
        "sample-result": printed("sample", bundle, "-n", 1, "-o", tmp_path / "grid.png"),
        "report": printed("report", flow.checkpoint, bundle, "-o", tmp_path / "r.html", "-n", 1, "--no-layer-error", "--no-check"),
        "quantize-config": printed("inspect", flow.checkpoint)["quantization"],
        "layer-report": json.loads(engine.file("layers.cpu.json").read_text()),
    }
    for name, result in results.items():
        published(name).validate(result)
        assert not published(name).is_valid(dict.fromkeys(result, "x")), f"{name} takes anything"
    tables = printed("inspect", bundle, "--layer", "*")["scale_tables"]
    for table in tables.values():
        published("scale-table").validate({key: table[key] for key in ("timesteps", "scales", "zero_points")})
    assert set(results) | {"scale-table", "proof"} | {  # the latter with its tests: it takes a GPU
        f"manifest-{kind}" for kind in ("checkpoint", "bundle", "engine", "schedule", "triton-repository", "pipeline-folder")
    } == {name.removesuffix(".schema.json") for name in schemas()}
