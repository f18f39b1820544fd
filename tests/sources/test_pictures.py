"""Pictures as files have them: 16 bits a value, and turned as a camera was held."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from dq_deploy.sources import Pictures


def test_sixteen_bits_keep_their_values(tmp_path: Path) -> None:
    depth = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(depth).save(tmp_path / "depth.png")
    (read,) = Pictures.read(control_image=tmp_path / "depth.png").control_image
    np.testing.assert_allclose(np.asarray(read)[..., 0], np.linspace(0, 255, 256).reshape(16, 16), atol=1)


def test_which_pictures_lose_their_proportions() -> None:
    wide, square = Image.new("RGB", (48, 16)), Image.new("RGB", (16, 16))
    pictures = Pictures(image=(wide, square), control_image=(wide,))
    assert pictures.stretched([(16, 16), (16, 48), (512, 520)]) == "16×16 to 48×16, 48×16 to 16×16, 48×16 to 520×512"
    assert Pictures(image=(square,)).stretched([(512, 520), (64, 64)]) == ""


def test_a_camera_that_was_turned(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: to be turned by 90 degrees
    Image.new("RGB", (8, 4)).save(tmp_path / "turned.jpg", exif=exif)
    assert Pictures.read(image=tmp_path / "turned.jpg").size == (8, 4)
