"""Drawn pictures as they lie in the page."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..sampling.grid import Images, rgb
from ..sampling.videos import film_strips
from .data import Pictures

if TYPE_CHECKING:
    from ..sampling import DrawnPictures

_DECIMALS = 2  # of a PSNR in dB


def page_pictures(drawn: DrawnPictures, artefact: str, seed: int) -> Pictures:
    """Every picture as a PNG of its own size, a video's frames side by side: the page enlarges them."""
    return Pictures(
        engine=drawn.engine,
        artefact=artefact,
        seed=seed,
        steps=len(drawn.timesteps),
        quantized=_embedded(drawn.quantized),
        expected=None if drawn.expected is None else _embedded(drawn.expected),
        psnr_db=_rounded(drawn.psnr_db),
        consistency_db=_rounded(drawn.consistency_db),
        labels=drawn.labels,
        prompts=drawn.prompts,
    )


def _rounded(figures: list[float] | None) -> list[float] | None:
    return None if figures is None else [round(float(value), _DECIMALS) for value in figures]


def _embedded(images: Images) -> list[str]:
    return ["data:image/png;base64," + base64.b64encode(_png(image)).decode() for image in film_strips(images)]


def _png(image: Images) -> bytes:
    """[H, W, C] in [0, 1] → PNG; grey ones stay grey."""
    codes = rgb(image)
    grey = np.array_equal(codes[..., 0], codes[..., 1]) and np.array_equal(codes[..., 0], codes[..., 2])
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(codes[..., 0]) if grey else codes).save(stream, "PNG", optimize=True)
    return stream.getvalue()
