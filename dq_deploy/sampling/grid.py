"""Sampled pictures side by side: panels of equal grids, each under its title."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Images = NDArray[np.floating[Any]]

_CELL = 96  # pixels a small picture is enlarged to, about
_GAP = 6
_MARGIN = 24
_TITLE = 40
_LINE = 22  # what each further line of a title adds
_SIZES = (18, 16, 14, 12)  # of a title's letters: the largest with which its parts fit
_BETWEEN = " · "
_INK, PAPER = (32, 33, 36), (255, 255, 255)


@dataclass(frozen=True)
class Panel:
    """``images``: [n, H, W, C] in [0, 1], C 1 or 3."""

    title: str
    images: Images


def grid_png(panels: Sequence[Panel]) -> bytes:
    """The panels in one row as a PNG. Every panel has the same number of pictures, in the same places."""
    stream = io.BytesIO()
    grid_picture(panels).save(stream, "PNG", optimize=True)
    return stream.getvalue()


def grid_picture(panels: Sequence[Panel]) -> Image.Image:
    """The panels in one row."""
    count = len(panels[0].images)
    columns = math.ceil(math.sqrt(count))
    blocks = [_block(panel.images, columns) for panel in panels]
    width, height = blocks[0].size
    font = _font([panel.title for panel in panels], width)
    titles = [_lines(panel.title, font, width) for panel in panels]
    top = _TITLE + _LINE * (max(map(len, titles)) - 1)
    picture = Image.new("RGB", (_MARGIN + len(blocks) * (width + _MARGIN), top + height + _MARGIN), PAPER)
    draw = ImageDraw.Draw(picture)
    for index, (lines, block) in enumerate(zip(titles, blocks, strict=True)):
        left = _MARGIN + index * (width + _MARGIN)
        for number, line in enumerate(lines):
            draw.text((left, _TITLE / 2 + _LINE * number), line, fill=_INK, font=font, anchor="lm")
        picture.paste(block, (left, top))
    return picture


def _block(images: Images, columns: int) -> Image.Image:
    count, height, width, _ = images.shape
    factor = max(1, round(_CELL / height))  # whole pixels: enlarging must not blur what is compared
    cell = (width * factor, height * factor)
    rows = math.ceil(count / columns)
    block = Image.new("RGB", (columns * (cell[0] + _GAP) - _GAP, rows * (cell[1] + _GAP) - _GAP), PAPER)
    for index, image in enumerate(images):
        small = Image.fromarray(rgb(image)).resize(cell, Image.Resampling.NEAREST)
        block.paste(small, (index % columns * (cell[0] + _GAP), index // columns * (cell[1] + _GAP)))
    return block


def rgb(image: Images) -> NDArray[np.uint8]:
    """A picture [H, W, C] in [0, 1], C 1 or 3, as [H, W, 3] uint8."""
    codes = np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
    return np.broadcast_to(codes, (*codes.shape[:2], 3)).copy() if codes.shape[2] == 1 else codes


def _font(titles: Sequence[str], width: int) -> Any:
    """The largest letters with which every part of every title fits, or the smallest."""
    parts = [part for title in titles for part in title.split(_BETWEEN)]
    fonts = [ImageFont.load_default(size=size) for size in _SIZES]
    return next((font for font in fonts if all(font.getlength(part) <= width for part in parts)), fonts[-1])


def _lines(title: str, font: Any, width: int) -> list[str]:
    """The title in as many lines as a narrow panel (a single small picture) needs, broken between its parts; a part too long is cut."""
    lines: list[str] = []
    for part in title.split(_BETWEEN):
        joined = f"{lines[-1]}{_BETWEEN}{part}" if lines else part
        if lines and font.getlength(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(_fitting(part, font, width))
    return lines


def _fitting(part: str, font: Any, width: int) -> str:
    while part and font.getlength(part) > width:
        part = part[:-2].rstrip(" …") + "…" if len(part) > 2 else ""
    return part
