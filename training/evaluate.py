"""Held-out denoising loss of pipelines on the Fashion-MNIST test images: ``python -m training.evaluate --help``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import click
import torch
from diffusers import DDPMScheduler, PixArtTransformer2DModel

from dq_deploy.console import Output
from dq_deploy.errors import DqDeployError, UsageError
from dq_deploy.progress import Advance
from dq_deploy.quantization.calibration.choice import settings
from dq_deploy.quantization.calibration.classes import class_space
from dq_deploy.sources import Source, load_source, takes_prompts
from training.data import CLASSES, TrainingSet, held_out_batches, load_images, load_labels
from training.loop import denoising_loss
from training.train_text import held_out_losses as text_losses

_BINS = 10
# Fixed, and away from the training's default: the same noises for everyone who compares.
_SEED = 1_000_003


@dataclass(frozen=True)
class Losses:
    """``values``: squared error of each sample [D·N]; ``bins``: mean error in each tenth of the timesteps, least noise first [10]."""

    name: str
    values: torch.Tensor
    bins: list[float]


@click.command()
@click.argument("pipelines", nargs=-1, required=True)
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Folder of the IDX files.")
@click.option("--images", "count", type=click.IntRange(1), default=10_000, show_default=True, help="How many test images.")
@click.option("--draws", type=click.IntRange(1), default=1, show_default=True, help="Noises and timesteps for each image.")
@click.option("--batch-size", type=click.IntRange(1), default=100, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=None, help="CPU threads.")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
def main(pipelines: tuple[str, ...], data: Path, count: int, draws: int, batch_size: int, threads: int | None,
         form: Literal["table", "json"]) -> None:  # fmt: skip
    """Mean squared error of the noise that PIPELINES predict, over the same images, noises and timesteps for each.

    The difference to the first is given with the standard error of the paired differences. Class-conditional pipelines are
    told the class of each image, text pipelines a caption of it; theirs is the noise of latents, and compares with no other's.
    """
    out = Output(form)
    try:
        if threads:
            torch.set_num_threads(threads)
        results = [_evaluate(reference, data, count, draws, batch_size, out) for reference in pipelines]
    except DqDeployError as error:
        out.error(error)
        sys.exit(error.exit_code)
    rows = [summary(result, results[0]) for result in results]
    out.table(
        "held-out denoising loss",
        ["pipeline", "loss", "± standard error", "against the first", "±"],
        [
            [r["pipeline"], *(f"{r[key]:.5f}" for key in ("loss", "standard_error", "difference", "difference_standard_error"))]
            for r in rows
        ],
    )
    edges = [f"{100 * index // _BINS}–{100 * (index + 1) // _BINS}%" for index in range(_BINS)]
    out.table("by timestep", ["pipeline", *edges], [[result.name, *(f"{value:.4f}" for value in result.bins)] for result in results])
    out.data({"images": len(results[0].values) // draws, "draws": draws, "results": rows})


def summary(result: Losses, first: Losses) -> dict[str, object]:
    """Mean loss, its standard error, and the paired difference to ``first``."""
    difference = result.values - first.values
    return {
        "pipeline": result.name,
        "loss": result.values.mean().item(),
        "standard_error": _standard_error(result.values),
        "difference": difference.mean().item(),
        "difference_standard_error": _standard_error(difference),
        "loss_by_timestep_tenth": result.bins,
    }


def _standard_error(values: torch.Tensor) -> float:
    return (values.std() / len(values) ** 0.5).item() if len(values) > 1 else 0.0


def _evaluate(reference: str, data: Path, count: int, draws: int, batch_size: int, out: Output) -> Losses:
    source = load_source(reference)
    if takes_prompts(source):
        return _evaluate_text(source, data, count, draws, batch_size, out)
    images = load_images(data, "test", source.sample_shape[-1])[:count]
    space = class_space(source.model, source.config)
    if space is not None and space.count != len(CLASSES):
        raise UsageError(f"{reference} has {space.count} classes; Fashion-MNIST has {len(CLASSES)}")
    held_out = TrainingSet(images, None if space is None else load_labels(data, "test")[:count])
    with out.progress(reference, draws * len(images)) as advance:
        return held_out_losses(source, held_out, draws=draws, batch_size=batch_size, advance=advance)


@torch.no_grad()
def held_out_losses(source: Source, data: TrainingSet, *, draws: int, batch_size: int, advance: Advance) -> Losses:
    """Losses of a source over images it was not trained on, each with ``draws`` fixed noises and timesteps."""
    scheduler = DDPMScheduler.from_config(settings(source.scheduler))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = source.model.to(device)
    steps = len(scheduler.alphas_cumprod)
    values, timesteps = [], []
    for draw in range(draws):
        for batch in held_out_batches(data, batch_size=batch_size, timesteps=steps, draw=draw, seed=_SEED):
            values.append(denoising_loss(model, scheduler, batch, device).double().cpu())
            timesteps.append(batch.timesteps)
            advance(len(batch.images))
    return _by_timestep(source.reference, torch.cat(values), torch.cat(timesteps) * _BINS // steps)


def _evaluate_text(source: Source, data: Path, count: int, draws: int, batch_size: int, out: Output) -> Losses:
    if not isinstance(source.model, PixArtTransformer2DModel):
        raise UsageError(f"{source.reference} is a {source.pipeline_class}; of text pipelines those of train_text are evaluated")
    parts = []
    with out.progress(source.reference, draws) as advance:
        for draw in range(draws):
            parts.append(text_losses(source, data, count, draw, seed=_SEED, batch_size=batch_size))
            advance()
    losses, timesteps = map(torch.cat, zip(*parts, strict=True))
    return _by_timestep(source.reference, losses, timesteps * _BINS // source.scheduler.config.num_train_timesteps)


def _by_timestep(name: str, losses: torch.Tensor, where: torch.Tensor) -> Losses:
    return Losses(name, losses, [losses[where == index].mean().item() for index in range(_BINS)])


if __name__ == "__main__":
    main()
