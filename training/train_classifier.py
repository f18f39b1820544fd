"""Train the small classifier whose features the accuracy benchmarks compare: ``python -m training.train_classifier --help``."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from benchmarks.accuracy.features.network import FashionClassifier, load_weights
from dq_deploy.console import Output
from dq_deploy.errors import DqDeployError, UsageError
from dq_deploy.progress import Advance
from training.data import TrainingSet, load_images, load_labels, to_unit_range, training_batch

_EDGE = 32
_LOSS_MEMORY = 100


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Folder of the IDX files.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Weights to write: a .safetensors file.")
@click.option("--epochs", type=click.IntRange(1), default=4, show_default=True)
@click.option("--batch-size", type=click.IntRange(2), default=64, show_default=True)
@click.option("--learning-rate", type=click.FloatRange(0, min_open=True), default=5e-3, show_default=True, help="Peak of a single cycle.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=None, help="CPU threads.")
def main(data: Path, output: Path, epochs: int, batch_size: int, learning_rate: float, seed: int, threads: int | None) -> None:
    """Train on the 60,000 training images (minutes on one CPU thread), write fp16 weights, and give their accuracy on the test images."""
    out = Output()
    try:
        if output.exists() or not output.parent.is_dir():
            raise UsageError(f"output {output} already exists" if output.exists() else f"no such folder: {output.parent}")
        if threads:
            torch.set_num_threads(threads)
        # Mirrored pictures too: a mirrored shoe is as good a shoe, and the UNet draws both.
        training_set = TrainingSet(load_images(data, "train", _EDGE), load_labels(data, "train"))
        test_images, test_labels = load_images(data, "test", _EDGE), load_labels(data, "test")
        steps = epochs * len(training_set.images) // batch_size
        with out.progress("training", steps) as advance:
            network = train(training_set, steps=steps, batch_size=batch_size, learning_rate=learning_rate, seed=seed, advance=advance)
        partial = output.with_name(output.name + ".partial")
        save_file({name: _half(tensor) for name, tensor in network.state_dict().items()}, partial)
        partial.replace(output)
        correct = accuracy(load_weights(output), test_images, test_labels)
    except DqDeployError as error:
        out.error(error)
        sys.exit(error.exit_code)
    out.text(f"wrote {output}: {correct:.2%} of the test images are classified correctly")


def train(data: TrainingSet, *, steps: int, batch_size: int, learning_rate: float, seed: int, advance: Advance) -> FashionClassifier:
    """A classifier trained on ``data`` with AdamW and one cycle of the learning rate. Raises UsageError when the loss is not finite."""
    torch.manual_seed(seed)
    network = FashionClassifier().train()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a quarter faster
    optimizer = torch.optim.AdamW(network.parameters(), learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=max(steps, 2))
    mean = None
    for step in range(steps):
        batch = training_batch(data, step, batch_size=batch_size, timesteps=1, seed=seed)
        assert batch.labels is not None
        loss = F.cross_entropy(network(batch.images), batch.labels)
        if not torch.isfinite(loss):
            raise UsageError(f"the loss is {loss.item()} at step {step}", "lower --learning-rate")
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        mean = loss.item() if mean is None else mean + (loss.item() - mean) / _LOSS_MEMORY
        advance(note=f"loss {mean:.3f}")
    return network.eval()


@torch.no_grad()
def accuracy(network: FashionClassifier, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of the images (uint8 [N, 1, 32, 32]) whose largest logit is their label's."""
    parts = zip(images.split(500), labels.split(500), strict=True)
    correct = sum(int((network(to_unit_range(part)).argmax(dim=1) == truth).sum()) for part, truth in parts)
    return correct / len(images)


def _half(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.half().contiguous() if tensor.is_floating_point() else tensor


if __name__ == "__main__":
    main()
