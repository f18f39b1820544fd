"""The text pipeline's training commands on real IDX files with few images and tiny networks: captions, tokens, autoencoder, transformer."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from diffusers import AutoencoderKL, PixArtAlphaPipeline
from safetensors.torch import load_file
from transformers import AutoTokenizer

from dq_deploy.sources import load_source
from tests.training import runs
from tests.training.idx import write_labelled
from tests.training.runs import assert_resumes_bit_identically
from training import evaluate, train_text, train_vae
from training.captions import NOUNS, SHOES, Thirds, caption, measure, phrase, vocabulary
from training.tokenizer import LENGTH, tokenizer

VAE = {
    "_class_name": "AutoencoderKL",
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [4, 4, 4],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "norm_num_groups": 2,
    "latent_channels": 4,
    "sample_size": 32,
}
TRANSFORMER = {
    "_class_name": "PixArtTransformer2DModel",
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "cross_attention_dim": 32,
    "sample_size": 8,
    "patch_size": 1,
    "caption_channels": 32,
    "use_additional_conditions": False,
}
WEIGHTS = Path("pipeline/transformer/diffusion_pytorch_model.safetensors")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, and an autoencoder trained on them for a moment in ``auto/pipeline``."""
    folder = tmp_path_factory.mktemp("fashion-mnist")
    write_labelled(folder, train=50, test=20)
    for name, config in (("vae", VAE), ("transformer", TRANSFORMER)):
        (folder / f"{name}.json").write_text(json.dumps(config))
    result = run(train_vae.main, data=folder, output=folder / "auto", config="vae", steps=2)
    assert result.exit_code == 0, result.output
    return folder


def run(command: Any, *more: str, data: Path, output: Path, config: str, steps: int) -> Result:
    return runs.run(command, "--model-config", str(data / f"{config}.json"), *more, data=data, output=output, steps=steps)


def train(data: Path, output: Path, *more: str, steps: int = 4) -> Result:
    vae = ("--vae", str(data / "auto/pipeline"))
    return run(train_text.main, *vae, *more, data=data, output=output, config="transformer", steps=steps)


def test_what_is_measured_of_a_picture() -> None:
    images = torch.zeros(3, 1, 8, 8, dtype=torch.uint8)
    images[0, 0, :, 2:6] = 200  # plain, four wide
    images[1, 0, :, ::2], images[1, 0, :, 1::2] = 100, 50  # striped
    plain, striped, empty = measure(images).tolist()
    assert plain == [200, 0, 4]
    assert striped == pytest.approx([75, 50 * 56 / (56 + 56) / 75, 8])
    assert empty == [0, 0, 0]


def test_a_coat_is_dark_for_a_coat() -> None:
    images = torch.full((12, 1, 4, 4), 100, dtype=torch.uint8)
    for number in range(6):
        images[number], images[6 + number] = 40 + number, 200 + number
    labels = torch.tensor([4] * 6 + [9] * 6)
    places = Thirds.of(images, labels).place(images, labels)
    assert places[:, 0].tolist() == [0, 0, 1, 1, 2, 2] * 2
    assert Thirds.of(images[:6], labels[:6]).place(images[6:], labels[6:]).tolist() == [[1, 1, 1]] * 6  # a label that was not seen


def test_captions_say_what_is_seen() -> None:
    said = {caption(9, (0, 2, 1), True, torch.Generator().manual_seed(seed)) for seed in range(200)}
    assert "a dark patterned ankle boot, pointing right" in said
    assert "a photo of a boot" in said
    assert not any(word in text for text in said for word in ("light", "plain", "left", "narrow", "wide"))
    assert not any("pointing" in caption(8, (0, 0, 0), False, torch.Generator().manual_seed(seed)) for seed in range(50))
    assert phrase(["dark", "narrow"], "pair of trousers", "a photo of") == "a photo of a pair of dark narrow trousers"
    assert phrase([], "ankle boot") == "an ankle boot"
    assert [nouns[0] for nouns in (NOUNS[label] for label in SHOES)] == ["sandal", "sneaker", "ankle boot"]


def test_the_tokenizer_knows_every_caption_and_survives_being_saved(tmp_path: Path) -> None:
    own = tokenizer()
    own.save_pretrained(tmp_path)
    stored = AutoTokenizer.from_pretrained(tmp_path)
    for label in range(10):
        for seed in range(20):
            text = caption(label, (seed % 3, seed % 2 * 2, 0), seed % 2 == 0, torch.Generator().manual_seed(seed))
            ids = stored(text).input_ids
            assert ids == own(text).input_ids
            assert stored.decode(ids, skip_special_tokens=True) == text
            assert 2 not in ids
            assert len(ids) <= LENGTH
    assert len(own) == len(vocabulary()) + 3
    assert own("").input_ids == [1]
    assert own("purple").input_ids == [2, 1]
    assert own("a purple coat").input_ids == [own("a").input_ids[0], 2, *own("coat").input_ids]


