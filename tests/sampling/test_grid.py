"""Picture grids: pixels kept as they are."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from dq_deploy.sampling.grid import Panel, _font, _lines, grid_png


def pixels(panels: list[Panel]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(grid_png(panels))))


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_enlarged_not_blurred(channels: int) -> None:
    images = np.random.default_rng(0).uniform(-0.1, 1.1, size=(5, 32, 32, channels))
    picture = pixels([Panel("a", images), Panel("b", images[::-1])])
    cell, pitch, margin, title = 96, 102, 24, 40
    assert picture.shape == (title + 2 * pitch - 6 + margin, margin + 2 * (3 * pitch - 6 + margin), 3)
    expected = np.round(np.clip(images, 0, 1) * 255).astype(np.uint8)
    for number in range(5):
        top, left = title + number // 3 * pitch, margin + number % 3 * pitch
        np.testing.assert_array_equal(picture[top : top + cell : 3, left : left + cell : 3], np.broadcast_to(expected[number], (32, 32, 3)))
        left += 3 * pitch - 6 + margin
        np.testing.assert_array_equal(
            picture[top : top + cell : 3, left : left + cell : 3], np.broadcast_to(expected[4 - number], (32, 32, 3))
        )


def test_large_pictures_keep_their_size_and_long_titles_fit() -> None:
    picture = pixels([Panel("a title that is far too long for one small picture " * 3, np.zeros((1, 256, 200, 3)))])
    assert picture.shape == (40 + 256 + 24, 24 + 200 + 24, 3)
    assert (picture[:40, 24 + 200 :] == 255).all()


@pytest.mark.parametrize(("count", "edge", "width", "lines"), [(1, 32, 96, 3), (4, 32, 198, 3), (1, 300, 300, 2), (1, 512, 512, 1)])
def test_the_title_of_a_narrow_panel_is_whole_in_several_lines(count: int, edge: int, width: int, lines: int) -> None:
    title = "quantized · PSNR 45.1 dB · onnxruntime"
    broken = _lines(title, _font([title], width), width)
    assert (len(broken), " · ".join(broken)) == (lines, title)
    picture = pixels([Panel(title, np.zeros((count, edge, edge, 3)))])
    top = 40 + 22 * (lines - 1)
    assert picture.shape == (top + width + 24, 24 + width + 24, 3)
    assert (picture[:top, 24 + width :] == 255).all()
    assert (picture[top - 22 : top - 10, 24 : 24 + width] < 128).any()  # the last line is there
