"""Videos: strips, GIFs and MP4s of them, and what is said of their frames."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageSequence

from dq_deploy.artifacts.output_file import check_output_file
from dq_deploy.console import Output
from dq_deploy.errors import EnvironmentProblem, UsageError
from dq_deploy.sampling.grid import Panel
from dq_deploy.sampling.picture_file import SUFFIXES, SampleResult, sample
from dq_deploy.sampling.videos import consistency_db, film_strips, frame_psnr_db, grid_gif, grid_mp4, strips

SHAPE = (2, 4, 8, 6, 3)


def videos(seed: int = 0) -> np.ndarray[Any, Any]:
    """Two videos of four frames."""
    return np.random.default_rng(seed).uniform(0.2, 0.8, SHAPE).astype(np.float32)


def test_the_frames_of_a_video_stand_side_by_side() -> None:
    frames = videos()
    strip = film_strips(frames)
    assert strip.shape == (2, 8, 24, 3)
    np.testing.assert_array_equal(strip[1, :, 6:12], frames[1, 1])
    np.testing.assert_array_equal(film_strips(frames[:, 0]), frames[:, 0])
    assert strips([Panel("a", frames)])[0].images.shape == strip.shape


def test_each_frame_is_compared_with_its_own() -> None:
    expected = videos()
    got = expected.copy()
    got[1, 2] += 0.1
    found = np.array(frame_psnr_db(expected, got))
    assert found.shape == (2, 4)
    assert found[1, 2] == pytest.approx(20, abs=1e-3)
    assert (np.delete(found.reshape(-1), 6) == 100).all()


def test_what_flickers_is_told_from_what_every_frame_has() -> None:
    expected = videos()
    shifted, flickering = expected.copy(), expected.copy()
    shifted += 0.1
    flickering[:, ::2] += 0.1
    alike, between = consistency_db(expected, shifted), consistency_db(expected, flickering)
    assert alike is not None
    assert between is not None
    assert min(alike) > 90
    assert between == pytest.approx([20, 20], abs=1e-3)
    assert consistency_db(expected[:, :1], shifted[:, :1]) is None


def test_a_gif_shows_every_frame_of_every_panel() -> None:
    still = np.zeros((1, 3, 96, 96, 3))
    moving = still.copy()
    for frame in range(3):
        moving[:, frame, 32 * frame : 32 * frame + 32] = 1
    gif = Image.open(io.BytesIO(grid_gif([Panel("float", still), Panel("quantized", moving)], 4.0)))
    frames = [np.asarray(frame.convert("L")) for frame in ImageSequence.Iterator(gif)]
    assert (gif.info["duration"], gif.info["loop"], len(frames)) == (250, 0, 3)
    _, width = frames[0].shape
    for number, frame in enumerate(frames):
        lit = (frame[40:136, -72] > 128).reshape(3, 32).mean(axis=1) > 0.5
        assert lit.tolist() == [index == number for index in range(3)]
        assert not (frame[40:136, width // 4] > 128).any()
    assert Image.open(io.BytesIO(grid_gif([Panel("pictures", moving[:, 0])], 4.0))).n_frames == 1


def test_an_mp4_shows_every_frame(tmp_path: Path) -> None:
    av = pytest.importorskip("av", reason="PyAV, of the extra video")
    moving = np.zeros((1, 3, 97, 95, 3))
    for frame in range(3):
        moving[:, frame, 32 * frame : 32 * frame + 32] = 1
    (tmp_path / "made.mp4").write_bytes(grid_mp4([Panel("float", moving)], 12.5))
    with av.open(tmp_path / "made.mp4") as container:
        track = container.streams.video[0]
        frames = [frame.to_ndarray(format="gray") for frame in container.decode(track)]
    assert (track.codec_context.name, float(track.average_rate), len(frames)) == ("h264", 12.5, 3)
    height, width = frames[0].shape
    assert (height % 2, width % 2) == (0, 0)
    for number, frame in enumerate(frames):
        lit = (frame[40:136, 72] > 128).reshape(3, 32).mean(axis=1) > 0.5
        assert lit.tolist() == [index == number for index in range(3)]


def test_without_pyav_nothing_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(EnvironmentProblem, match=r"writing an MP4 needs PyAV: .*\npip install av; or write a .gif"):
        sample(tmp_path / "nothing", tmp_path / "out.mp4")


def test_what_is_no_file_for_pictures(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"out.avi does not end in .png or .gif or .mp4"):
        check_output_file(tmp_path / "out.avi", SUFFIXES)


def test_frames_a_second_that_an_mp4_cannot_have(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="121 frames a second: an MP4 has more than 0 and at most 120"):
        sample(tmp_path, tmp_path / "out.mp4", frames_a_second=121)


@pytest.mark.parametrize("frames", [0.0, -1.0, 51.0, float("nan")])
def test_frames_a_second_that_a_gif_cannot_have(frames: float, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="frames a second: a GIF has more than 0 and at most 50"):
        sample(tmp_path, tmp_path / "out.gif", frames_a_second=frames)


def test_the_command_says_which_frame_is_worst(capsys: pytest.CaptureFixture[str]) -> None:
    from dq_deploy.commands.sample import show_sample

    result = SampleResult(
        output="out.gif", engine="onnxruntime", n=2, seed=0, timesteps=[1.0], furthest=0.0, psnr_db=[30.0, 31.0], psnr_mean_db=30.5,
        psnr_min_db=30.0, frame_psnr_db=[[33.0, 29.25, 31.0], [32.0, 31.0, 30.0]], consistency_db=[28.0, 30.0],
    )  # fmt: skip
    show_sample(result, Path("out.gif"), Output())
    shown = capsys.readouterr()
    text = " ".join((shown.out + shown.err).split())
    assert "29.2 dB, frame 2 of 3" in text
    assert "mean 29.0 dB, worst 28.0 dB" in text