def test_captions_and_words_are_dropped() -> None:
    tokens = train_text.tokenized(["a dark coat"] * 2000)
    dropped = train_text.dropped(tokens, torch.Generator().manual_seed(0))
    empty = (dropped == torch.tensor([1, 0, 0, 0])).all(1)
    assert 150 < empty.sum() < 250
    assert 100 < (dropped[~empty] == 2).sum() < 220
    assert (dropped[~empty][:, -1] == 1).all()  # the end stays


def test_the_autoencoder_lowers_its_loss(data: Path, tmp_path: Path) -> None:
    result = run(
        train_vae.main, "--learning-rate", "0.01", "--ema-decay", "0.9", data=data, output=tmp_path / "vae", config="vae", steps=30
    )
    assert result.exit_code == 0, result.output
    images = train_vae._load(data, VAE)

    def error(folder: Path) -> float:
        vae: Any = AutoencoderKL.from_pretrained(folder / "pipeline/vae").float()
        with torch.no_grad():
            return float(train_vae.loss(vae, None, images, 0, _settings(), torch.device("cpu")).mean())

    assert error(tmp_path / "vae") < 0.7 * error(data / "auto")


def _settings() -> Any:
    return train_text.Settings(1, 50, 1, 0, 0, 0, "fp32", 0, None, "")


def test_training_lowers_the_loss_and_the_pipeline_draws(data: Path, tmp_path: Path) -> None:
    assert train(data, tmp_path / "start", steps=1).exit_code == 0
    result = train(data, tmp_path / "run", "--ema-decay", "0.9", "--learning-rate", "0.01", steps=40)
    assert result.exit_code == 0, result.output
    folder = tmp_path / "run/pipeline"
    source = load_source(folder)
    assert (source.pipeline_class, source.component, source.sample_shape) == ("PixArtAlphaPipeline", "transformer", (4, 8, 8))
    assert {t.dtype for t in load_file(tmp_path / "run" / WEIGHTS).values()} == {torch.float16}
    assert not any(str(data) in path.read_text() or str(tmp_path) in path.read_text() for path in folder.rglob("*.json"))
    pipeline = PixArtAlphaPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    for part in (pipeline.vae, pipeline.text_encoder, pipeline.transformer):
        part.float()
    latents = load_file(tmp_path / "run/latents.safetensors")["latents"]
    assert latents.shape == (2, 50, 4, 8, 8)
    assert pipeline.vae.config.scaling_factor == pytest.approx(1 / latents.std().item())
    drawn = pipeline(["a coat", "a purple thing"], num_inference_steps=2, use_resolution_binning=False, output_type="np").images
    assert drawn.shape == (2, 32, 32, 1)

    judged = CliRunner().invoke(
        evaluate.main, [str(tmp_path / "start/pipeline"), str(folder), "--data", str(data), "--draws", "2", "--format", "json"]
    )
    assert judged.exit_code == 0, judged.output
    start, end = json.loads(judged.stdout)["results"]
    assert end["loss"] < 0.95 * start["loss"]


def test_resume_gives_the_bit_identical_result(data: Path, tmp_path: Path) -> None:
    assert_resumes_bit_identically(partial(train, data), tmp_path, 4, WEIGHTS)


def test_a_network_starts_with_nothing_to_say() -> None:
    network = train_text.TextDenoiser(TRANSFORMER)
    tokens = train_text.tokenized(["a coat", "a bag"])
    assert network(torch.randn(2, 4, 8, 8), torch.tensor([1, 999]), tokens).abs().max() == 0
    assert all(block.attn2.to_out[0].weight.abs().max() == 0 for block in network.transformer.transformer_blocks)


def test_what_does_not_fit_is_refused(data: Path, tmp_path: Path) -> None:
    (data / "large.json").write_text(json.dumps({**TRANSFORMER, "sample_size": 16}))
    large = run(
        train_text.main, "--vae", str(data / "auto/pipeline"), data=data, output=tmp_path / "large", config="large", steps=1
    )  # fmt: skip
    assert large.exit_code == 2
    assert "the autoencoder's latents are (4, 8, 8); the transformer takes (4, 16, 16)" in large.stderr
    none = run(train_text.main, "--vae", str(tmp_path), data=data, output=tmp_path / "none", config="transformer", steps=1)
    assert none.exit_code == 2
    assert f"no such file: {tmp_path / 'vae/config.json'}" in none.stderr
