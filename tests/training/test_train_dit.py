"""The DiT's training command on real IDX files with few images and a tiny network."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from diffusers import DiTPipeline
from safetensors.torch import load_file

from dq_deploy.sources import load_source
from tests.training.idx import write_labelled
from tests.training.runs import assert_resumes_bit_identically, run
from training import evaluate, train_dit
from training.data import TrainingSet, training_batch

CONFIG = {
    "_class_name": "DiTTransformer2DModel",
    "sample_size": 32,
    "patch_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "num_embeds_ada_norm": 10,
    "norm_eps": 1e-5,
}
WEIGHTS = Path("pipeline/transformer/diffusion_pytorch_model.safetensors")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fashion-mnist")
    write_labelled(folder, train=50, test=20)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def train(data: Path, output: Path, *more: str, steps: int = 6, config: str = "config.json") -> Result:
    if "--init" not in more:
        more = (*more, "--model-config", str(data / config))
    return run(train_dit.main, *more, data=data, output=output, steps=steps)


def test_training_lowers_the_loss_and_the_output_loads(data: Path, tmp_path: Path) -> None:
    assert train(data, tmp_path / "start", steps=1).exit_code == 0
    result = train(data, tmp_path / "run", "--ema-decay", "0.9", "--learning-rate", "0.01", steps=60)
    assert result.exit_code == 0, result.output
    source = load_source(tmp_path / "run/pipeline")
    assert (source.pipeline_class, source.component, source.sample_shape) == ("DiTPipeline", "transformer", (1, 32, 32))
    assert {t.dtype for t in load_file(tmp_path / "run" / WEIGHTS).values()} == {torch.float16}
    assert DiTPipeline.from_pretrained(tmp_path / "run/pipeline", vae=None).transformer.config.num_embeds_ada_norm == 10

    command = [str(tmp_path / "start/pipeline"), str(tmp_path / "run/pipeline"), "--data", str(data), "--format", "json"]
    judged = CliRunner().invoke(evaluate.main, command)
    assert judged.exit_code == 0, judged.output
    start, end = json.loads(judged.stdout)["results"]
    assert end["loss"] < 0.9 * start["loss"]


def test_resume_gives_the_bit_identical_result(data: Path, tmp_path: Path) -> None:
    assert_resumes_bit_identically(partial(train, data), tmp_path, 6, WEIGHTS)


def test_init_goes_on_from_a_pipeline(data: Path, tmp_path: Path) -> None:
    assert train(data, tmp_path / "first", steps=2).exit_code == 0
    # A learning rate that rounds to nothing leaves the weights where they were.
    result = train(data, tmp_path / "second", "--init", str(tmp_path / "first/pipeline"), "--learning-rate", "1e-12", steps=1)
    assert result.exit_code == 0, result.output
    first, second = load_file(tmp_path / "first" / WEIGHTS), load_file(tmp_path / "second" / WEIGHTS)
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    unet = train(data, tmp_path / "third", "--init", "builtin:fashion-mnist-unet")
    assert unet.exit_code == 2
    assert "builtin:fashion-mnist-unet is not a DiTTransformer2DModel that predicts epsilon" in unet.stderr


def test_a_network_starts_with_nothing_to_say(data: Path) -> None:
    """AdaLN-Zero: the output is zero, and so is each block's contribution, whatever the input."""
    network = train_dit.build(CONFIG).train()
    assert network(torch.randn(2, 1, 32, 32), torch.tensor([1, 999]), class_labels=torch.tensor([0, 10])).sample.abs().max() == 0
    tokens = torch.randn(2, 16, 16)
    block = network.transformer_blocks[0]
    assert torch.equal(block(tokens, timestep=torch.tensor([1, 999]), class_labels=torch.tensor([0, 10])), tokens)


def test_a_dropped_label_is_dropped_for_every_block(data: Path) -> None:
    network = train_dit.build(CONFIG).train()
    embedder = network.transformer_blocks[0].norm1.emb.class_embedder
    labels = torch.arange(10)
    assert torch.equal(embedder(labels), embedder.embedding_table(labels))  # diffusers' own dropout is off
    labelled = TrainingSet(torch.zeros(400, 1, 2, 2, dtype=torch.uint8), torch.full((400,), 3), label_dropout=0.1)
    drawn = training_batch(labelled, 0, batch_size=400, timesteps=10, seed=0).labels
    assert drawn is not None
    assert set(drawn.tolist()) == {3, 10}
    assert 20 < (drawn == 10).sum() < 60


def test_nothing_is_mirrored(data: Path) -> None:
    images = torch.zeros(100, 1, 2, 2, dtype=torch.uint8)
    images[..., 0] = 255
    assert (training_batch(TrainingSet(images, flip=False), 0, batch_size=100, timesteps=10, seed=0).images[:, 0, 0, 0] == 1).all()


def test_other_numbers_of_classes_are_refused(data: Path, tmp_path: Path) -> None:
    (data / "other.json").write_text(json.dumps({**CONFIG, "num_embeds_ada_norm": 5}))
    result = train(data, tmp_path / "run", config="other.json")
    assert result.exit_code == 2
    assert "num_embeds_ada_norm is 5; Fashion-MNIST has 10 classes" in result.stderr
    torch.manual_seed(0)
    from diffusers import DDPMScheduler, DiTTransformer2DModel

    train_dit._save(DiTTransformer2DModel(**{**CONFIG, "num_embeds_ada_norm": 5}), DDPMScheduler(), tmp_path / "five")
    judged = CliRunner().invoke(evaluate.main, [str(tmp_path / "five"), "--data", str(data)])
    assert judged.exit_code == 2
    assert "has 5 classes; Fashion-MNIST has 10" in judged.stderr
