"""What the page's data hold: the manifests' figures, what was measured, and commands that make the same artefacts again."""

from __future__ import annotations

import base64
import io
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dq_deploy.artifacts import Artifact, Manifest, open_artifact, sha256_file
from dq_deploy.errors import ArtifactError, UsageError
from dq_deploy.quantization.checkpoint import load_checkpoint
from dq_deploy.report.artifacts import gather
from dq_deploy.report.collect import dilation_rows
from dq_deploy.report.make import Drawing, ReportRequest, write_report
from dq_deploy.report.recipe import commands
from dq_deploy.sampling import draw
from tests.command_line import Cli
from tests.flow import Flow, altered_manifest
from tests.report.conftest import Written
from tests.tiny import make_checkpoint, tiny_unet


def test_figures_are_the_manifests_and_the_measured_ones(written: Written, flow: Flow) -> None:
    data, manifest = written.data, open_artifact(flow.checkpoint, "checkpoint").manifest
    assert [layer.name for layer in data.layers] == [layer["name"] for layer in manifest.details["layers"]]
    last = next(layer for layer in data.layers if layer.name == "conv_out")
    reference, *bundles = data.snr
    assert reference.snr_db == manifest.details["snr_db"]["after_distillation"]
    # Nothing was trained: "before" is without the output bias, which comes after the last layer.
    assert last.output_db == pytest.approx(manifest.details["snr_db"]["before_distillation"], abs=0.01)
    assert [series.name for series in bundles] == ["qdq", "onnxruntime"]
    for series in bundles:
        assert series.snr_db == pytest.approx(reference.snr_db, abs=0.5)
    assert [(row.bundle, row.passed, row.layers) for row in data.checks] == [
        ("qdq", True, len(data.layers)),
        ("onnxruntime", True, len(data.layers)),
    ]
    assert set(data.activation_db) == set(data.tables) == {name for layer in data.layers for name in layer.quantizers}
    assert [row.quantizer for row in data.dilation] == [row["quantizer"] for row in manifest.details["dilation"]]
    assert [row.name for row in data.artifacts] == ["checkpoint", "qdq", "onnxruntime", "float"]
    assert data.artifacts[0].manifest_sha256 == sha256_file(flow.checkpoint / "manifest.json")
    assert data.final_error is not None
    assert data.final_error.model_dump() == manifest.details["final_error"]
    assert [step.timesteps for step in data.final_error.steps] == [[t] for t in data.timesteps]
    assert [tile.value for tile in data.headlines if tile.label.startswith(f"SNR of the final sample ({data.final_error.seeds} seed")] == [
        f"{data.final_error.all_db:.1f} dB"
    ]
    assert data.clipped == manifest.details["clipped"]
    assert data.versions["torch"] == manifest.tools["torch"]
    assert data.latency is not None
    assert data.latency.baseline == "float · onnxruntime"
    assert {row.batch for row in data.latency.rows} == {1, 2}
    assert [tile.value for tile in data.headlines if tile.label.startswith("bundles compute")] == ["2 of 2"]


def test_where_no_dilation_was_tried_nothing_is_said_of_it(flow: Flow, tmp_path: Path) -> None:
    tried = load_checkpoint(flow.checkpoint)
    options = {**(tried.artifact.manifest.quantization or {}), "dilation": "none"}
    untried = replace(tried, artifact=altered_manifest(tried.artifact, tmp_path / "none", quantization=options))
    assert dilation_rows(tried)
    assert dilation_rows(untried) == []


def test_pictures_are_those_that_sampling_draws(written: Written, flow: Flow) -> None:
    pictures = written.data.pictures
    assert pictures is not None
    drawn = draw(flow.bundles["qdq"], Drawing(n=3, seed=5))
    assert drawn.expected is not None
    for addresses, images in ((pictures.quantized, drawn.quantized), (pictures.expected or [], drawn.expected)):
        for address, image in zip(addresses, images, strict=True):
            content = base64.b64decode(address.removeprefix("data:image/png;base64,"))
            np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content))), np.round(image[..., 0].clip(0, 1) * 255))
    assert pictures.psnr_db == pytest.approx(drawn.psnr_db, abs=0.01)


