"""The scripts in examples/, run as a reader would, with small settings."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from diffusers import DDPMScheduler, DiTPipeline
from PIL import Image

from tests.docs.documented import ROOT
from tests.tiny_pipelines import tiny_dit

SCRIPTS = sorted(path.name for path in (ROOT / "examples").glob("*.py") if "click.command" in path.read_text())


Example = Callable[..., str]


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Example:
    """Runs a script with options, in this process; gives what it said."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))

    def call(name: str, *options: object) -> str:
        main = runpy.run_path(str(ROOT / "examples" / name))["main"]
        main.main([str(option) for option in options], standalone_mode=False)
        return capsys.readouterr().out

    return call


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"), dtype=np.float32)


@pytest.fixture(scope="module")
def dit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dit") / "pipeline"
    DiTPipeline(transformer=tiny_dit(), vae=None, scheduler=DDPMScheduler()).save_pretrained(path)
    return path


def test_unconditional_unet(example: Example, tmp_path: Path, flow_pipeline: Path) -> None:
    picture = tmp_path / "unet.png"
    said = example("unconditional_unet.py", "-o", picture, "--source", flow_pipeline, "--steps", 4, "--max-float-share", 0.5)
    assert "computes what the checkpoint does" in said
    assert pixels(picture).shape == (4 * 96, 4 * 96, 3)
    assert pixels(picture).std() > 0


@pytest.mark.nightly
def test_text_to_image(example: Example, tmp_path: Path) -> None:
    picture = tmp_path / "text.png"
    assert str(picture) in example("text_to_image.py", "-o", picture, "--steps", 4, "--samples", 4)
    expected, got = np.split(pixels(picture), 2)
    # The integers draw what the float model draws, and each prompt something of its own.
    assert 0 < np.abs(got - expected).mean() < 0.1 * np.abs(expected - expected.mean()).mean()
    first, second, *_ = np.split(expected, 4, axis=1)
    assert np.abs(first - second).mean() > 1


@pytest.mark.nightly
def test_class_conditional_dit(example: Example, tmp_path: Path, dit_folder: Path) -> None:
    picture = tmp_path / "dit.png"
    options = ["--source", dit_folder, "--classes", "0-4", "--steps", 4, "--samples", 5, "-n", 5, "--max-float-share", 0.5]
    assert "PSNR" in example("class_conditional_dit.py", "-o", picture, *options)
    assert pixels(picture).std() > 0


def test_every_script_is_run_and_short() -> None:
    tested = Path(__file__).read_text()
    assert SCRIPTS == ["class_conditional_dit.py", "text_to_image.py", "unconditional_unet.py"]
    for name in SCRIPTS:
        assert f'example("{name}"' in tested
        assert len((ROOT / "examples" / name).read_text().splitlines()) <= 60, name
