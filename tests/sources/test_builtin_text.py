"""The built-in text pipeline: whole, trained, and quantized from its own prompts to a picture of the drop-in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import PixArtAlphaPipeline
from safetensors.torch import load_file

from dq_deploy.exporters import export
from dq_deploy.quantization import quantize
from dq_deploy.quantization.calibration.pipeline_source import read_prompts
from dq_deploy.sampling import Drawing, draw
from dq_deploy.sources import builtin_path, builtin_prompts, load_source, text_pipeline
from tests.tiny import FAST
from training.tokenizer import tokenizer

BUILTIN = "builtin:fashion-mnist-text"
FOLDER = builtin_path("fashion-mnist-text")


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return text_pipeline(load_source(BUILTIN))


def test_it_is_whole_and_small() -> None:
    files = list(FOLDER.rglob("*.safetensors"))
    assert sorted(path.parent.name for path in files) == ["text_encoder", "transformer", "vae"]
    assert {tensor.dtype for path in files for tensor in load_file(path).values()} == {torch.float16}
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 8e6
    assert not any("_name_or_path" in path.read_text() for path in FOLDER.rglob("*.json"))


def test_diffusers_loads_it_and_draws() -> None:
    pipeline = PixArtAlphaPipeline.from_pretrained(FOLDER)
    pipeline.set_progress_bar_config(disable=True)
    for part in (pipeline.vae, pipeline.text_encoder, pipeline.transformer):
        part.float()
    prompts = ["an ankle boot, pointing left", "a purple submarine"]
    images = pipeline(prompts, num_inference_steps=2, use_resolution_binning=False, output_type="np").images
    assert images.shape == (2, 32, 32, 1)


def test_it_is_trained_and_hears_what_it_is_told(pipeline: Any) -> None:
    """Trousers are two bright columns with a gap at the bottom; a coat is wide there and has none."""
    options = {
        "num_inference_steps": 6,
        "use_resolution_binning": False,
        "max_sequence_length": 16,
        "clean_caption": False,
        "output_type": "np",
    }
    noises = [torch.Generator().manual_seed(seed) for seed in (0, 0, 0)]
    images = pipeline(["a pair of light trousers", "a light coat", "a dark coat"], generator=noises, guidance_scale=3.0, **options).images
    trousers, light, dark = images[..., 0]
    assert trousers.mean() < 0.75 * light.mean()
    assert dark.mean() < 0.75 * light.mean()


def test_its_tokenizer_is_the_one_that_training_makes(pipeline: Any) -> None:
    assert pipeline.tokenizer.get_vocab() == tokenizer().get_vocab()
    assert pipeline.tokenizer("a purple coat").input_ids == tokenizer()("a purple coat").input_ids


def test_its_prompts_are_words_that_it_knows(pipeline: Any) -> None:
    own = builtin_prompts(BUILTIN)
    assert own is not None
    assert not any(pipeline.tokenizer.unk_token_id in ids for ids in pipeline.tokenizer(read_prompts(own)).input_ids)
    for other in (None, FOLDER, "builtin:fashion-mnist-dit", "builtin:nope", "fashion-mnist-text"):
        assert builtin_prompts(other) is None


def test_from_its_own_prompts_to_a_picture_of_the_drop_in(tmp_path: Path) -> None:
    options = {**FAST, "steps": 2, "calibration_samples": 2, "iterations": 0, "dilation": "none", "final_samples": 0}
    checkpoint = quantize(BUILTIN, tmp_path / "checkpoint", **options)
    own = builtin_prompts(BUILTIN)
    assert own is not None
    calibration = checkpoint.details.calibration
    assert calibration.prompts["count"] == len(read_prompts(own)) == 30
    bundle = export(checkpoint, tmp_path / "bundle", target="onnxruntime", dtype="fp32")
    drawn = draw(bundle, Drawing(n=2))
    assert drawn.prompts == read_prompts(own)[:2]
    assert drawn.psnr_db is not None
    assert min(drawn.psnr_db) > 20
    assert draw(bundle, Drawing(n=1, prompts=["a bag"], compare_float=False)).prompts == ["a bag"]
