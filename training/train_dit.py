"""Train a class-conditional diffusion transformer on Fashion-MNIST: ``python -m training.train_dit --help``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import torch
from diffusers import DiTPipeline, DiTTransformer2DModel

from dq_deploy.errors import UsageError
from training.command import run, training_options
from training.data import CLASSES, TrainingSet, load_images, load_labels
from training.initial import xavier_linears
from training.loop import Recipe

_LABEL_DROPOUT = 0.1


@click.command()
@training_options(steps=4500, batch_size=32, ema_decay=0.999)
def main(**options: Any) -> None:
    """Train a class-conditional DiTTransformer2DModel on Fashion-MNIST and write a DiTPipeline folder (EMA weights, fp16).

    It works on pixels, so the pipeline has no VAE. Classes are 0 to 9; a tenth of the labels is replaced by 10, the null label of
    classifier-free guidance.
    """
    run(RECIPE, **options)


def build(config: dict[str, Any]) -> Any:
    """A DiT with the initialisation of Peebles and Xie (arXiv 2212.09748, section 3.2 and its code).

    diffusers leaves torch's defaults in place. With adaLN-Zero every block starts as the identity and the network's output at zero.
    """
    if config["num_embeds_ada_norm"] != len(CLASSES):
        raise UsageError(f"num_embeds_ada_norm is {config['num_embeds_ada_norm']}; Fashion-MNIST has {len(CLASSES)} classes")
    network: Any = DiTTransformer2DModel.from_config(config)
    xavier_linears(network)
    for block in network.transformer_blocks:
        embedding = block.norm1.emb
        for layer in (embedding.class_embedder.embedding_table, embedding.timestep_embedder.linear_1, embedding.timestep_embedder.linear_2):
            torch.nn.init.normal_(layer.weight, std=0.02)
        torch.nn.init.zeros_(block.norm1.linear.weight)
        # Each block of diffusers' DiT drops labels on its own, so that hardly any sample would lose its label in all of them:
        # `training_batch` drops them for the network as a whole instead.
        embedding.class_embedder.dropout_prob = 0.0
    torch.nn.init.zeros_(network.proj_out_1.weight)
    torch.nn.init.zeros_(network.proj_out_2.weight)
    return network


def _save(network: Any, scheduler: Any, path: Path) -> None:
    # In pixel space there is nothing to decode: the index says so with an empty entry for the VAE, which save_pretrained would complain of.
    network.save_pretrained(path / "transformer")
    scheduler.save_pretrained(path / "scheduler")
    pipeline: Any = DiTPipeline(network, None, scheduler)
    pipeline.save_config(path)


def _load(folder: Path, config: dict[str, Any]) -> TrainingSet:
    # No mirrored pictures: shoes all point one way in the data, and a label says which way a garment is cut.
    images, labels = load_images(folder, "train", config["sample_size"]), load_labels(folder, "train")
    return TrainingSet(images, labels, null_label=len(CLASSES), label_dropout=_LABEL_DROPOUT, flip=False)


RECIPE = Recipe("DiTTransformer2DModel", build, _save, _load, builtin="fashion-mnist-dit", component="transformer")

if __name__ == "__main__":
    main()
