"""Videos [n, F, H, W, C] in [0, 1] beside others: frame by frame, and what lies between the frames."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
from PIL import Image

from ..decibels import psnr_db
from ..errors import EnvironmentProblem
from .grid import PAPER, Images, Panel, grid_picture

FRAMES_A_SECOND = 8.0
MOST_IN_GIF, MOST_IN_MP4 = 50.0, 120.0  # a GIF counts hundredths of a second, and viewers take one for none
_QUALITY = {"crf": "14"}  # of H.264: below what eyes see, so that what is seen was drawn


def is_video(images: Images) -> bool:
    """Whether these are videos, and not pictures [n, H, W, C]."""
    return images.ndim == 5


def film_strips(images: Images) -> Images:
    """Videos as pictures [n, H, F·W, C], the frames side by side; pictures as they are."""
    if not is_video(images):
        return images
    n, count, height, width, channels = images.shape
    return images.transpose(0, 2, 1, 3, 4).reshape(n, height, count * width, channels)


def frame_psnr_db(expected: Images, got: Images) -> list[list[float]]:
    """PSNR of each frame [n, F] against ``expected``."""
    frames = (images.reshape(-1, *images.shape[2:]) for images in (expected, got))
    found: list[list[float]] = psnr_db(*frames).reshape(expected.shape[:2]).tolist()
    return found


def consistency_db(expected: Images, got: Images) -> list[float] | None:
    """PSNR [n] of the differences between frames that follow each other: what flickers lowers it, what every frame has alike does not.

    None for videos of one frame.
    """
    if expected.shape[1] < 2:
        return None
    found: list[float] = psnr_db(*(np.diff(images.astype(np.float64), axis=1) for images in (expected, got))).tolist()
    return found


def strips(panels: Sequence[Panel]) -> list[Panel]:
    """The panels with ``film_strips`` of what they have."""
    return [replace(panel, images=film_strips(panel.images)) for panel in panels]


def grid_gif(panels: Sequence[Panel], frames_a_second: float) -> bytes:
    """The panels' videos in one row as a GIF that repeats; of pictures, one that stands still. Panels have as many videos and frames."""
    frames = _frames(panels)
    stream = io.BytesIO()
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:], duration=round(1000 / frames_a_second), loop=0)
    return stream.getvalue()


def grid_mp4(panels: Sequence[Panel], frames_a_second: float) -> bytes:
    """The same as an MP4 (H.264), a pixel wider or higher where an edge is odd. Raises EnvironmentProblem without PyAV."""
    av = mp4_library()
    frames, stream = _frames(panels), io.BytesIO()
    with av.open(stream, "w", format="mp4") as container:
        track = container.add_stream("libx264", rate=Fraction(frames_a_second).limit_denominator(1000), options=_QUALITY)
        track.width, track.height = (edge + edge % 2 for edge in frames[0].size)  # halves of them hold the colours
        track.pix_fmt = "yuv420p"  # what every player takes
        for frame in frames:
            container.mux(track.encode(av.VideoFrame.from_image(_padded(frame, track.width, track.height))))
        container.mux(track.encode())
    return stream.getvalue()


def mp4_library() -> Any:
    """PyAV. Raises EnvironmentProblem without it."""
    try:
        import av
    except ImportError as error:
        raise EnvironmentProblem(f"writing an MP4 needs PyAV: {error}", "pip install av; or write a .gif") from None
    return av


def _padded(frame: Image.Image, width: int, height: int) -> Image.Image:
    wide = Image.new("RGB", (width, height), PAPER)
    wide.paste(frame, (0, 0))
    return wide


def _frames(panels: Sequence[Panel]) -> list[Image.Image]:
    """Each frame of the videos, all panels in one row; of pictures the only one."""
    videos = [panel.images if is_video(panel.images) else panel.images[:, None] for panel in panels]
    shown = ([replace(panel, images=video[:, i]) for panel, video in zip(panels, videos, strict=True)] for i in range(videos[0].shape[1]))
    return [grid_picture(frame) for frame in shown]
