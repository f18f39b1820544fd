"""What a text pipeline of train_text draws, as a classifier sees it: ``python -m training.judge_text --help``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from benchmarks.accuracy.features import load_classifier
from dq_deploy.console import Output
from dq_deploy.errors import DqDeployError, UsageError
from dq_deploy.progress import Progress
from dq_deploy.sampling.grid import Images, Panel, grid_png
from dq_deploy.sources import load_source, text_pipeline
from training.captions import DIRECTIONS, NOUNS, SHOES, phrase
from training.data import CLASSES
from training.tokenizer import LENGTH

_AT_ONCE = 25


@click.command()
@click.argument("pipeline", default="builtin:fashion-mnist-text")
@click.option("--guidance-scales", default="1,2.5,4.5", show_default=True, help="Scales of classifier-free guidance, with commas.")
@click.option("--pictures", type=click.IntRange(1), default=100, show_default=True, help="How many for each scale, of the classes in turn.")
@click.option("--steps", type=click.IntRange(1), default=20, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--grid", type=click.Path(path_type=Path), default=None, help="PNG of the last scale's pictures.  [default: none]")
@click.option("--threads", type=click.IntRange(1), default=None, help="CPU threads.")
def main(pipeline: str, guidance_scales: str, pictures: int, steps: int, seed: int, grid: Path | None, threads: int | None) -> None:
    """Draw pictures of plain prompts ("a coat", "a boot, pointing left") and count those whose class the classifier recognises.

    ``benchmarks/accuracy/features`` says how many of the real test images it recognises.
    """
    out = Output()
    try:
        if threads:
            torch.set_num_threads(threads)
        scales = _scales(guidance_scales)
        loaded = text_pipeline(load_source(pipeline))
        rows = []
        for scale in scales:
            drawn, labels = draw(loaded, pictures, scale, steps=steps, seed=seed, progress=out.progress)
            right = recognised(drawn) == labels
            rows.append([f"{scale:g}", f"{right.mean():.0%}", *(f"{right[labels == label].mean():.0%}" for label in np.unique(labels))])
    except DqDeployError as error:
        out.error(error)
        sys.exit(error.exit_code)
    out.table(f"class recognised, of {pictures} pictures", ["guidance", "all", *(CLASSES[label] for label in np.unique(labels))], rows)
    if grid:
        grid.write_bytes(grid_png([Panel(f"{pipeline}, guidance {scales[-1]:g}", drawn)]))
        out.note(f"drawn: {grid}")


def _scales(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--guidance-scales {text} are no numbers with commas between", "such as 1,2.5,4.5") from None


def prompt(number: int) -> tuple[str, int]:
    """The prompt of a picture, and its class: classes in turn, their words in turn, and for shoes a direction."""
    label = number % len(CLASSES)
    turn = number // len(CLASSES)
    end = f", pointing {DIRECTIONS[turn % 2]}" if label in SHOES else ""
    return phrase([], NOUNS[label][turn % len(NOUNS[label])], end=end), label


def draw(pipeline: Any, count: int, scale: float, *, steps: int, seed: int, progress: Progress) -> tuple[Images, Any]:
    """Pictures [N, H, W, 1] in [0, 1] with a seed each, and their classes [N]."""
    prompts = [prompt(number) for number in range(count)]
    parts = []
    with progress(f"guidance {scale:g}", count) as advance:
        for start in range(0, count, _AT_ONCE):
            texts = [text for text, _ in prompts[start : start + _AT_ONCE]]
            noises = [torch.Generator().manual_seed(seed + start + number) for number in range(len(texts))]
            parts.append(pipeline(texts, num_inference_steps=steps, guidance_scale=scale, generator=noises, max_sequence_length=LENGTH,
                                  use_resolution_binning=False, clean_caption=False, output_type="np").images)  # fmt: skip
            advance(len(texts))
    return np.concatenate(parts), np.array([label for _, label in prompts])


@torch.no_grad()
def recognised(pictures: Images) -> Any:
    """The class [N] that the classifier of the benchmarks sees in pictures [N, 32, 32, 1] in [0, 1]."""
    levels = np.round(pictures * 255).astype(np.float32) / 127.5 - 1
    return load_classifier()(torch.from_numpy(levels).permute(0, 3, 1, 2)).argmax(1).numpy()


if __name__ == "__main__":
    main()
