"""A former name of a target is read: from users, from manifests, and in what is shown of them it is that of today."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dq_deploy.artifacts import open_artifact
from dq_deploy.artifacts.details import BundleDetails
from dq_deploy.exporters import export
from dq_deploy.exporters.lint import lint
from dq_deploy.formats.target import target_name
from dq_deploy.hub.card import model_card
from tests.command_line import Cli
from tests.flow import Flow

OLD = Path(__file__).parents[1] / "golden" / "schema-1"


@pytest.mark.parametrize(("given", "name"), [("tensorrt", "qdq"), ("qdq", "qdq"), ("onnxruntime", "onnxruntime"), ("coreml", "coreml")])
def test_names(given: str, name: str) -> None:
    assert target_name(given) == name


def test_a_bundle_of_before(cli: Cli) -> None:
    bundle = open_artifact(OLD / "bundle", "bundle")
    assert bundle.manifest.details["target"] == "tensorrt"
    assert isinstance(bundle.details, BundleDetails)
    assert bundle.details.target == "qdq"
    assert "| bundle, target qdq, fp32 |" in model_card(bundle)
    assert re.search(r"target\W+qdq\b", cli("inspect", bundle.path).out)


def test_from_users(cli: Cli, flow: Flow, tmp_path: Path) -> None:
    ended = cli("export", flow.checkpoint, "-o", tmp_path / "bundle", "--target", "tensorrt")
    assert (ended.code, open_artifact(tmp_path / "bundle", "bundle").manifest.details["target"]) == (0, "qdq")
    assert export(flow.checkpoint, tmp_path / "again", target="tensorrt").manifest.details["target"] == "qdq"
    assert lint(tmp_path / "bundle", target="tensorrt").target == "qdq"
    refused = cli("export", flow.checkpoint, "-o", tmp_path / "other", "--target", "tensorrt-rtx")
    assert refused.code == 2
    assert "'tensorrt-rtx' is not one of 'qdq', 'onnxruntime'" in refused.err
