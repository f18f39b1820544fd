"""The UNet's training command, the data and the held-out loss, on real IDX files with few images and a tiny network."""

from __future__ import annotations

import json
import math
import re
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from diffusers import DDPMPipeline
from safetensors.torch import load_file

from dq_deploy.errors import ArtifactError, UsageError
from dq_deploy.sources import load_source
from tests.training.idx import write_images, write_labels
from training import evaluate, train_unet
from training.data import TrainingSet, held_out_batches, load_images, load_labels, to_unit_range, training_batch

CONFIG = {
    "_class_name": "UNet2DModel",
    "sample_size": 32,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "dropout": 0.1,  # its random numbers must survive a kill too
}
WEIGHTS = Path("pipeline/unet/diffusion_pytorch_model.safetensors")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fashion-mnist")
    write_images(folder / "train-images-idx3-ubyte.gz", 50)
    write_images(folder / "t10k-images-idx3-ubyte", 20)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def arguments(data: Path, output: Path, *more: str, steps: int = 6) -> list[str]:
    options = {"--data": data, "-o": output, "--steps": steps, "--batch-size": 8, "--warmup": 2, "--threads": 1, "--device": "cpu"}
    return [text for pair in options.items() for text in map(str, pair)] + list(more)


def train(data: Path, output: Path, *more: str, steps: int = 6) -> Result:
    if "--init" not in more:
        more = (*more, "--model-config", str(data / "config.json"))
    return CliRunner().invoke(train_unet.main, arguments(data, output, *more, steps=steps))


