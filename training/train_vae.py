"""Train the autoencoder of the text pipeline on Fashion-MNIST: ``python -m training.train_vae --help``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import torch
from diffusers import AutoencoderKL
from torch.nn import functional as F

from training.command import run, training_options
from training.data import TrainingSet, load_images, training_batch
from training.loop import Recipe, Settings

# Beside the mean squared error in [-1, 1]: as much as a decoder that is sure of a pixel to within 4 of 255 grey levels asks for.
_KL_WEIGHT = 5e-4


@click.command()
@training_options(steps=4000, batch_size=32, ema_decay=0.999)
def main(**options: Any) -> None:
    """Train an AutoencoderKL on Fashion-MNIST, mirrored pictures too, and write a folder with it in ``vae`` (EMA weights, fp16).

    It begins from nothing: --init takes no autoencoder.
    """
    run(RECIPE, **options)


def loss(model: Any, scheduler: Any, data: TrainingSet, step: int, settings: Settings, device: torch.device) -> torch.Tensor:  # noqa: ARG001
    """Mean squared error of the pixels plus the divergence of the latents from a standard normal, for each picture: [B]."""
    images = training_batch(data, step, batch_size=settings.batch_size, timesteps=1, seed=settings.seed).images.to(device)
    posterior = model.encode(images).latent_dist
    error = F.mse_loss(model.decode(posterior.sample()).sample.float(), images, reduction="none").mean((1, 2, 3))
    divergence: torch.Tensor = posterior.kl() / posterior.mean[0].numel()
    return error + _KL_WEIGHT * divergence


def _save(network: Any, scheduler: Any, path: Path) -> None:  # noqa: ARG001  an autoencoder has none
    network.save_pretrained(path / "vae")


def _load(folder: Path, config: dict[str, Any]) -> TrainingSet:
    return TrainingSet(load_images(folder, "train", config["sample_size"]))


RECIPE = Recipe("AutoencoderKL", AutoencoderKL.from_config, _save, _load, builtin="fashion-mnist-text", component="vae", loss=loss)

if __name__ == "__main__":
    main()
