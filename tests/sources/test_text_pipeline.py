"""The whole pipeline around a denoiser, from a folder."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from diffusers import DiTPipeline, PNDMScheduler
from safetensors.torch import load_file, save_file
from transformers import Qwen2VLImageProcessorPil

from dq_deploy.errors import ArtifactError, EnvironmentProblem
from dq_deploy.sources import load_source, module_source, takes_prompts, text_pipeline
from dq_deploy.sources.quiet import without_torchvision
from dq_deploy.sources.text_pipeline import load_whole
from tests.sources.test_load import make_hub_cache
from tests.text_encoder_pipelines import qwen_tokenizer, tiny_qwen_image
from tests.tiny import scheduler, tiny_unet
from tests.tiny_pipelines import tiny_dit, tiny_stable_diffusion


def test_only_the_torchvision_warning_is_silenced(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("transformers.utils.import_utils")
    logger.addHandler(caplog.handler)
    text = "`CLIPImageProcessor` requires torchvision (not installed); falling back to `CLIPImageProcessorPil`"
    try:
        with without_torchvision():
            logger.warning(text)
            logger.warning("another")
        logger.warning(text)
    finally:
        logger.removeHandler(caplog.handler)
    assert list(dict.fromkeys(record.getMessage() for record in caplog.records)) == ["another", text]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "pipeline"
    tiny_stable_diffusion().save_pretrained(path)
    return path


def edit_index(folder: Path, **changes: object) -> None:
    path = folder / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_which_pipelines_take_prompts(saved: Path) -> None:
    assert takes_prompts(load_source(saved))
    assert takes_prompts(load_source(tiny_stable_diffusion()))
    assert not takes_prompts(load_source("builtin:fashion-mnist-unet"))
    assert not takes_prompts(load_source(DiTPipeline(transformer=tiny_dit(), vae=None, scheduler=scheduler())))
    assert not takes_prompts(module_source(tiny_unet(), scheduler(), (1, 8, 8)))


def test_a_folder_gives_what_the_object_gives(saved: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = load_source(saved)
    capfd.readouterr()
    pipeline = text_pipeline(source)
    assert "%|" not in capfd.readouterr().err  # no bars of other libraries
    assert pipeline.unet is source.model
    assert isinstance(pipeline.scheduler, PNDMScheduler)
    expected, _ = tiny_stable_diffusion().encode_prompt("cat", torch.device("cpu"), 1, False)
    texts, _ = pipeline.encode_prompt("cat", torch.device("cpu"), 1, False)
    assert torch.equal(texts, expected)


def test_the_safety_checker_is_left_out(folder: Path) -> None:
    # As Stable Diffusion's index has it; the folder of the checker is not needed.
    edit_index(folder, safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"], requires_safety_checker=True)
    pipeline = text_pipeline(load_source(folder))
    assert pipeline.safety_checker is None


def test_a_hub_id_brings_every_part_but_the_checker(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_hub_cache(saved, tmp_path / "hub", "someone/painter")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    source = load_source("someone/painter")
    asked: list[list[str]] = []
    real = huggingface_hub.snapshot_download

    def fetch(hub_id: str, **options: Any) -> str:
        asked.append(options["allow_patterns"])
        return str(real(hub_id, **options))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert text_pipeline(source).unet is source.model
    folders = {pattern.partition("/")[0] for patterns in asked for pattern in patterns}
    assert folders == {"model_index.json", "unet", "vae", "text_encoder", "tokenizer", "scheduler"}
    assert {pattern.rpartition("*")[2] for pattern in asked[-1][1:]} == {".json", ".safetensors", ".txt", ".model"}  # no code, no pickles


def test_half_precision_alone_is_found(folder: Path) -> None:
    encoder = folder / "text_encoder"
    (encoder / "model.safetensors").rename(encoder / "model.fp16.safetensors")
    assert text_pipeline(load_source(folder)).text_encoder.dtype == torch.float32


def test_code_from_elsewhere_is_not_loaded(folder: Path) -> None:
    edit_index(folder, text_encoder=["os", "system"], tokenizer=["json", "JSONDecoder"])
    with pytest.raises(
        ArtifactError, match=r"asks for text_encoder \(os.system\), tokenizer \(json.JSONDecoder\); only classes of diffusers"
    ):
        text_pipeline(load_source(folder))


def test_missing_and_damaged_parts(folder: Path) -> None:
    shutil.rmtree(folder / "tokenizer")
    shutil.rmtree(folder / "vae")
    with pytest.raises(ArtifactError, match="has no folder (vae, tokenizer|tokenizer, vae)\nprompts need the whole pipeline"):
        text_pipeline(load_source(folder))


def test_pickled_text_encoders_are_refused(folder: Path) -> None:
    encoder = folder / "text_encoder"
    (encoder / "model.safetensors").rename(encoder / "pytorch_model.bin")
    with pytest.raises(ArtifactError, match="cannot load the StableDiffusionPipeline in .*safetensors"):
        text_pipeline(load_source(folder))


def test_without_transformers(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers.utils.dummy_torch_and_transformers_objects import StableDiffusionPipeline as Dummy

    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "transformers", None)
        with pytest.raises(EnvironmentProblem, match="a StableDiffusionPipeline needs transformers: .*\npip install transformers"):
            text_pipeline(load_source(saved))
    monkeypatch.setattr("diffusers.StableDiffusionPipeline", Dummy)
    with pytest.raises(EnvironmentProblem, match="a StableDiffusionPipeline needs torch and transformers\npip install torch transformers"):
        takes_prompts(load_source(saved))


@pytest.mark.parametrize(
    ("part", "file", "lost"),
    [("text_encoder", "model", "encoder.layers.0.self_attn.q_proj.weight"), ("vae", "diffusion_pytorch_model", "decoder.conv_in.weight")],
)
def test_parts_with_weights_that_are_missing_or_not_finite_are_refused(
    saved: Path, tmp_path: Path, part: str, file: str, lost: str
) -> None:
    """Diffusers and transformers go on with random weights, and prompts would say something else at every run."""
    folder = tmp_path / "pipeline"
    shutil.copytree(saved, folder)
    path = folder / part / f"{file}.safetensors"
    whole = load_file(path)
    save_file({name: tensor for name, tensor in whole.items() if name != lost}, path, metadata={"format": "pt"})
    with pytest.raises(ArtifactError, match=rf"the weights in .*{part} do not fit its config.json: missing keys: {lost}$"):
        load_whole(folder)
    save_file({**whole, lost: whole[lost] * float("inf")}, path, metadata={"format": "pt"})
    with pytest.raises(ArtifactError, match=rf"pipeline/{part}: NaN or infinite values in 1 of \d+ tensors: {lost}\n"):
        load_whole(folder)
    save_file({**whole, "left.over": torch.zeros(2)}, path, metadata={"format": "pt"})
    torch.testing.assert_close(getattr(load_whole(folder), part).state_dict()[lost], whole[lost], rtol=0, atol=0)


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="torchvision is there, and nothing is missing")
def test_a_part_that_needs_a_library_names_it(tmp_path: Path) -> None:
    """Qwen-Image-Edit's processor reads videos too, which transformers does with torchvision."""
    tiny_qwen_image().save_pretrained(tmp_path)
    path = tmp_path / "model_index.json"
    index = json.loads(path.read_text(encoding="utf-8"))
    index |= {"_class_name": "QwenImageEditPipeline", "processor": ["transformers", "Qwen2VLProcessor"]}
    path.write_text(json.dumps(index), encoding="utf-8")
    qwen_tokenizer().save_pretrained(tmp_path / "processor")
    Qwen2VLImageProcessorPil().save_pretrained(tmp_path / "processor")
    told = "the QwenImageEditPipeline in .* cannot be loaded: .*requires the Torchvision library"
    with pytest.raises(EnvironmentProblem, match=told) as error:
        text_pipeline(load_source(tmp_path))
    assert error.value.hint == "pip install torchvision"
