"""Pickled weights: refused by default, tensors alone where they are asked for, and never run."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file

from dq_deploy.errors import ArtifactError
from dq_deploy.sources import allow_pickles, load_source, text_pipeline
from tests.command_line import Cli, assert_refused
from tests.flow import OPTIONS
from tests.sources.test_load import make_hub_cache
from tests.tiny_pipelines import tiny_stable_diffusion

UNET = Path("unet/diffusion_pytorch_model.safetensors")


def pickled(folder: Path, safe: Path = UNET, name: str = "diffusion_pytorch_model.bin") -> Path:
    """The same weights as a pickle, and no longer as safetensors."""
    path = (folder / safe).with_name(name)
    torch.save(load_file(folder / safe), path)
    (folder / safe).unlink()
    return path


def hostile(path: Path, flag: Path) -> None:
    """What would make a file if it was run: in today's format of torch, behind real tensors, and as a bare pickle."""

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (flag,))

    torch.save({"conv_in.weight": torch.zeros(1), "evil": Evil()}, path)
    path.with_name("control.bin").write_bytes(path.read_bytes())


def test_only_where_it_is_asked_for(folder: Path, saved: Path) -> None:
    path, said = pickled(folder), []
    with pytest.raises(ArtifactError, match=r"only pickled weights \(diffusion_pytorch_model.bin\).*\n--allow-pickle .*allow_pickles\(\)"):
        load_source(folder)
    with allow_pickles(said.append):
        source = load_source(folder)
    assert said == [f"reading pickled weights as plain tensors: {path}"]
    assert source.sha256 == load_source(saved).sha256
    assert source.reference == str(folder)
    with pytest.raises(ArtifactError, match="only pickled weights"):
        load_source(folder)
    with warnings.catch_warnings(record=True) as seen, allow_pickles():
        warnings.simplefilter("always")
        load_source(folder)
    assert any("reading pickled weights" in str(warning.message) for warning in seen)


def test_nothing_of_a_hostile_pickle_runs_even_then(folder: Path, tmp_path: Path) -> None:
    path, flag = pickled(folder), tmp_path / "ran"
    hostile(path, flag)
    with allow_pickles(lambda _: None), pytest.raises(ArtifactError, match="more than plain tensors, or is damaged; nothing in it was run"):
        load_source(folder)
    path.write_bytes(b"cposix\nsystem\n(V" + f"touch {flag}".encode() + b"\ntR.")
    with allow_pickles(lambda _: None), pytest.raises(ArtifactError, match=r"nothing in it was run \(it asks for posix.system\)$"):
        load_source(folder)
    assert not flag.exists()
    torch.load(path.with_name("control.bin"), weights_only=False)  # the control: it is hostile indeed
    assert flag.exists()


@pytest.mark.parametrize("content", [[torch.zeros(1)], {"state_dict": {"a": torch.zeros(1)}}, {1: torch.zeros(1)}, torch.zeros(1), 3])
def test_tensors_in_another_form(folder: Path, content: object) -> None:
    torch.save(content, pickled(folder))
    with allow_pickles(lambda _: None), pytest.raises(ArtifactError, match="is not a state dict"):
        load_source(folder)


def test_damaged_weights_and_a_pipe(folder: Path) -> None:
    path = pickled(folder)
    path.write_bytes(path.read_bytes()[:-100])
    with allow_pickles(lambda _: None), pytest.raises(ArtifactError, match="or is damaged"):
        load_source(folder)
    path.unlink()
    os.mkfifo(path)
    with allow_pickles(lambda _: None), pytest.raises(ArtifactError, match="is not a regular file"):
        load_source(folder)


def test_safetensors_are_read_where_there_are_any(folder: Path, tmp_path: Path) -> None:
    hostile(folder / "unet" / "diffusion_pytorch_model.bin", tmp_path / "ran")
    said: list[str] = []
    with allow_pickles(said.append):
        load_source(folder)
    assert said == []
    assert not (tmp_path / "ran").exists()