def test_the_commands_make_the_same_artefacts(
    written: Written, flow: Flow, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Options that have no flag go through a file; the folders' names are those of the commands."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "path/to").mkdir(parents=True)
    (tmp_path / "path/to" / flow.pipeline.name).symlink_to(flow.pipeline)  # a page names a folder by its last part
    options, quantize, export, *_, report = written.data.commands
    assert options.startswith("echo ")
    assert options.endswith(" > options.json")
    (tmp_path / "options.json").write_text(shlex.split(options)[1])
    for line in (quantize, export):
        ended = cli(*shlex.split(line)[1:])
        assert ended.code == 0, ended.err
    for name, original, kind in (("checkpoint", flow.checkpoint, "checkpoint"), ("qdq", flow.bundles["qdq"], "bundle")):
        made, before = open_artifact(tmp_path / name, kind).manifest, open_artifact(original, kind).manifest
        assert made.files == before.files  # manifests name the folder as it was typed
        assert made.quantization == before.quantization
    assert report == ("dq-deploy report checkpoint qdq onnxruntime float -o report.html -n 3 --seed 5 --bench --batch 1,2 --runs 3")


def test_commands_of_every_kind_of_artefact(flow: Flow, tmp_path: Path) -> None:
    source = open_artifact(flow.checkpoint, "checkpoint")
    quantization = {**(source.manifest.quantization or {}), "weight_bits": 5, "keep": {"@first": 8, "@last": 8, "a b*": "float"}}
    details = {**source.manifest.details, "source": None, "calibration": {"from": "loop", "classes": [1, 3]}}
    changed = altered_manifest(source, tmp_path / "changed", quantization=quantization, details=details)
    command = commands(changed)[-1]
    assert command.startswith("dq-deploy quantize SOURCE -o changed --weight-bits 5 --activation-bits 8 ")
    assert "--keep @first=8 --keep 'a b*=float' --classes 1,3" in command
    drawn = {
        "calibration": {"from": "pipeline", "prompts": {"count": 2}, "negative_prompt": "a b"},
        "picture_size": {"height": 16, "width": 24, "num_frames": 5},
    }
    asked = commands(altered_manifest(source, tmp_path / "asked", details={**details, **drawn}))[-1]
    assert asked.endswith(" --prompts PROMPTS --negative-prompt 'a b' --height 16 --width 24 --frames 5 --config options.json")
    several = {"calibrated_sizes": [{"size": [16, 24], "sample_shape": [1, 8, 12]}]}
    sized = commands(altered_manifest(source, tmp_path / "sized", details={**details, **drawn, **several}))[-1]
    assert sized.endswith(" --negative-prompt 'a b' --frames 5 --config options.json")
    bundle = flow.bundle("qdq")
    floats = commands(flow.bundle("float"), source)
    assert floats == ["dq-deploy export checkpoint -o float --target qdq --dtype fp32 --float"]
    attention = altered_manifest(bundle, tmp_path / "attention", details={**bundle.manifest.details, "attention": "float"})
    assert commands(attention, source)[0].endswith("--dtype fp32 --attention float")
    details = {
        **bundle.manifest.details,
        "backend": "tensorrt-rtx",
        "version": "1.4",
        "engines": [{"compute_capability": "8.9", "file": "f", "report": "r"}],
        "batch": [1, 2, 4],
        "sizes": {"height": [8, 8, 16]},
        "options": {"optimization_level": 0, "weight_streaming": True},
    }
    engine = Artifact(tmp_path / "engine", Manifest(kind="engine", model="m", details=details))
    (built,) = commands(engine, bundle)
    assert built.startswith("dq-deploy build-engine qdq -o engine --backend tensorrt-rtx --compute-capability 8.9 --batch 1,2,4 ")
    assert built.endswith(" --height 8,8,16 --optimization-level 0 --weight-streaming")


def test_only_one_family_is_reported(flow: Flow, tmp_path: Path) -> None:
    bundle = flow.bundles["qdq"]
    family = gather([bundle, flow.bundles["float"]], flow.checkpoint)
    assert ([a.path for a in family.bundles], [a.path for a in family.floats]) == ([bundle], [flow.bundles["float"]])
    with pytest.raises(UsageError, match="a report is about one checkpoint, and none was given"):
        gather([bundle])
    with pytest.raises(UsageError, match="two of the artefacts are called checkpoint"):
        gather([flow.checkpoint], flow.checkpoint)
    other = altered_manifest(open_artifact(flow.checkpoint, "checkpoint"), tmp_path / "other", model="other")
    with pytest.raises(UsageError, match="these were given: .*checkpoint, .*other"):
        gather([flow.checkpoint, other.path])
    with pytest.raises(ArtifactError, match="qdq: not exported from .*other") as raised:
        gather([bundle], other.path)
    assert raised.value.hint == "give the checkpoint that it is from too, or make it again"


def test_a_module_in_memory_has_fewer_sections(tmp_path: Path) -> None:
    """No float model: no output error, no pictures of it; and it is said why."""
    checkpoint = make_checkpoint(tiny_unet(), tmp_path / "checkpoint")
    notes: list[str] = []
    data = write_report([checkpoint.artifact.path], tmp_path / "r.html", wanted=ReportRequest(drawing=Drawing(n=1)), note=notes.append)
    assert all(layer.output_db is None for layer in data.layers)
    assert data.activation_db
    assert data.pictures is not None
    assert data.pictures.expected is None
    assert data.pictures.engine == "pytorch"
    assert notes == data.notes
    # Eight samples are too few for this network's scales.
    assert [note.partition(":")[0] for note in notes] == [
        "No pictures of the float model", "No error of the layers' outputs", "Held-out samples part from those calibrated on",
    ]  # fmt: skip
