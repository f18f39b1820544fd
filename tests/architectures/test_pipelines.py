"""Text-to-image families as their users have them: a pipeline's folder, prompts, the command line, and the bundle in the pipeline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dq_deploy
from dq_deploy.artifacts import open_artifact
from dq_deploy.cli import run
from dq_deploy.decibels import psnr_db
from tests.nightly import mostly_nightly
from tests.tiny_pipelines import tiny_flux, tiny_pixart, tiny_stable_diffusion_3, tiny_wan

SIZE = {"height": 16, "width": 24}


@dataclass(frozen=True)
class Family:
    """A pipeline's maker, a folder with it and its bundles, and the size of its pictures where one is asked for."""

    make: Callable[[], Any]
    root: Path
    size: dict[str, int]


FAMILIES: dict[str, tuple[Callable[[], Any], dict[str, int]]] = {
    "stable-diffusion-3": (tiny_stable_diffusion_3, SIZE),
    "pixart": (tiny_pixart, {}),
    "flux": (tiny_flux, SIZE),
    "wan": (tiny_wan, {"height": 16, "width": 32, "num_frames": 3}),
}


@pytest.fixture(scope="module", params=mostly_nightly(FAMILIES, "stable-diffusion-3"))
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    """A pipeline, a folder with it and its bundles, and the size of its pictures where one is asked for."""
    make, size = FAMILIES[request.param]
    root = tmp_path_factory.mktemp(request.param)
    make().save_pretrained(root / "pipeline")
    (root / "prompts.txt").write_text("a cat\ntwo dogs\n")
    (root / "config.json").write_text('{"max_float_share": 0.9}')  # small models are mostly first and last layer
    asked = [f"--{name.removeprefix('num_')}={pixels}" for name, pixels in size.items()]
    flags = ["--prompts", str(root / "prompts.txt"), "--config", str(root / "config.json"), "--sampler", "pipeline", *asked]
    fast = ["--steps", "3", "--calibration-samples", "2", "--iterations", "0", "--dilation", "none"]
    assert run(["quantize", str(root / "pipeline"), "-o", str(root / "checkpoint"), "-q", *flags, *fast]) == 0
    for name, option in (("float", ["--float", "--target", "onnxruntime"]), ("int8", ["--target", "qdq", "--dtype", "fp32"])):
        assert run(["export", str(root / "checkpoint"), "-o", str(root / name), "-q", *option]) == 0
    return Family(make, root, size)


def pictures(family: Family, bundle: str | None) -> np.ndarray[Any, Any]:
    """What the pipeline draws, with a bundle in the place of its transformer."""
    pipe = family.make()
    pipe.set_progress_bar_config(disable=True)
    if bundle:
        pipe.transformer = dq_deploy.load(family.root / bundle, runtime="onnxruntime")
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    drawn = pipe(["a bird", "a fox"], generator=generators, num_inference_steps=3, output_type="np", **family.size)
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
    command = ["sample", str(root / "int8"), "-o", str(tmp_path / "grid.png"), "--prompts", str(root / "prompts.txt"), "-n", "2", "-q"]
    assert run(command) == 0
    assert (tmp_path / "grid.png").stat().st_size > 100
