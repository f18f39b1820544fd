"""Whether what a text pipeline of train_text draws is what its prompts say: ``python -m training.judge_text --help``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
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
from training.captions import DIRECTIONS, NOUNS, SHADES, SHOES, TEXTURES, WIDTHS, measure, phrase
from training.data import CLASSES
from training.tokenizer import LENGTH

MEASURED = {"brightness": (SHADES[0], SHADES[2]), "texture": (TEXTURES[0], TEXTURES[2]), "width": (WIDTHS[0], WIDTHS[2])}
"""What ``captions.measure`` measures, with the words for the least and the greatest third of it."""
_AT_ONCE = 25


@click.command()
@click.argument("pipeline", default="builtin:fashion-mnist-text")
@click.option("--guidance-scales", default="1,2.5,4.5", show_default=True, help="Scales of classifier-free guidance, with commas.")
@click.option("--pictures", type=click.IntRange(1), default=100, show_default=True, help="How many for each scale, of the classes in turn.")
@click.option("--word-pictures", type=click.IntRange(0), default=40, show_default=True,
              help="How many for each scale and word of brightness, texture and width.")  # fmt: skip
@click.option("--steps", type=click.IntRange(1), default=20, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--grid", type=click.Path(path_type=Path), default=None, help="PNG of the last scale's pictures.  [default: none]")
@click.option("--threads", type=click.IntRange(1), default=None, help="CPU threads.")
def main(pipeline: str, guidance_scales: str, pictures: int, word_pictures: int, steps: int, seed: int, grid: Path | None,
         threads: int | None) -> None:  # fmt: skip
    """Draw pictures of plain prompts ("a coat", "a boot, pointing left") and count those whose class the classifier recognises.

    ``benchmarks/accuracy/features`` says how many of the real test images it recognises. Then draw "a dark coat" and "a light coat" from
    the same noise, and measure both; likewise plain and patterned, narrow and wide.
    """
    out = Output()
    try:
        if threads:
            torch.set_num_threads(threads)
        scales = _scales(guidance_scales)
        loaded = text_pipeline(load_source(pipeline))
        rows, obeyed = [], []
        for scale in scales:
            prompts = [prompt(number) for number in range(pictures)]
            drawn, labels = draw(loaded, prompts, scale, steps=steps, seed=seed, progress=out.progress)
            right = recognised(drawn) == labels
            for name in MEASURED if word_pictures else ():
                pairs = pairs_of(loaded, name, word_pictures, scale, steps=steps, seed=seed, progress=out.progress)
                obeyed.append([f"{scale:g}", *obedience(name, pairs)])
            rows.append([f"{scale:g}", f"{right.mean():.0%}", *(f"{right[labels == label].mean():.0%}" for label in np.unique(labels))])
    except DqDeployError as error:
        out.error(error)
        sys.exit(error.exit_code)
    out.table(f"class recognised, of {pictures} pictures", ["guidance", "all", *(CLASSES[label] for label in np.unique(labels))], rows)
    if obeyed:
        title = f"{word_pictures} pictures of each word, in pairs from the same noise"
        out.table(title, ["guidance", "measured", "mean of each", "difference ± standard error", "pairs as said"], obeyed)
    if grid:
        grid.write_bytes(grid_png([Panel(f"{pipeline}, guidance {scales[-1]:g}", drawn)]))
        out.note(f"drawn: {grid}")


def _scales(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--guidance-scales {text} are no numbers with commas between", "such as 1,2.5,4.5") from None


def prompt(number: int, adjectives: Sequence[str] = (), classes: Sequence[int] = range(len(CLASSES))) -> tuple[str, int]:
    """The prompt of a picture, and its class: classes in turn, their words in turn, and for shoes a direction."""
    label = classes[number % len(classes)]
    turn = number // len(classes)
    end = f", pointing {DIRECTIONS[turn % 2]}" if label in SHOES else ""
    return phrase(adjectives, NOUNS[label][turn % len(NOUNS[label])], end=end), label


def pairs_of(pipeline: Any, name: str, count: int, scale: float, *, steps: int, seed: int, progress: Progress) -> torch.Tensor:
    """``name`` measured of pictures of its two words [2, N]: in a pair all is the same but the word. Shoes are not said to be wide."""
    classes = [label for label in range(len(CLASSES)) if name != "width" or label not in SHOES]
    found = []
    for word in MEASURED[name]:
        prompts = [prompt(number, [word], classes) for number in range(count)]
        drawn, _ = draw(pipeline, prompts, scale, steps=steps, seed=seed, progress=progress)
        found.append(measure(torch.from_numpy(np.round(drawn * 255).astype(np.uint8)).permute(0, 3, 1, 2))[:, list(MEASURED).index(name)])
    return torch.stack(found)


def obedience(name: str, pairs: torch.Tensor) -> list[str]:
    """A line about the pairs [2, N]: the words with their means, the mean difference, and how often the second has more."""
    words = ", ".join(f"{word} {mean:.3g}" for word, mean in zip(MEASURED[name], pairs.mean(1).tolist(), strict=True))
    difference = pairs[1] - pairs[0]
    error = difference.std() / len(difference) ** 0.5 if len(difference) > 1 else torch.tensor(torch.nan)
    return [name, words, f"{difference.mean():+.3g} ± {error:.2g}", f"{(difference > 0).float().mean():.0%}"]


def draw(pipeline: Any, prompts: Sequence[tuple[str, int]], scale: float, *, steps: int, seed: int,
         progress: Progress) -> tuple[Images, Any]:  # fmt: skip
    """Pictures [N, H, W, 1] in [0, 1] of prompts with their classes, with a seed each, and the classes [N]."""
    count = len(prompts)
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
