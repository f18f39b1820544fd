"""Sizes that were asked of a pipeline, and what it draws; pipelines that need more than a prompt."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from diffusers import StableDiffusionImg2ImgPipeline

from dq_deploy.errors import UsageError
from dq_deploy.quantization.calibration.of_each_size import calibration_of
from dq_deploy.quantization.calibration.picture_size import check_size, own_size
from dq_deploy.quantization.calibration.pipeline_source import PipelineSource
from dq_deploy.quantization.calibration.sized_source import Size, SizedSource
from dq_deploy.quantization.calibration.source import CalibrationSource, Request, calibration_source
from dq_deploy.quantization.choices import Sampler
from dq_deploy.quantization.config import QuantizeConfig
from dq_deploy.sources import Pictures, load_source
from tests.text_encoder_pipelines import tiny_animate_diff
from tests.tiny_pipelines import (
    tiny_flux,
    tiny_kontext,
    tiny_picture,
    tiny_pixart,
    tiny_stable_diffusion,
    tiny_stable_diffusion_3,
    tiny_wan,
)


def prepared(pipeline: Any, component: str = "transformer", **size: int) -> PipelineSource:
    pipeline.set_progress_bar_config(disable=True)
    config = QuantizeConfig.build("w8a8", steps=2, sampler=Sampler.PIPELINE, calibration_samples=2, iterations=0)
    return PipelineSource.prepare(pipeline, component, ["a cat", "two dogs"], None, config, size)


@pytest.mark.parametrize(
    ("make", "size", "shape"),
    [
        (tiny_flux, {"height": 16, "width": 24}, (24, 16)),
        (tiny_flux, {"height": 17, "width": 25}, (24, 16)),  # it rounds
        (tiny_stable_diffusion_3, {"height": 16, "width": 24}, (4, 8, 12)),
        (tiny_pixart, {"height": 256, "width": 256}, (4, 32, 32)),
        (tiny_wan, {"height": 16, "width": 32, "num_frames": 5}, (4, 3, 8, 16)),
        (tiny_wan, {"height": 16, "width": 32, "num_frames": 6}, (4, 4, 8, 16)),
    ],
)
def test_a_size_that_a_pipeline_draws_at(make: Any, size: dict[str, int], shape: tuple[int, ...]) -> None:
    source = prepared(make(), **size)
    assert source.shape == shape
    assert {name: source.record()[name] for name in size} == size


def test_a_pixart_without_a_table_of_sizes_draws_at_its_own() -> None:
    """Its pipeline looks the size up unless it is told not to, and knows four."""
    source = prepared(tiny_pixart(sample_size=8))
    assert source.shape == (4, 8, 8)
    assert own_size(source.pipeline, "transformer") == {"use_resolution_binning": False}
    assert own_size(tiny_pixart(), "transformer") == own_size(tiny_flux(), "transformer") == {}


@pytest.mark.parametrize(
    ("make", "size", "message"),
    [
        (
            tiny_kontext,
            {"height": 16, "width": 16},
            (
                "the FluxKontextPipeline was asked for height 16, width 16, and calls its transformer with 65,536 tokens, where 16 are "
                "that size: it draws at sizes of its own\nleave --height and --width out"
            ),
        ),
        (
            tiny_pixart,
            {"height": 300, "width": 300},
            (
                r"asked for height 300, width 300, and calls its transformer with latents \[4, 32, 32\] for 256×256 pixels: it draws at "
                "sizes of its own\n--height 256 --width 256 is one of them; or leave --height and --width out"
            ),
        ),
        (
            tiny_stable_diffusion_3,
            {"height": 17, "width": 16},
            "refuses to sample 1 prompts in 2 steps: `height` and `width` have to be divisible by 4 .*\n--height and --width set the size",
        ),
        (tiny_wan, {"height": 17, "width": 16}, "`height` and `width` have to be divisible by 16 .*\n--height and --width .* --frames"),
        (tiny_flux, {"num_frames": 5}, "a FluxPipeline takes no num frames"),
    ],
)
def test_a_size_that_it_does_not_draw_at(make: Any, size: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        prepared(make(), **size)


def test_frames_that_a_pipeline_ignores() -> None:
    class Video:
        vae_scale_factor_spatial, vae_scale_factor_temporal = 8, 4

    check_size(Video(), "transformer", (16, 5, 8, 8), {"height": 64, "width": 64, "num_frames": 17})
    check_size(Video(), "transformer", (5, 16, 8, 8), {"num_frames": 20})
    with pytest.raises(UsageError, match=r"asked for 81 frames, .* with latents \[16, 5, 8, 8\], where 21 frames of latents are that many"):
        check_size(Video(), "transformer", (16, 5, 8, 8), {"num_frames": 81})


def test_text_for_every_frame_is_told_from_text_for_the_batch() -> None:
    source = prepared(tiny_animate_diff(), "unet", height=16, width=16, num_frames=3)
    assert source.shape == (4, 3, 8, 8)
    assert source.form is not None
    assert source.form.arguments == {"encoder_hidden_states": {"input": "encoder_hidden_states", "stacked": 3}}
    assert source.examples["encoder_hidden_states"].shape == (4, 3, 8, 16)
    assert source.halves == 2


def test_a_pipeline_that_needs_a_picture_names_the_option() -> None:
    parts = {name: part for name, part in tiny_stable_diffusion().components.items() if name != "image_encoder"}
    pipeline = StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
    with pytest.raises(UsageError, match=r"Img2ImgPipeline draws from a picture, and none is given\ngive --image FILE"):
        prepared(pipeline, "unet")


def of_sizes(make: Any, *sizes: tuple[int, int], **given: Any) -> CalibrationSource:
    config = QuantizeConfig.build(steps=2, sizes=sizes, calibration_samples=2 * len(sizes), iterations=0)
    return calibration_of(Request(prompts=["a cat"], **given), config, load_source(make()))


@pytest.mark.parametrize(
    ("make", "given", "drawn"),
    [(tiny_flux, {}, "20x18 pixels, and draws 20x16"), (tiny_stable_diffusion, {"image": tiny_picture()}, "21x18 pixels, and draws 20x18")],
)
def test_a_size_that_a_pipeline_rounds_is_not_among_several(make: Any, given: dict[str, Any], drawn: str) -> None:
    with pytest.raises(UsageError, match=f"is asked for {drawn}\ngive .* among --sizes"):
        of_sizes(make, (16, 16), (int(drawn[:2]), 18), **given)


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("KandinskyV22Pipeline", "draws from image_embeds and negative_image_embeds, which no option gives"),
        ("PaintByExamplePipeline", "draws from example_image, which no option gives"),
    ],
)
def test_a_pipeline_that_draws_from_what_no_option_gives(kind: str, told: str) -> None:
    source = replace(load_source("builtin:fashion-mnist-unet"), pipeline_class=kind)
    with pytest.raises(UsageError, match=f"a {kind} {told}\nquantize its unet as a module"):
        calibration_source(Request(image=[tiny_picture()]), QuantizeConfig(), source)


def test_the_tokens_of_a_picture_stand_behind_those_that_are_drawn() -> None:
    pipeline, pictures = tiny_kontext(6), Pictures.read(image=tiny_picture())
    config = QuantizeConfig.build("w8a8", steps=2, sampler=Sampler.PIPELINE, calibration_samples=2, iterations=0)
    for height, width, shape in ((1024, 1024, (512, 16)), (832, 1248, (494, 16))):
        size = {"height": height, "width": width}
        assert PipelineSource.prepare(pipeline, "transformer", ["a cat"], None, config, size, pictures).shape == shape
    with pytest.raises(UsageError, match="calls its transformer with 512 tokens, where 16 are that size: it draws at sizes of its own"):
        PipelineSource.prepare(pipeline, "transformer", ["a cat"], None, config, {"height": 256, "width": 256}, pictures)


def test_two_sizes_that_are_one_to_the_network() -> None:
    source = of_sizes(tiny_flux, (16, 24), (24, 16))  # of as many tokens, at other positions
    assert isinstance(source, SizedSource)
    with pytest.raises(UsageError, match="called with the same shapes for 16x24 and 20x24: to it they are one size\nleave one out"):
        replace(source, sources=(source.first,) * 2, sizes=(Size((16, 24)), Size((20, 24))))
