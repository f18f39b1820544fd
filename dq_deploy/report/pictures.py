"""Drawn pictures as they lie in the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..artifacts import Artifact
from ..artifacts.layer_bits import bits_in_words
from ..decibels import psnr_db
from ..sampling.grid import Images, rgb
from ..sampling.videos import consistency_db, film_strips, is_video
from .data import DrawnRow, Pictures

if TYPE_CHECKING:
    from ..sampling import DrawnPictures

_DECIMALS = 2  # of a PSNR in dB


def page_pictures(drawn: DrawnPictures, artifact: Artifact, seed: int, others: Sequence[DrawnRow] = ()) -> Pictures:
    """Every picture as a PNG of its own size, a video's frames side by side: the page enlarges them."""
    return Pictures(
        **_row(drawn, artifact).model_dump(),
        seed=seed,
        steps=len(drawn.timesteps),
        expected=None if drawn.expected is None else _embedded(drawn.expected),
        labels=drawn.labels,
        prompts=drawn.prompts,
        others=list(others),
    )


def other_row(drawn: DrawnPictures, artifact: Artifact, expected: Images | None) -> DrawnRow:
    """A further artefact's pictures [N, C, H, W], compared with the float model's that are there already."""
    if expected is None:
        return _row(drawn, artifact)
    between = consistency_db(expected, drawn.quantized) if is_video(expected) else None
    return _row(replace(drawn, psnr_db=psnr_db(expected, drawn.quantized).tolist(), consistency_db=between), artifact)


def _row(drawn: DrawnPictures, artifact: Artifact) -> DrawnRow:
    return DrawnRow(
        artefact=artifact.path.resolve().name,
        bits=bits_in_words(artifact) or "",
        engine=drawn.engine,
        quantized=_embedded(drawn.quantized),
        psnr_db=_rounded(drawn.psnr_db),
        consistency_db=_rounded(drawn.consistency_db),
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