def test_shards_and_half_precision(folder: Path, saved: Path) -> None:
    tensors = load_file(folder / UNET)
    names = sorted(tensors)
    (folder / UNET).unlink()
    shards = [folder / "unet" / f"diffusion_pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    for path, part in zip(shards, (names[::2], names[1::2]), strict=True):
        torch.save({name: tensors[name] for name in part}, path)
    torch.save({name: tensor.half() for name, tensor in tensors.items()}, folder / "unet" / "diffusion_pytorch_model.fp16.bin")
    expected = load_source(saved).sha256
    with allow_pickles(lambda _: None):
        assert load_source(folder).sha256 == expected
        shards[1].unlink()
        with pytest.raises(ArtifactError, match="has 1 of the 2 shards of its pickled weights"):
            load_source(folder)
        shards[0].unlink()
        assert load_source(folder).sha256 != expected  # those of half precision are all that is left


def test_weights_that_do_not_fit_are_refused_as_ever(folder: Path) -> None:
    tensors = load_file(folder / UNET)
    del tensors["conv_in.weight"]
    path = pickled(folder)
    torch.save(tensors, path)
    with allow_pickles(lambda _: None), pytest.raises(ArtifactError, match="missing keys: conv_in.weight"):
        load_source(folder)


def test_text_encoders(tmp_path: Path) -> None:
    folder = tmp_path / "pipeline"
    tiny_stable_diffusion().save_pretrained(folder)
    for part, safe, name in (
        ("unet", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
        ("vae", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
        ("text_encoder", "model.safetensors", "pytorch_model.bin"),
    ):
        pickled(folder, Path(part) / safe, name)
    said: list[str] = []
    with allow_pickles(said.append):
        pipeline = text_pipeline(load_source(folder))
    assert len(said) == 3
    expected, _ = tiny_stable_diffusion().encode_prompt("cat", torch.device("cpu"), 1, False)
    texts, _ = pipeline.encode_prompt("cat", torch.device("cpu"), 1, False)
    assert torch.equal(texts, expected)


def test_a_hub_id(folder: Path, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pickled(folder)
    make_hub_cache(folder, tmp_path / "hub", "someone/old")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    real, asked = huggingface_hub.snapshot_download, []

    def fetch(hub_id: str, **options: object) -> str:
        asked.append(options["allow_patterns"])
        return str(real(hub_id, **options))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    with pytest.raises(ArtifactError, match="only pickled weights"):
        load_source("someone/old")
    assert not any(".bin" in pattern for patterns in asked for pattern in patterns)
    with allow_pickles(lambda _: None):
        assert load_source("someone/old").sha256 == load_source(saved).sha256
    assert "unet/*pytorch_model*.bin" in asked[-1]


def test_from_quantize_to_the_float_export(cli: Cli, folder: Path, tmp_path: Path) -> None:
    path = pickled(folder)
    (tmp_path / "config.json").write_text(json.dumps({**OPTIONS, "steps": 2, "reference_samples": 1}))
    quantize = ("quantize", folder, "-o", tmp_path / "checkpoint", "--config", tmp_path / "config.json")
    assert_refused(cli(*quantize), 3, "only pickled weights", "--allow-pickle")
    ended = cli(*quantize, "--allow-pickle")
    assert ended.code == 0, ended.err
    assert f"warning: reading pickled weights as plain tensors: {path}" in ended.err
    export = ("export", tmp_path / "checkpoint", "-o", tmp_path / "float", "--target", "onnxruntime", "--float")
    refused = cli(*export)
    assert refused.code == 3
    assert "only pickled weights" in refused.err
    assert cli(*export, "--allow-pickle").code == 0
    hostile(path, tmp_path / "ran")
    refused = cli(*quantize, "--force", "--allow-pickle")
    assert refused.code == 3
    assert "nothing in it was run" in refused.err
    assert "Traceback" not in refused.err
    assert not (tmp_path / "ran").exists()