def test_images_are_padded_with_background(data: Path) -> None:
    images = load_images(data, "train", 32)
    assert (images.shape, images.dtype) == ((50, 1, 32, 32), torch.uint8)
    assert torch.equal(images[:, 0, 2:-2, 2:-2], write_images(data / "again", 50))
    assert images[:, :, :2].sum() == images[:, :, -2:].sum() == images[..., :2].sum() == images[..., -2:].sum() == 0
    assert to_unit_range(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1.0, 1.0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not an IDX file of images"),
        (struct.pack(">IIII", 0x801, 1, 28, 28), "is not an IDX file of images"),
        (struct.pack(">IIII", 0x803, 2, 28, 28) + bytes(784), "announces 2 images of 28x28, and holds 784 bytes"),
        (struct.pack(">IIII", 0x803, 0, 28, 28), "announces 0 images"),
    ],
    ids=["empty", "labels", "truncated", "none"],
)
def test_damaged_images(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(ArtifactError, match=message):
        load_images(tmp_path, "train", 32)


def test_no_images_and_images_too_large(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds neither train-images-idx3-ubyte nor train-images-idx3-ubyte.gz"):
        load_images(tmp_path, "train", 32)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"no gzip")
    with pytest.raises(ArtifactError, match="is not a whole gzip file"):
        load_images(tmp_path, "train", 32)
    write_images(tmp_path / "t10k-images-idx3-ubyte", 2, edge=40)
    with pytest.raises(UsageError, match="images of 40x40 do not fit into the model's 32x32"):
        load_images(tmp_path, "test", 32)


def test_labels(tmp_path: Path) -> None:
    written = write_labels(tmp_path / "train-labels-idx1-ubyte.gz", 50)
    labels = load_labels(tmp_path, "train")
    assert labels.dtype == torch.int64
    assert labels.tolist() == written.tolist() == [number % 10 for number in range(50)]
    with pytest.raises(UsageError, match="holds neither t10k-labels-idx1-ubyte nor t10k-labels-idx1-ubyte.gz"):
        load_labels(tmp_path, "test")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (struct.pack(">II", 0x803, 1) + bytes(1), "is not an IDX file of labels"),
        (struct.pack(">II", 0x801, 3) + bytes(2), "announces 3 labels, and holds 2 bytes of them"),
        (struct.pack(">II", 0x801, 2) + bytes([9, 10]), "has the label 10; Fashion-MNIST's go from 0 to 9"),
    ],
    ids=["images", "truncated", "other classes"],
)
def test_damaged_labels(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(content)
    with pytest.raises(ArtifactError, match=message):
        load_labels(tmp_path, "train")


def test_every_image_once_an_epoch() -> None:
    images = torch.arange(12, dtype=torch.uint8).reshape(12, 1, 1, 1).expand(12, 1, 4, 4)  # flips change nothing
    # Batches of 8 over 12 images: the second one crosses into the second epoch.
    data = TrainingSet(images)
    batches = [training_batch(data, step, batch_size=8, timesteps=1000, seed=3) for step in range(3)]
    seen = torch.cat([((batch.images[:, 0, 0, 0] + 1) * 127.5).round() for batch in batches]).int().tolist()
    assert sorted(seen[:12]) == sorted(seen[12:]) == list(range(12))
    assert seen[:12] != seen[12:]
    assert len({tuple(batch.timesteps.tolist()) for batch in batches}) == 3
    again = training_batch(data, 1, batch_size=8, timesteps=1000, seed=3)
    other = training_batch(data, 1, batch_size=8, timesteps=1000, seed=4)
    assert torch.equal(again.noise, batches[1].noise)
    assert not torch.equal(other.noise, batches[1].noise)


def test_half_of_the_images_are_flipped() -> None:
    images = torch.zeros(400, 1, 2, 2, dtype=torch.uint8)
    images[..., 0] = 255
    flipped = (training_batch(TrainingSet(images), 0, batch_size=400, timesteps=10, seed=0).images[:, 0, 0, 0] < 0).sum()
    assert 150 < flipped < 250


def test_held_out_timesteps_are_spread_evenly() -> None:
    batches = held_out_batches(TrainingSet(torch.zeros(20, 1, 2, 2, dtype=torch.uint8)), batch_size=6, timesteps=1000, draw=0, seed=1)
    assert [len(batch.images) for batch in batches] == [6, 6, 6, 2]
    assert sorted(torch.cat([batch.timesteps for batch in batches]).tolist()) == list(range(0, 1000, 50))


def test_training_lowers_the_loss_and_the_output_loads(data: Path, tmp_path: Path) -> None:
    assert train(data, tmp_path / "start", steps=1).exit_code == 0
    result = train(data, tmp_path / "run", "--ema-decay", "0.9", "--learning-rate", "0.01", steps=60)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"wrote {tmp_path / 'run' / 'pipeline'}\n"
    source = load_source(tmp_path / "run/pipeline")
    assert (source.pipeline_class, source.sample_shape) == ("DDPMPipeline", (1, 32, 32))
    assert {t.dtype for t in load_file(tmp_path / "run" / WEIGHTS).values()} == {torch.float16}
    pictures = DDPMPipeline.from_pretrained(tmp_path / "run/pipeline")(num_inference_steps=2, output_type="np").images
    assert pictures.shape == (1, 32, 32, 1)

    command = [str(tmp_path / "start/pipeline"), str(tmp_path / "run/pipeline"), "--data", str(data), "--draws", "5", "--format", "json"]
    judged = CliRunner().invoke(evaluate.main, command)
    assert judged.exit_code == 0, judged.output
    report = json.loads(judged.stdout)
    start, end = report["results"]
    assert (report["images"], report["draws"]) == (20, 5)
    assert end["loss"] < 0.6 * start["loss"]
    assert end["difference"] == pytest.approx(end["loss"] - start["loss"])
    assert start["difference"] == start["difference_standard_error"] == 0
    assert len(end["loss_by_timestep_tenth"]) == 10


@pytest.mark.nightly
def test_kill_and_resume_give_the_bit_identical_result(data: Path, tmp_path: Path) -> None:
    more = ("--checkpoint-every", "10", "--model-config", str(data / "config.json"))
    assert CliRunner().invoke(train_unet.main, arguments(data, tmp_path / "whole", *more, steps=40)).exit_code == 0

    killed = tmp_path / "killed"
    command = [sys.executable, "-m", "training.train_unet", *arguments(data, killed, *more, steps=40)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=Path(train_unet.__file__).parents[1])
    while not (killed / WEIGHTS).is_file():  # written right after the state of step 10
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    result = CliRunner().invoke(train_unet.main, arguments(data, killed, *more, "--resume", steps=40))
    assert result.exit_code == 0, result.output
    assert re.search(r"going on after step ([123]0)\n", result.stderr)

    for name in ("state.safetensors", WEIGHTS):
        whole, resumed = load_file(tmp_path / "whole" / name), load_file(killed / name)
        assert list(whole) == list(resumed)
        assert all(torch.equal(tensor, resumed[key]) for key, tensor in whole.items())


def test_interrupt_saves_and_says_how_to_go_on(data: Path, tmp_path: Path) -> None:
    # In a process of its own, as Ctrl-C finds it: other tests leave handlers and threads behind.
    program = (
        "import os, signal; from training import loop, train_unet\n"
        "step = loop._train_step\n"
        "def interrupted(*args):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    return step(*args)\n"
        "loop._train_step = interrupted\n"
        "train_unet.main()"
    )
    more = ("--model-config", str(data / "config.json"))
    command = [sys.executable, "-c", program, *arguments(data, tmp_path / "run", *more)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(train_unet.__file__).parents[1])
    assert result.returncode == 130
    assert "stopped after step 1 of 6; --resume goes on" in result.stderr
    assert train(data, tmp_path / "run", "--resume").exit_code == 0


def test_time_limit_stops_in_good_order(data: Path, tmp_path: Path) -> None:
    result = train(data, tmp_path / "run", "--max-minutes", "1e-9")
    assert result.exit_code == 0
    assert "stopped after step 1 of 6" in result.stderr
    assert (tmp_path / "run" / WEIGHTS).is_file()


def test_init_goes_on_from_a_pipeline(data: Path, tmp_path: Path) -> None:
    assert train(data, tmp_path / "first", steps=2).exit_code == 0
    # A learning rate that rounds to nothing leaves the weights where they were.
    result = train(data, tmp_path / "second", "--init", str(tmp_path / "first/pipeline"), "--learning-rate", "1e-12", steps=2)
    assert result.exit_code == 0, result.output
    first, second = load_file(tmp_path / "first" / WEIGHTS), load_file(tmp_path / "second" / WEIGHTS)
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_no_path_of_this_machine_in_the_pipeline(data: Path, tmp_path: Path) -> None:
    assert train(data, tmp_path / "first", steps=1).exit_code == 0
    assert train(data, tmp_path / "second", "--init", str(tmp_path / "first/pipeline"), steps=1).exit_code == 0
    texts = [path.read_text() for path in (tmp_path / "second/pipeline").rglob("*.json")]
    assert len(texts) == 3
    assert not any(str(tmp_path) in text for text in texts)


def test_options_that_cannot_be(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    assert "holds no state.safetensors to resume from" in train(data, output, "--resume").stderr
    assert not output.exists()
    assert train(data, output).exit_code == 0
    again = train(data, output)
    assert again.exit_code == 2
    assert "already exists\nhint: --resume goes on with the run in it" in again.stderr
    other = train(data, output, "--resume", "--seed", "7")
    assert other.exit_code == 2
    assert "has other settings: seed was 0, not 7" in other.stderr
    both = train(data, tmp_path / "x", "--init", str(output / "pipeline"), "--model-config", str(data / "config.json"))
    assert both.exit_code == 2
    assert "leave --model-config out" in both.stderr
    (output / "state.safetensors").write_bytes(b"damaged")
    damaged = train(data, output, "--resume")
    assert damaged.exit_code == 3
    assert "is not a training state" in damaged.stderr


def test_loss_that_diverges_stops(data: Path, tmp_path: Path) -> None:
    result = train(data, tmp_path / "run", "--learning-rate", "1e30", "--warmup", "0")
    assert result.exit_code == 2
    assert "the loss is nan at step" in result.stderr
    assert not (tmp_path / "run/pipeline").exists()


def test_bf16_trains(data: Path, tmp_path: Path) -> None:
    result = train(data, tmp_path / "run", "--precision", "bf16", steps=2)
    assert result.exit_code == 0, result.output
    assert all(math.isfinite(tensor.sum()) for tensor in load_file(tmp_path / "run" / WEIGHTS).values())


@pytest.mark.gpu
def test_trains_on_a_gpu(data: Path, tmp_path: Path) -> None:
    more = ["--model-config", str(data / "config.json"), "--device", "cuda"]
    result = CliRunner().invoke(train_unet.main, arguments(data, tmp_path / "run", *more))
    assert result.exit_code == 0, result.output
    load_source(tmp_path / "run/pipeline")
