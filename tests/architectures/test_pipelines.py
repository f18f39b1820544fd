"""Text-to-image families as their users have them: a pipeline's folder, prompts, the command line, and the bundle in the pipeline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import dq_deploy
from dq_deploy.artifacts import open_artifact
from dq_deploy.cli import run
from dq_deploy.decibels import psnr_db
from tests.nightly import mostly_nightly
from tests.text_encoder_pipelines import tiny_animate_diff, tiny_cogvideox, tiny_flux_2, tiny_qwen_image, tiny_sana, tiny_z_image_pipeline
from tests.tiny_pipelines import tiny_flux, tiny_pixart, tiny_stable_diffusion_3, tiny_wan

SIZE = {"height": 16, "width": 24}
PROMPTS, OTHERS = ("a cat", "a dog"), ("a cow", "a fox")  # of one length: Qwen-Image and Z-Image do not pad
UNGUIDED = {"guidance_scale": 0}  # as Z-Image Turbo draws; with guidance its texts would have two lengths


@dataclass(frozen=True)
class Family:
    """A pipeline's maker, a folder with it and its bundles, the size of its pictures where one is asked for, and arguments of its call."""

    make: Callable[[], Any]
    root: Path
    size: dict[str, int]
    options: dict[str, Any]


FAMILIES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "stable-diffusion-3": (tiny_stable_diffusion_3, SIZE),
    "pixart": (tiny_pixart, {}),
    "flux": (tiny_flux, SIZE),
    "flux-2": (tiny_flux_2, SIZE),
    "qwen-image": (tiny_qwen_image, SIZE),
    "z-image": (tiny_z_image_pipeline, SIZE | UNGUIDED),
    "sana": (tiny_sana, {}),
    "wan": (tiny_wan, {"height": 16, "width": 32, "num_frames": 3}),
    "animate-diff": (tiny_animate_diff, {"height": 16, "width": 16, "num_frames": 3}),
    "cogvideox": (tiny_cogvideox, {"height": 16, "width": 32, "num_frames": 9}),
}


@pytest.fixture(scope="module", params=mostly_nightly(FAMILIES, "stable-diffusion-3"))
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    """A pipeline, a folder with it and its bundles, and the size of its pictures where one is asked for."""
    make, options = FAMILIES[request.param]
    root = tmp_path_factory.mktemp(request.param)
    make().save_pretrained(root / "pipeline")
    (root / "prompts.txt").write_text("\n".join(PROMPTS))
    (root / "config.json").write_text('{"max_float_share": 0.9}')  # small models are mostly first and last layer
    asked = [f"--{name.removeprefix('num_').replace('_', '-')}={value}" for name, value in options.items()]
    flags = ["--prompts", str(root / "prompts.txt"), "--config", str(root / "config.json"), "--sampler", "pipeline", *asked]
    fast = ["--steps", "3", "--calibration-samples", "2", "--iterations", "0", "--dilation", "none"]
    assert run(["quantize", str(root / "pipeline"), "-o", str(root / "checkpoint"), "-q", *flags, *fast]) == 0
    for name, option in (("float", ["--float", "--target", "onnxruntime"]), ("int8", ["--target", "qdq", "--dtype", "fp32"])):
        assert run(["export", str(root / "checkpoint"), "-o", str(root / name), "-q", *option]) == 0
    return Family(make, root, {name: value for name, value in options.items() if name not in UNGUIDED}, options)


def pictures(family: Family, bundle: str | None) -> np.ndarray[Any, Any]:
    """What the pipeline draws, with a bundle in the place of its transformer."""
    pipe = family.make()
    pipe.set_progress_bar_config(disable=True)
    if bundle:
        component = "transformer" if "transformer" in pipe.components else "unet"
        setattr(pipe, component, dq_deploy.load(family.root / bundle, runtime="onnxruntime"))
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    drawn = pipe(prompt=list(OTHERS), generator=generators, num_inference_steps=3, output_type="np", **family.options)
    return drawn.images if "images" in drawn else np.concatenate(list(drawn.frames.transpose(1, 0, 2, 3, 4)), axis=1)


def test_the_float_bundle_draws_the_pipelines_own_pictures(family: Family) -> None:
    expected = pictures(family, None)
    assert expected.std() > 0.02
    np.testing.assert_allclose(pictures(family, "float"), expected, atol=2e-3)


def test_the_quantized_bundle_draws_nearly_these(family: Family) -> None:
    expected, drawn = pictures(family, None), pictures(family, "int8")
    assert expected.shape == drawn.shape
    assert min(psnr_db(expected, drawn)) > 20
    assert not np.array_equal(expected, drawn)


def test_sample_draws_at_the_size_that_was_calibrated(family: Family, tmp_path: Path) -> None:
    root, size = family.root, family.size
    assert open_artifact(root / "int8", "bundle").manifest.details.get("picture_size", {}) == size
    picture = tmp_path / ("videos.gif" if "num_frames" in size else "grid.png")
    assert run(["sample", str(root / "int8"), "-o", str(picture), "--prompts", str(root / "prompts.txt"), "-n", "2", "-q"]) == 0
    assert getattr(Image.open(picture), "n_frames", 1) == size.get("num_frames", 1)
