"""Pictures that only the model's own pipeline can make: prompts, latents, a decoder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, DiTPipeline
from PIL import Image

from dq_deploy.artifacts import Artifact
from dq_deploy.errors import ArtifactError, UsageError
from dq_deploy.exporters import export
from dq_deploy.quantization import quantize
from dq_deploy.report.data import Pictures
from dq_deploy.report.make import Drawing, ReportRequest, write_report
from dq_deploy.sampling import draw, not_drawable
from dq_deploy.sampling.pipelines import wish
from dq_deploy.sampling.seeds import picture_seed
from tests.command_line import Cli, assert_refused
from tests.tiny_pipelines import tiny_dit, tiny_stable_diffusion, tiny_stable_diffusion_xl, tiny_vae

PROMPTS = ["a cat", "two dogs"]
QUICK: dict[str, Any] = {"steps": 3, "calibration_samples": 2, "iterations": 0, "dilation": "none", "max_float_share": 0.3}


def latent_dit() -> DiTPipeline:
    """A thousand classes, as its pipeline takes for granted."""
    transformer = tiny_dit(in_channels=4, out_channels=8, num_embeds_ada_norm=1000)
    return DiTPipeline(transformer, tiny_vae(), DDIMScheduler())


@pytest.fixture(scope="module")
def bundle_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Artifact]:
    """Saves a pipeline in a folder, quantizes it there and exports it; each once."""
    made: dict[str, Artifact] = {}

    def make(pipeline: Callable[[], DiffusionPipeline], **options: Any) -> Artifact:
        name = pipeline.__name__
        if name not in made:
            root = tmp_path_factory.mktemp(name)
            pipeline().save_pretrained(root / "pipeline")
            checkpoint = quantize(root / "pipeline", root / "checkpoint", **QUICK, **options)
            made[name] = export(checkpoint, root / "bundle", target="onnxruntime")
        return made[name]

    return make


@pytest.fixture
def text(bundle_of: Callable[..., Artifact]) -> Artifact:
    return bundle_of(tiny_stable_diffusion, prompts=PROMPTS, guidance_scale=3.0)


def test_prompts_are_drawn_in_turn_as_the_pipeline_draws_them(text: Artifact) -> None:
    drawn = draw(text, Drawing(n=3, seed=7, prompts=PROMPTS))
    assert (drawn.prompts, drawn.labels, drawn.guidance_scale) == (["a cat", "two dogs", "a cat"], None, 3.0)
    assert (drawn.timesteps, drawn.furthest) == ([667.0, 334.0, 1.0], 0.0)
    assert drawn.expected is not None
    assert drawn.psnr_db is not None
    assert min(drawn.psnr_db) > 30
    # The same by hand: the user's pipeline with DDIM, which it was calibrated with.
    pipeline = tiny_stable_diffusion()
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    generator = torch.Generator().manual_seed(picture_seed(7, 1))
    second = pipeline("two dogs", generator=generator, num_inference_steps=3, guidance_scale=3.0, output_type="np").images[0]
    np.testing.assert_allclose(drawn.expected[1], second, atol=2e-3)
    assert not np.allclose(drawn.expected[0], drawn.expected[2], atol=0.01)  # one prompt, two seeds


def test_guidance_and_the_negative_prompt_reach_the_pipeline(text: Artifact) -> None:
    options: dict[str, Any] = {"n": 1, "prompts": PROMPTS, "compare_float": False}
    plain = draw(text, Drawing(**options))
    assert plain.expected is None
    assert not np.allclose(plain.quantized, draw(text, Drawing(**options, negative_prompt="blurred")).quantized, atol=1e-3)
    unguided = draw(text, Drawing(**options, guidance_scale=1.0))
    assert unguided.guidance_scale == 1.0
    assert not np.allclose(plain.quantized, unguided.quantized, atol=1e-3)


@pytest.mark.nightly
def test_sizes_that_stable_diffusion_xl_asks_its_unet_for(bundle_of: Callable[..., Artifact]) -> None:
    drawn = draw(bundle_of(tiny_stable_diffusion_xl, prompts=PROMPTS), Drawing(n=1, prompts=PROMPTS))
    assert drawn.psnr_db is not None
    assert drawn.psnr_db[0] > 20


def test_classes_of_a_model_of_latents(bundle_of: Callable[..., Artifact]) -> None:
    drawn = draw(bundle_of(latent_dit, classes="0-3", guidance_scale=2.0), Drawing(n=3, classes=[2, 5]))
    assert (drawn.labels, drawn.prompts, drawn.guidance_scale) == ([2, 5, 2], None, 2.0)
    assert drawn.quantized.shape == (3, 16, 16, 3)
    assert drawn.psnr_db is not None
    assert min(drawn.psnr_db) > 25
    with pytest.raises(UsageError, match="a prompt is given, and the model takes none"):
        draw(bundle_of(latent_dit), Drawing(prompts=["a"]))


def test_a_size_that_a_pipeline_of_latents_does_not_take(bundle_of: Callable[..., Artifact]) -> None:
    bundle = bundle_of(latent_dit)
    with pytest.raises(UsageError, match="a DiTPipeline takes no height"):
        draw(bundle, Drawing(n=1, height=32))
    unconditional = {**bundle.manifest.details, "inputs": bundle.manifest.details["inputs"][:2]}
    asked = wish(Artifact(bundle.path, bundle.manifest.model_copy(update={"details": unconditional})), Drawing(width=32))
    assert asked.of(0) == {"width": 32}  # which the pipeline takes or refuses


def test_what_a_text_pipeline_cannot_draw(text: Artifact, tmp_path: Path) -> None:
    assert "draws what a prompt says, and none was given" in (not_drawable(text) or "")
    assert not_drawable(text, Drawing(prompts=PROMPTS)) is None
    with pytest.raises(UsageError, match="draws what a prompt says, and none was given\n--prompts FILE"):
        draw(text, Drawing())
    with pytest.raises(UsageError, match="classes are given, and the model takes none"):
        draw(text, Drawing(prompts=PROMPTS, classes="1"))
    with pytest.raises(UsageError, match="no prompts given"):
        draw(text, Drawing(prompts=[]))
    with pytest.raises(UsageError, match="refuses to draw in 2000 steps"):
        draw(text, Drawing(prompts=PROMPTS, n=1, steps=2000))
    with pytest.raises(UsageError, match="the guidance scale is -1"):
        draw(text, Drawing(prompts=PROMPTS, guidance_scale=-1))
    other = text.manifest.model_copy(
        update={"details": {**text.manifest.details, "source": {"reference": "builtin:fashion-mnist-unet", "sha256": "0"}}}
    )
    with pytest.raises(ArtifactError, match="has other weights now"):
        draw(Artifact(text.path, other), Drawing(prompts=PROMPTS))


def test_from_the_command_line(text: Artifact, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    assert_refused(cli("sample", text.path, "-o", tmp_path / "grid.png"), 2, "none was given", "--prompts FILE")
    done = cli("sample", text.path, "-o", tmp_path / "grid.png", "-n", 2, "--prompts", tmp_path / "prompts.txt", "--format", "json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["prompts"] == PROMPTS
    assert Image.open(tmp_path / "grid.png").size[0] > 64


def test_a_report_has_the_prompts_under_the_pictures(text: Artifact, tmp_path: Path) -> None:
    paths, notes = [text.path.parent / "checkpoint", text.path], []
    wanted = ReportRequest(drawing=Drawing(n=2, prompts=PROMPTS), layer_error=False, check=False)
    data = write_report(paths, tmp_path / "with.html", wanted=wanted)
    assert isinstance(data.pictures, Pictures)
    assert data.pictures.prompts == PROMPTS
    assert data.pictures.expected is not None
    assert data.commands[-1].endswith(" -n 2 --prompts prompts.txt --no-layer-error --no-check")
    without = ReportRequest(drawing=Drawing(), layer_error=False, check=False)
    assert write_report(paths, tmp_path / "without.html", wanted=without, note=notes.append).pictures is None
    first, *others = notes
    assert first == f"No pictures: {text.path} draws what a prompt says, and none was given."
    assert all(note.startswith("Held-out samples part") for note in others)  # of two calibration samples they may
