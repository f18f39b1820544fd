"""A checkpoint leads back to its source from any folder, and after either or both were moved."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from dq_deploy.artifacts import Artifact, open_artifact
from dq_deploy.artifacts.details import Origin
from dq_deploy.artifacts.origin import absolute_place, place_relative, source_name
from dq_deploy.errors import UsageError
from dq_deploy.exporters import export
from dq_deploy.hub.card import model_card
from dq_deploy.hub.push import push
from dq_deploy.quantization import quantize
from dq_deploy.report.recipe import commands
from dq_deploy.sampling.models import float_source
from tests.command_line import Cli
from tests.tiny import FAST

QUICK = {**FAST, "steps": 2, "calibration_samples": 2, "reference_samples": 1, "output_bias": False}


@pytest.fixture(scope="module")
def made(attention_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``models/tiny`` quantized as "." into ``models/out/ck``."""
    work = tmp_path_factory.mktemp("home") / "models"
    shutil.copytree(attention_pipeline, work / "tiny")
    before = Path.cwd()
    os.chdir(work / "tiny")
    try:
        quantize(".", "../out/ck", **QUICK)
    finally:
        os.chdir(before)
    return work


@pytest.fixture
def work(made: Path, tmp_path: Path) -> Path:
    """A copy, the original of which is hidden."""
    return Path(shutil.copytree(made, tmp_path / "moved" / "models"))


def test_from_another_folder(made: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_artifact(made / "out/ck", "checkpoint").manifest.details["source"]
    assert (source["reference"], source["absolute"], source["relative"]) == (".", str(made / "tiny"), "../../tiny")
    monkeypatch.chdir(tmp_path)
    ended = cli("export", made / "out/ck", "-o", "float", "--target", "onnxruntime", "--float")
    assert ended.code == 0, ended.err
    bundle = open_artifact(tmp_path / "float", "bundle")
    assert bundle.manifest.details["source"]["relative"] == os.path.relpath(made / "tiny", tmp_path / "float")
    assert float_source(bundle).sha256 == source["sha256"]


def test_both_moved(work: Path, made: Path) -> None:
    made.rename(made.with_name("away"))
    try:
        assert export(work / "out/ck", work / "float", target="onnxruntime", float=True)
    finally:
        made.with_name("away").rename(made)


def test_of_two_places_the_one_with_the_same_weights(work: Path) -> None:
    (work / "tiny/unet/diffusion_pytorch_model.safetensors").unlink()
    other = work / "tiny"
    shutil.rmtree(other)
    shutil.copytree(Path(__file__).parents[2] / "dq_deploy/sources/builtin/fashion-mnist-unet", other)
    checkpoint = open_artifact(work / "out/ck", "checkpoint")
    assert float_source(checkpoint).sha256 == checkpoint.manifest.details["source"]["sha256"]


def test_neither_is_there(made: Path, tmp_path: Path, cli: Cli) -> None:
    checkpoint = shutil.copytree(made / "out/ck", tmp_path / "ck")
    made.rename(made.with_name("away"))
    try:
        ended = cli("export", checkpoint, "-o", tmp_path / "float", "--target", "onnxruntime", "--float")
        looked = f"{tmp_path.parents[0] / 'tiny'} and {made / 'tiny'}"
        assert ended.code == 2
        message = f"error: {checkpoint} was made from '.', which is not there any more: no such path: {looked}\nhint: put it back there"
        assert message in ended.err
    finally:
        made.with_name("away").rename(made)


def test_a_manifest_of_before_names_the_checkpoint(made: Path, tmp_path: Path) -> None:
    artifact = open_artifact(made / "out/ck", "checkpoint")
    origin = {"reference": "../nowhere", "sha256": "0" * 64}
    manifest = artifact.manifest.model_copy(update={"details": {**artifact.manifest.details, "source": origin}})
    with pytest.raises(UsageError, match=rf"{artifact.path} was made from '../nowhere': no such path: ../nowhere"):
        float_source(Artifact(artifact.path, manifest))


def test_nothing_that_is_shown_to_others_names_a_home(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = open_artifact(made / "out/ck", "checkpoint")
    pushed = push(artifact.path, "some/one", dry_run=True)
    assert "README.md" in pushed.files
    for text in (model_card(artifact), *commands(artifact)):
        assert str(made) not in text
    assert "The denoiser of tiny, quantized" in model_card(artifact)
    assert commands(artifact)[-1].startswith("dq-deploy quantize path/to/tiny -o ck")
    monkeypatch.setenv("HOME", str(made.parent))
    assert absolute_place(made / "tiny") == "~/models/tiny"
    details = {"source": {"reference": ".", "sha256": "0", "absolute": "~/models/tiny"}}
    place_relative(details, made / "out/ck")
    assert details["source"]["relative"] == "../../tiny"


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("builtin:fashion-mnist-unet", "builtin:fashion-mnist-unet"),
        ("some/model@main", "some/model@main"),
        ("/home/me/tiny", "tiny"),
        ("../x", "x"),
    ],
)
def test_what_a_source_is_called(reference: str, name: str) -> None:
    assert source_name(Origin(reference=reference, sha256="0")) == name
