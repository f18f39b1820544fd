"""Manifests that are none, are of another version, or leave out what is needed; engines and pickles by mistake."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dq_deploy.artifacts import Artifact, create_artifact, open_artifact
from dq_deploy.engines.build import engine as build
from dq_deploy.engines.dropin import load
from dq_deploy.errors import ArtifactError
from dq_deploy.quantization.checkpoint import Checkpoint
from tests.attacks.hostile import change_manifest, copy_of
from tests.command_line import Cli, assert_refused
from tests.engines.tensorrt.fake import engine_of

NO_MANIFEST = {
    "empty": (b"", "Expecting value"),
    "a list": (b"[]", "should be a valid dictionary"),
    "null": (b"null", "should be a valid dictionary"),
    "truncated": (b'{"kind": "bundle", "model"', "Expecting ':'"),
    "no UTF-8": (b"\xff\xfe", "can't decode"),
    "nested": (b'{"details": ' + b"[" * 100_000, "nested too deeply"),
    "a key twice": (b'{"kind": "bundle", "kind": "engine"}', "key 'kind' stands there twice"),
    "NaN": (b'{"kind": "bundle", "model": "m", "timesteps": [NaN]}', "NaN is not a JSON number"),
    "infinity": (b'{"kind": "bundle", "model": "m", "timesteps": [1e999]}', "1e999 is beyond the range of a double"),
    "a number of a million digits": (b'{"schema_version": ' + b"9" * 1_000_000 + b"}", "digits"),
    "a pickle": (b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94.", "can't decode"),
}


@pytest.mark.parametrize("kind", NO_MANIFEST)
def test_no_manifest(cli: Cli, tmp_path: Path, kind: str) -> None:
    content, words = NO_MANIFEST[kind]
    (tmp_path / "manifest.json").write_bytes(content)
    assert_refused(cli("inspect", tmp_path), 3, "manifest.json is not a valid manifest", words, "hint: ")


FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown key": ({"surprise": 1}, "surprise: Extra inputs are not permitted"),
    "an unknown kind": ({"kind": "virus"}, "kind: "),
    "a hash that is none": ({"files": {"model.onnx": {"sha256": "../../etc", "size": 1}}}, "files.model.onnx.sha256: "),
    "a negative size": ({"files": {"model.onnx": {"sha256": "0" * 64, "size": -1}}}, "files.model.onnx.size: "),
    "files in a list": ({"files": ["model.onnx"]}, "files: "),
    "timesteps that descend": ({"timesteps": [2.0, 1.0]}, "timesteps: Value error, calibrated timesteps are finite and ascend"),
    "a timestep twice": ({"timesteps": [1.0, 1.0]}, "calibrated timesteps are finite and ascend"),
    "scales from nowhere": (
        {"quantization": {"activations": "per-tokens"}},
        "activations 'per-tokens' is none of auto, per-timestep, per-token, static",
    ),
    "a version of no number": ({"schema_version": "new"}, "schema_version: "),
}


@pytest.mark.parametrize("kind", FIELDS)
def test_fields_of_a_manifest(cli: Cli, outside_bundle: Artifact, tmp_path: Path, kind: str) -> None:
    change, words = FIELDS[kind]
    bundle = change_manifest(copy_of(outside_bundle, tmp_path / "bundle"), lambda m: m.update(change))
    assert_refused(cli("inspect", bundle), 3, "is not a valid manifest", words, "hint: ")


def test_a_newer_schema_says_which_version_is_needed(cli: Cli, outside_bundle: Artifact, tmp_path: Path) -> None:
    def newer(manifest: dict[str, Any]) -> None:
        manifest.update(schema_version=7, something_new=True, tools={"dq-deploy": "9.1.0"})

    bundle = change_manifest(copy_of(outside_bundle, tmp_path / "bundle"), newer)
    assert_refused(
        cli("inspect", bundle), 3, "has schema version 7; this dq-deploy reads up to 1", "hint: upgrade dq-deploy to 9.1.0 or later"
    )
    change_manifest(bundle, lambda m: m.update(schema_version=0))
    assert_refused(cli("inspect", bundle), 3, "has schema version 0, and the first was 1", "hint: ")


def without(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda manifest: manifest["details"].pop(key)


@pytest.mark.parametrize("key", ["inputs", "output", "target", "dtype", "float", "layers", "quantizers", "sample_shape", "float_layers"])
def test_details_missing_from_a_bundle(cli: Cli, outside_bundle: Artifact, nothing_runs: None, tmp_path: Path, key: str) -> None:
    bundle = change_manifest(copy_of(outside_bundle, tmp_path / "bundle"), without(key))
    words = ("is not a valid bundle of this dq-deploy: ", f"{key}: Field required", "hint: make it again with: dq-deploy export")
    for arguments in (
        ("inspect", bundle),
        ("bench", bundle),
        ("check", bundle, "--lint"),
        ("sample", bundle, "-o", tmp_path / "grid.png"),
        ("build-engine", bundle, "-o", tmp_path / "e", "--backend", "openvino"),
        ("triton-repository", bundle, "-o", tmp_path / "r"),
        ("pipeline-folder", bundle, "-o", tmp_path / "f", "--for", "openvino-genai"),
    ):
        assert_refused(cli(*arguments), 3, *words)
    assert {path.name for path in tmp_path.iterdir()} == {"bundle"}


@pytest.mark.parametrize(
    "key",
    [
        "inputs",
        "conditions",
        "samples_per_seed",
        "layers",
        "quantizers",
        "float_layers",
        "float_mac_share",
        "snr_db",
        "distillation",
        "source",
    ],
)
def test_details_missing_from_a_checkpoint(cli: Cli, plain_checkpoint: Checkpoint, tmp_path: Path, key: str) -> None:
    checkpoint = change_manifest(copy_of(plain_checkpoint.artifact, tmp_path / "checkpoint"), without(key))
    words = ("is not a valid checkpoint of this dq-deploy: ", f"{key}: Field required", "hint: make it again with: dq-deploy quantize")
    for arguments in (("inspect", checkpoint), ("export", checkpoint, "-o", tmp_path / "o", "--target", "qdq")):
        assert_refused(cli(*arguments), 3, *words)


@pytest.mark.parametrize("details", [{"layers": [{"name": "x"}]}, {"quantizers": [7]}, {"inputs": "sample"}, {"sample_shape": []}])
def test_details_of_another_form(cli: Cli, outside_bundle: Artifact, tmp_path: Path, details: dict[str, Any]) -> None:
    bundle = change_manifest(copy_of(outside_bundle, tmp_path / "bundle"), lambda m: m["details"].update(details))
    assert_refused(cli("inspect", bundle), 3, f"is not a valid bundle of this dq-deploy: {next(iter(details))}", "hint: ")


@pytest.mark.parametrize("key", ["backend", "version", "engines", "inputs", "batch", "sample_shape"])
def test_details_missing_from_an_engine(cli: Cli, outside_bundle: Artifact, tmp_path: Path, key: str) -> None:
    engine = engine_of(outside_bundle, tmp_path / "engine")
    change_manifest(engine.path, without(key))
    with pytest.raises(ArtifactError, match=f"is not a valid engine of this dq-deploy: {key}: Field required") as caught:
        load(engine.path)
    assert caught.value.hint
    assert_refused(cli("sample", engine.path, "-o", tmp_path / "grid.png"), 3, f"{key}: Field required", "hint: ")


def test_a_layer_report_that_is_none(outside_bundle: Artifact, tmp_path: Path) -> None:
    engine = engine_of(outside_bundle, tmp_path / "engine", report='{"kernels": ' + "[" * 100_000)
    with pytest.raises(ArtifactError, match="layers.sm89.json is not a layer report: it is nested too deeply\nbuild the engine again"):
        build.load_report(engine)


def test_nothing_of_a_pickle_runs(cli: Cli, pipeline_dir: Path, tmp_path: Path) -> None:
    """A pickle in the place of every kind of file: it would create a file when it is loaded."""
    flag = tmp_path / "ran"
    program = b"cposix\nsystem\n(V" + f"touch {flag}".encode() + b"\ntR."
    for name in ("manifest.json", "model.onnx", "model.safetensors", "model.engine"):
        (tmp_path / name).write_bytes(program)
    assert_refused(cli("inspect", tmp_path), 3, "hint: ")
    for command in ("bench", "check"):
        more = ("--lint",) if command == "check" else ()
        assert_refused(cli(command, tmp_path / "model.onnx", *more), 3)
    pipeline = copy_of(pipeline_dir, tmp_path / "pipeline")
    for suffix in (".bin", ".pt", ".ckpt"):
        (pipeline / "unet" / "diffusion_pytorch_model.safetensors").unlink(missing_ok=True)
        (pipeline / "unet" / f"diffusion_pytorch_model{suffix}").write_bytes(program)
        assert_refused(cli("quantize", pipeline, "-o", tmp_path / "o"), 3, "pickled weights", "refused", "hint: ")
        assert_refused(
            cli("quantize", pipeline, "-o", tmp_path / "o", "--lora", tmp_path / "model.engine"), 2, "not a .safetensors file", "hint: "
        )
    assert not flag.exists()


def test_what_is_written_can_be_read(outside_bundle: Artifact, tmp_path: Path) -> None:
    with create_artifact(tmp_path / "copy", outside_bundle.manifest.model_copy(deep=True)) as work:
        for name in outside_bundle.manifest.files:
            (work / name).write_bytes(outside_bundle.file(name).read_bytes())
            (work / name).chmod(0o600)
    assert open_artifact(tmp_path / "copy", "bundle").manifest.files == outside_bundle.manifest.files
    assert json.loads((tmp_path / "copy" / "manifest.json").read_text())["files"].keys() == outside_bundle.manifest.files.keys()
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "copy").iterdir()}
    assert len(modes) == 1, "files of libraries that write for their owner alone would be unreadable to everyone else"
