"""Train an unconditional UNet on Fashion-MNIST, from nothing or onwards from a pipeline: ``python -m training.train_unet --help``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from diffusers import DDPMPipeline, UNet2DModel

from training.command import run, training_options
from training.data import TrainingSet, load_images
from training.loop import Recipe


@click.command()
@training_options(steps=5905, batch_size=32, ema_decay=0.9995)
def main(**options: Any) -> None:
    """Train an unconditional UNet2DModel on Fashion-MNIST and write a DDPMPipeline folder (EMA weights, fp16)."""
    run(RECIPE, **options)


def _save(network: Any, scheduler: Any, path: Path) -> None:
    pipeline: Any = DDPMPipeline(network, scheduler)
    pipeline.save_pretrained(path)


def _load(folder: Path, config: dict[str, Any]) -> TrainingSet:
    return TrainingSet(load_images(folder, "train", config["sample_size"]))


RECIPE = Recipe("UNet2DModel", UNet2DModel.from_config, _save, _load, builtin="fashion-mnist-unet", component="unet")

if __name__ == "__main__":
    main()
