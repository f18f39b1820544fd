"""Pushing to a hub and loading from it, over HTTP with the real client; and the card that goes with an artefact."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard

import dq_deploy
from dq_deploy.artifacts import open_artifact
from dq_deploy.console import to_json
from dq_deploy.engines.build.engine import build_engine
from dq_deploy.engines.schedules.combine import combine
from dq_deploy.errors import ArtifactError, EnvironmentProblem, UsageError
from dq_deploy.hub.card import model_card, read_report
from dq_deploy.hub.push import push
from dq_deploy.report.make import Drawing, ReportRequest, write_report
from tests.command_line import Cli, assert_refused
from tests.flow import Flow, altered_manifest, snapshot, tampered
from tests.hub.local_hub import TOKEN, LocalHub, serving


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    with serving() as running:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", running.endpoint)
        monkeypatch.setattr(
            huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", running.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield running


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, flow: Flow) -> Path:
    """What ``report --format json`` prints about the checkpoint and a bundle of it."""
    folder = tmp_path_factory.mktemp("report")
    wanted = ReportRequest(drawing=Drawing(n=2), layer_error=False)
    data = write_report([flow.checkpoint, flow.bundles["onnxruntime"]], folder / "r.html", wanted=wanted)
    (folder / "report.json").write_text(json.dumps(to_json(data)))
    return folder / "report.json"


def test_what_was_pushed_is_what_is_loaded(hub: LocalHub, flow: Flow, report: Path) -> None:
    bundle = flow.bundles["onnxruntime"]
    done = push(bundle, "someone/tiny", report=report, private=True)
    manifest = open_artifact(bundle, "bundle").manifest
    assert hub.files("someone/tiny").keys() == {*manifest.files, "manifest.json", "README.md", "samples.png", ".gitattributes"}
    assert hub.private == {"someone/tiny": True}
    assert done.url == f"{hub.endpoint}/someone/tiny/commit/{hub.commit('someone/tiny')}"
    assert hub.files("someone/tiny")["samples.png"].startswith(b"\x89PNG")
    assert len(hub.repositories["someone/tiny"]) == 2, "one commit"
    hub.requests.clear()
    ours, theirs = dq_deploy.load(bundle), dq_deploy.load("someone/tiny")
    sample = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ours(sample, 500.0).sample, theirs(sample, 500.0).sample)
    assert not [line for line in hub.requests if "README" in line or "samples.png" in line]


def test_another_push_replaces_the_whole(hub: LocalHub, flow: Flow) -> None:
    push(flow.checkpoint, "someone/tiny")
    done = push(flow.bundles["onnxruntime"], "someone/tiny", message="a bundle now")
    names = set(open_artifact(flow.checkpoint, "checkpoint").manifest.files)
    assert set(done.removed) == names
    assert not names & hub.files("someone/tiny").keys()
    assert ".gitattributes" in hub.files("someone/tiny")


def test_what_was_changed_on_the_hub_is_not_loaded(hub: LocalHub, flow: Flow) -> None:
    push(flow.bundles["onnxruntime"], "someone/tiny")
    hub.files("someone/tiny")["model.onnx"] += b"x"
    with pytest.raises(ArtifactError, match="'model.onnx' has .* bytes"):
        dq_deploy.load("someone/tiny")


def test_an_engine_is_code_and_stays_on_the_hub(hub: LocalHub, flow: Flow, tmp_path: Path) -> None:
    engine = altered_manifest(flow.bundle("onnxruntime"), tmp_path / "engine").path
    push(engine, "someone/engine")
    hub.files("someone/engine")["manifest.json"] = hub.files("someone/engine")["manifest.json"].replace(
        b'"kind": "bundle"', b'"kind": "engine"'
    )
    with pytest.raises(UsageError, match="someone/engine is an engine, which is code"):
        dq_deploy.load("someone/engine")
    assert not any("model.onnx" in line for line in hub.requests if line.startswith("GET"))


def test_a_schedule_of_bundles_is_loaded_and_one_with_an_engine_is_not(hub: LocalHub, flow: Flow, tmp_path: Path) -> None:
    schedule = combine([flow.bundles["onnxruntime"], flow.bundles["float"]], tmp_path / "schedule", switches=[400])
    push(schedule.path, "someone/turns")
    sample = torch.randn(2, 1, 8, 8)
    steps = torch.tensor([0.0, 800.0])
    assert torch.equal(dq_deploy.load("someone/turns")(sample, steps).sample, dq_deploy.load(schedule)(sample, steps).sample)
    engine = build_engine(flow.bundles["qdq"], tmp_path / "engine", backend="openvino")
    push(combine([engine, flow.bundles["float"]], tmp_path / "mixed", switches=[400]).path, "someone/mixed")
    hub.requests.clear()
    with pytest.raises(UsageError, match="someone/mixed has an engine in it, which is code"):
        dq_deploy.load("someone/mixed")
    assert not any("/model." in line for line in hub.requests if line.startswith("GET"))


def test_a_repository_that_is_none(hub: LocalHub, flow: Flow) -> None:
    with pytest.raises(UsageError, match="no such path: someone/nothing; nor can it be had from the hub"):
        dq_deploy.load("someone/nothing")
    with pytest.raises(UsageError, match="a revision belongs to a hub repository"):
        dq_deploy.load(flow.bundles["onnxruntime"], revision="main")
    with pytest.raises(UsageError, match="'tiny' is not a repository of the hub"):
        push(flow.bundles["onnxruntime"], "tiny")


def test_without_a_token_nothing_is_pushed(hub: LocalHub, flow: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    with pytest.raises(EnvironmentProblem, match="someone/tiny was not pushed: .*401") as raised:
        push(flow.bundles["onnxruntime"], "someone/tiny")
    assert "hf auth login" in (raised.value.hint or "")
    assert hub.repositories == {}


@pytest.mark.parametrize("offline", [True, False], ids=["switched off", "no network"])
def test_without_a_network_nothing_is_pushed_or_loaded(
    hub: LocalHub, flow: Flow, monkeypatch: pytest.MonkeyPatch, cli: Cli, offline: bool
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    ended = cli("push", flow.bundles["onnxruntime"], "someone/tiny")
    assert_refused(ended, 4, "someone/tiny was not pushed: ", "hint: check the network")
    with pytest.raises(EnvironmentProblem, match="as a repository of the hub it is not in the cache .*, and the hub cannot be reached"):
        dq_deploy.load("someone/tiny")
    assert hub.requests == []


def test_a_dry_run_contacts_nobody(hub: LocalHub, flow: Flow, cli: Cli, report: Path) -> None:
    ended = cli("push", flow.bundles["onnxruntime"], "someone/tiny", "--dry-run", "--report", report, "--format", "json")
    assert ended.code == 0, ended.err
    told = json.loads(ended.out)
    assert set(told["files"]) == {
        *open_artifact(flow.bundles["onnxruntime"], "bundle").manifest.files,
        "manifest.json",
        "README.md",
        "samples.png",
    }
    assert told["url"] is None
    assert hub.requests == []


def test_a_damaged_artefact_is_not_pushed(hub: LocalHub, flow: Flow, cli: Cli, tmp_path: Path) -> None:
    assert_refused(cli("push", tampered(flow.checkpoint, tmp_path / "damaged"), "someone/tiny"), 3, "another sha256")
    assert hub.requests == []


def test_the_card_of_every_kind_of_artefact(flow: Flow) -> None:
    for name, kind in (("checkpoint", "checkpoint"), ("onnxruntime", "bundle"), ("float", "bundle")):
        path = flow.checkpoint if name == "checkpoint" else flow.bundles[name]
        card = ModelCard(model_card(open_artifact(path, kind), repo_id="someone/tiny", license_id="mit"))  # type: ignore[arg-type]
        metadata: dict[str, Any] = card.data.to_dict()
        assert (metadata["license"], metadata["library_name"]) == ("mit", "dq-deploy")
        assert ("w8a8" in metadata["tags"]) is (name != "float")
        assert "someone/tiny" in card.text
        assert "## Accuracy" not in card.text, "nothing was measured"
        assert "\n\n\n" not in card.text


def test_the_card_has_what_the_report_measured(flow: Flow, report: Path) -> None:
    bundle = open_artifact(flow.bundles["onnxruntime"], "bundle")
    data = read_report(report, bundle)
    card = ModelCard(model_card(bundle, data))
    reference = data.snr[0]
    row = " | ".join(f"{value:.1f}" for value in reference.snr_db if value is not None)
    assert f"| PyTorch, quantized | {row} |" in card.text
    assert "`check` of onnxruntime against the checkpoint: **passed**" in card.text
    assert "![pictures from the same seeds](samples.png)" in card.text
    assert "dq-deploy quantize" in card.text
    results = {result.metric_type: result.metric_value for result in card.data.eval_results or []}
    assert results.keys() == {"snr_db", "psnr_db"}


def test_a_name_is_no_markup_in_a_card(flow: Flow, tmp_path: Path) -> None:
    name = "a|b <img src=x>\n# c `d` [e](f)"
    changed = altered_manifest(flow.bundle("onnxruntime"), tmp_path / "b", model=name)
    card = model_card(changed)
    assert ModelCard(card).data.model_name == name, "a string of the metadata, and no more"
    assert "<img" not in ModelCard(card).text
    assert "\n# a\\|b &lt;img src=x&gt; # c \\`d\\` \\[e\\](f), W8A8\n" in card


def test_a_card_names_timesteps_that_are_shares(flow: Flow, tmp_path: Path) -> None:
    card = model_card(altered_manifest(flow.bundle("onnxruntime"), tmp_path / "b", timesteps=[-0.25, 0.5, 999.0]))
    assert "| calibrated timesteps | -0.25, 0.5, 999 |" in card


def test_the_card_of_a_module_names_no_pipeline(flow: Flow, tmp_path: Path) -> None:
    bundle = flow.bundle("onnxruntime")
    assert 'pipe.unet = dq_deploy.load("OWNER/NAME")' in model_card(bundle)
    card = model_card(altered_manifest(bundle, tmp_path / "b", details={**bundle.manifest.details, "component": None}))
    assert '\nimport dq_deploy\n\nmodel = dq_deploy.load("OWNER/NAME")' in card
    assert "pipe." not in card


def test_a_model_of_videos_is_tagged_as_one(flow: Flow, tmp_path: Path) -> None:
    details = flow.bundle("onnxruntime").manifest.details
    text = {**details["inputs"][0], "name": "encoder_hidden_states"}
    for size, tag in (({"height": 16}, "text-to-image"), ({"height": 16, "num_frames": 5}, "text-to-video")):
        changed = {**details, "inputs": [*details["inputs"], text], "picture_size": size}
        card = ModelCard(model_card(altered_manifest(flow.bundle("onnxruntime"), tmp_path / tag, details=changed)))
        assert card.data.to_dict()["pipeline_tag"] == tag


def test_a_card_says_what_part_of_the_work_has_other_bits_than_the_preset(flow: Flow, tmp_path: Path) -> None:
    bundle = flow.bundle("qdq")
    layers = [{**layer, "weight_bits": 4 if layer.get("weight_bits") else None} for layer in bundle.manifest.details["layers"]]
    heaviest = max((layer for layer in layers if layer["weight_bits"]), key=lambda layer: layer["macs"])
    heaviest["weight_bits"] = 8
    share = heaviest["macs"] / sum(layer["macs"] for layer in layers if layer["weight_bits"])
    details = {**bundle.manifest.details, "layers": layers}
    card = ModelCard(model_card(altered_manifest(bundle, tmp_path / "b", details=details)))
    first, second = ("W8A8", "W4A8") if share > 0.5 else ("W4A8", "W8A8")
    assert f", {first}, {min(share, 1 - share):.0%} at {second}\n" in card.text
    assert f"| weights, {100 * share:.0f} % of the multiply-accumulates | 8 bits |" in card.text
    assert first.lower() in (card.data.tags or [])


def test_the_card_lies_beside_the_artefacts_files(flow: Flow, report: Path, cli: Cli, tmp_path: Path) -> None:
    bundle = altered_manifest(flow.bundle("onnxruntime"), tmp_path / "bundle").path
    for path in (flow.checkpoint, flow.bundles["qdq"]):
        # The report is about the checkpoint, and not about that bundle.
        ended = cli("model-card", path, "--report", report)
        assert ended.code == (0 if path == flow.checkpoint else 3), ended.err
    ended = cli("model-card", bundle, "-o", bundle / "README.md", "--format", "json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["card"] == (bundle / "README.md").read_text()
    assert_refused(cli("model-card", bundle, "-o", bundle / "README.md"), 2, "already exists")
    dq_deploy.load(bundle)
    shown = cli("model-card", bundle)
    assert shown.out.strip() == (bundle / "README.md").read_text().strip()


def test_a_picture_that_is_none(flow: Flow, report: Path, tmp_path: Path, cli: Cli) -> None:
    data = json.loads(report.read_text())
    data["pictures"]["quantized"][0] = "data:image/png;base64,aGVsbG8="
    (tmp_path / "r.json").write_text(json.dumps(data))
    ended = cli("model-card", flow.checkpoint, "--report", tmp_path / "r.json", "-o", tmp_path / "README.md")
    assert_refused(ended, 3, "a picture in the report cannot be read")
    assert not (tmp_path / "README.md").exists()


def test_reports_that_are_none(flow: Flow, tmp_path: Path, cli: Cli) -> None:
    before = snapshot(tmp_path)
    assert_refused(cli("model-card", flow.checkpoint, "--report", tmp_path / "missing"), 2, "no such file")
    assert_refused(cli("model-card", flow.checkpoint, "--force"), 2, "--force would be ignored")
    assert snapshot(tmp_path) == before
    for text in ("no JSON", "{}", '{"surprise": 1}', "[]"):
        (tmp_path / "r.json").write_text(text)
        assert_refused(cli("model-card", flow.checkpoint, "--report", tmp_path / "r.json"), 3, "r.json")
