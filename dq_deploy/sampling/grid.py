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
_INK, _PAPER = (32, 33, 36), (255, 255, 255)


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
    picture = Image.new("RGB", (_MARGIN + len(blocks) * (width + _MARGIN), _TITLE + height + _MARGIN), _PAPER)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=18)
    for index, (panel, block) in enumerate(zip(panels, blocks, strict=True)):
        left = _MARGIN + index * (width + _MARGIN)
        draw.text((left, _TITLE / 2), _fitting(panel.title, font, width), fill=_INK, font=font, anchor="lm")
        picture.paste(block, (left, _TITLE))
    return picture


def _block(images: Images, columns: int) -> Image.Image:
    count, height, width, _ = images.shape
    factor = max(1, round(_CELL / height))  # whole pixels: enlarging must not blur what is compared
    cell = (width * factor, height * factor)
    rows = math.ceil(count / columns)
    block = Image.new("RGB", (columns * (cell[0] + _GAP) - _GAP, rows * (cell[1] + _GAP) - _GAP), _PAPER)
    for index, image in enumerate(images):
        small = Image.fromarray(rgb(image)).resize(cell, Image.Resampling.NEAREST)
        block.paste(small, (index % columns * (cell[0] + _GAP), index // columns * (cell[1] + _GAP)))
    return block


def rgb(image: Images) -> NDArray[np.uint8]:
    """A picture [H, W, C] in [0, 1], C 1 or 3, as [H, W, 3] uint8."""
    codes = np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
    return np.broadcast_to(codes, (*codes.shape[:2], 3)).copy() if codes.shape[2] == 1 else codes


def _fitting(title: str, font: Any, width: int) -> str:
    """The title, shortened where its panel is narrow (a single small picture)."""
    while title and font.getlength(title) > width:
        title = title[:-2].rstrip(" ·…") + "…" if len(title) > 2 else ""
    return title
