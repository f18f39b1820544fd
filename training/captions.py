"""Captions of Fashion-MNIST's pictures, made from their labels and from what can be measured of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from training.data import CLASSES

# By label: words for the thing, all used as often.
NOUNS: tuple[tuple[str, ...], ...] = (
    ("t-shirt", "top"),
    ("pair of trousers", "pair of pants"),
    ("pullover", "sweater"),
    ("dress",),
    ("coat", "jacket"),
    ("sandal",),
    ("shirt",),
    ("sneaker", "trainer"),
    ("bag", "handbag"),
    ("ankle boot", "boot"),
)
SHOES = tuple(CLASSES.index(name) for name in ("Sandal", "Sneaker", "Ankle boot"))
# Least third, middle, most.
SHADES = ("dark", "grey", "light")
TEXTURES = ("plain", "", "patterned")
WIDTHS = ("narrow", "", "wide")
DIRECTIONS = ("left", "right")
PREFIXES = ("", "a picture of", "a photo of")
# How often a caption says what it could say: short prompts are what people type first.
_SAID = 0.6
_FOREGROUND = 20
_AT_ONCE = 4096


@dataclass(frozen=True)
class Thirds:
    """Where the thirds of each label's pictures end, by brightness, texture and width: ``edges`` are float32 [10, 3, 2].

    A dark coat is dark for a coat.
    """

    edges: torch.Tensor

    @classmethod
    def of(cls, images: torch.Tensor, labels: torch.Tensor) -> Thirds:
        """The thirds of a set: uint8 [N, 1, S, S] and int64 [N]. A label without pictures has everything in its middle."""
        measured = measure(images)
        edges = torch.tensor([-torch.inf, torch.inf]).repeat(len(CLASSES), measured.shape[1], 1)
        for label in labels.unique().tolist():
            edges[label] = torch.quantile(measured[labels == label], torch.tensor([1 / 3, 2 / 3]), dim=0).T
        return cls(edges)

    def place(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Third of its label that each picture is in, 0 to 2, by brightness, texture and width: int64 [N, 3]."""
        return (measure(images)[..., None] > self.edges[labels]).sum(-1)


def measure(images: torch.Tensor) -> torch.Tensor:
    """Brightness, texture and width of uint8 [N, 1, S, S], as float32 [N, 3]; zeros for an empty picture.

    Brightness is the mean of what is not background, texture the mean step between neighbours in it as a share of the brightness,
    width the mean number of pixels in a row.
    """
    return torch.cat([_measured(part[:, 0]) for part in images.split(_AT_ONCE)])


def _measured(images: torch.Tensor) -> torch.Tensor:
    pixels, seen = images.float(), images > _FOREGROUND
    brightness = (pixels * seen).sum((1, 2)) / seen.sum((1, 2)).clamp(min=1)
    beside, below = seen[:, :, 1:] & seen[:, :, :-1], seen[:, 1:] & seen[:, :-1]
    steps = (pixels.diff(dim=2).abs() * beside).sum((1, 2)) + (pixels.diff(dim=1).abs() * below).sum((1, 2))
    texture = steps / (beside.sum((1, 2)) + below.sum((1, 2))).clamp(min=1) / brightness.clamp(min=1)
    width = seen.sum((1, 2)) / seen.any(2).sum(1).clamp(min=1)
    return torch.stack([brightness, texture, width], dim=1)


def caption(label: int, thirds: Sequence[int], mirrored: bool, generator: torch.Generator) -> str:
    """A caption of a picture: its noun, and with luck its brightness, texture and width, or for a shoe the way it points.

    Shoes in the data point left, unless they are ``mirrored``.
    """

    def one_of(choices: Sequence[str]) -> str:
        return choices[int(torch.randint(len(choices), (), generator=generator))]

    def said(text: str) -> str:
        return text if torch.rand((), generator=generator) < _SAID else ""

    shade, texture, width = thirds
    words = [said(SHADES[shade]), said(TEXTURES[texture])]
    end = ""
    if label in SHOES:
        end = said(f", pointing {DIRECTIONS[mirrored]}")
    else:
        words.append(said(WIDTHS[width]))
    return phrase([word for word in words if word], one_of(NOUNS[label]), one_of(PREFIXES), end)


def phrase(adjectives: Sequence[str], noun: str, prefix: str = "", end: str = "") -> str:
    """The words as a caption: a pair's adjectives stand before what it is a pair of."""
    pair, of, thing = noun.rpartition(" of ")
    words = " ".join([pair, "of", *adjectives, thing] if of else [*adjectives, thing])
    article = "an" if words[0] in "aeiou" else "a"
    return " ".join(part for part in (prefix, article, words) if part) + end


def vocabulary() -> list[str]:
    """Every word of every caption, sorted, with the comma as a word of its own."""
    words = {"a", "an", ",", "pointing", *SHADES, *TEXTURES, *WIDTHS, *DIRECTIONS}
    for text in (*PREFIXES, *(noun for nouns in NOUNS for noun in nouns)):
        words.update(text.split())
    return sorted(words - {""})
