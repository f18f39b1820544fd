"""Trajectories of pipelines that begin with pictures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoPipelineForImage2Image, DDIMScheduler, DiffusionPipeline, StableDiffusionImg2ImgPipeline
from PIL import Image

from dq_deploy.errors import EnvironmentProblem, UsageError
from dq_deploy.progress import silent
from dq_deploy.quantization.calibration.pipeline_source import PipelineSource
from dq_deploy.quantization.calibration.trajectories import Trajectories
from dq_deploy.quantization.config import QuantizeConfig
from dq_deploy.sources import Pictures
from tests.tiny_pipelines import (
    tiny_conditioned_unet,
    tiny_inpainting,
    tiny_mask,
    tiny_picture,
    tiny_pix2pix,
    tiny_refiner,
    tiny_stable_diffusion,
)

PROMPTS = ["a cat", "dog"]


def prepare(pipeline: Any, size: dict[str, int] | None = None, steps: int = 4, **pictures: Any) -> PipelineSource:
    config = QuantizeConfig.build(steps=steps, batch_size=8)
    return PipelineSource.prepare(pipeline, "unet", PROMPTS, None, config, size, Pictures.read(**pictures))


def collect(source: PipelineSource, count: int = 2) -> Trajectories:
    return source.collect(lambda *_, **__: torch.zeros(()), range(count), silent)


def seen_by_hand(pipeline: Any, prompt: str, picture: Image.Image, seed: int, strength: float) -> dict[float, torch.Tensor]:
    """The denoiser's inputs by timestep, in a pipeline that the user runs."""
    pipeline = AutoPipelineForImage2Image.from_pipe(pipeline)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    pipeline.set_progress_bar_config(disable=True)
    found: dict[float, torch.Tensor] = {}
    handle = pipeline.unet.register_forward_pre_hook(lambda _, args: found.update({float(args[1]): args[0]}))
    generator = torch.Generator().manual_seed(seed)
    pipeline(prompt, picture, strength=strength, num_inference_steps=4, generator=generator, output_type="latent")
    handle.remove()
    return found


def test_steps_that_a_strength_skips_have_rows_from_strength_1() -> None:
    pipeline, pictures = tiny_stable_diffusion(), [tiny_picture(0), tiny_picture(1)]
    source = prepare(pipeline, image=pictures, strength=0.5)
    assert isinstance(source.pipeline, StableDiffusionImg2ImgPipeline)
    data = collect(source)
    assert data.timesteps.tolist() == [1, 251, 501, 751]
    for number in range(2):  # the second seed has the second prompt and the second picture
        half, whole = (seen_by_hand(pipeline, PROMPTS[number], pictures[number], number, strength) for strength in (0.5, 1.0))
        assert sorted(half) == [1, 251]
        for row, timestep in enumerate(data.timesteps.tolist()):
            expected = (half if timestep in half else whole)[timestep]
            torch.testing.assert_close(data.samples[row, 2 * number : 2 * number + 2], expected, rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        for row, timestep in enumerate(data.timesteps):
            expected = pipeline.unet(data.samples[row], timestep, **data.conditions).sample
            torch.testing.assert_close(data.outputs[row], expected, rtol=1e-4, atol=1e-4)


def test_a_pipelines_own_strength_skips_steps_too() -> None:
    source = prepare(tiny_refiner(), image=[tiny_picture()], steps=5)
    assert source.record()["pictures"]["strength"] == 0.3
    assert len(collect(source, 1).timesteps) == 5


def test_what_the_manifest_says() -> None:
    source = prepare(tiny_stable_diffusion(), image=[tiny_picture()], strength=0.5)
    assert source.details == {"picture_size": {"height": 16, "width": 16}, "pictures": {"image": 1, "strength": 0.5}}
    record, other = source.record(), prepare(tiny_stable_diffusion(), image=[tiny_picture(1)], strength=0.5).record()
    assert record["pipeline"] == "StableDiffusionImg2ImgPipeline"
    assert record["pictures"]["sha256"] != other["pictures"]["sha256"]  # another run, which --resume must not continue


def test_a_mask_and_a_picture_among_the_channels() -> None:
    data = collect(prepare(tiny_inpainting(), image=[tiny_picture(0), tiny_picture(1)], mask=[tiny_mask()]))
    assert data.samples.shape == (4, 4, 9, 8, 8)
    assert data.outputs.shape == (4, 4, 4, 8, 8)
    mask = data.samples[:, :, 4]
    assert bool((mask[..., :4] == 1).all() and (mask[..., 4:] == 0).all())
    assert not torch.equal(data.samples[0, 0, 5:], data.samples[0, 2, 5:])  # two pictures


def test_guidance_of_three_parts() -> None:
    source = prepare(tiny_pix2pix(), image=[tiny_picture()])
    assert (source.halves, source.shape, source.one_by_one) == (3, (8, 8, 8), False)
    data = collect(source)
    assert data.samples.shape == (4, 6, 8, 8, 8)
    assert data.per_seed == 3
    assert bool((data.samples[0, 2, 4:] == 0).all())  # the part without prompt and picture


def test_pictures_are_resized_to_the_size_asked_for() -> None:
    pictures = [tiny_picture(0), tiny_picture(1, (24, 16))]
    source = prepare(tiny_stable_diffusion(), {"height": 24, "width": 32}, image=pictures)
    assert source.shape == (4, 12, 16)
    assert "height" not in source.options  # the pipeline's call takes none
    assert source.picture_size == {"height": 24, "width": 32}
    painted = prepare(tiny_inpainting(), {"height": 24, "width": 32}, image=pictures[:1], mask=[tiny_mask()])
    assert painted.shape == (9, 12, 16)
    assert painted.options["height"] == 24
    assert set(painted.pictures.mask[0].getdata()) == {0, 255}  # a mask is not blurred


class OneByOne(DiffusionPipeline):
    """Takes one picture and no list, as pipelines of videos do; its denoiser sees the picture as channels."""

    model_cpu_offload_seq = "unet"

    def __init__(self, unet: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(self, image: Any, prompt: list[str], num_inference_steps: int, generator: Any, output_type: str) -> torch.Tensor:
        assert output_type == "latent"
        if not isinstance(image, Image.Image):
            raise ValueError(f"image is a {type(image).__name__}")
        brightness = torch.tensor(float(image.getpixel((0, 0))[0])) / 255
        x = torch.stack([torch.randn(4, 8, 8, generator=g) for g in generator])
        texts = torch.stack([torch.full((8, 16), float(len(p))) for p in prompt])
        self.scheduler.set_timesteps(num_inference_steps)
        for t in self.scheduler.timesteps:
            x = self.scheduler.step(self.unet(x + brightness, t, texts).sample, t, x).prev_sample
        return x


def test_a_pipeline_of_one_picture_at_a_time() -> None:
    source = prepare(OneByOne(tiny_conditioned_unet(), DDIMScheduler()), image=[tiny_picture(0), tiny_picture(1)])
    assert source.one_by_one
    data = collect(source, 3)
    assert data.samples.shape[1] == 3
    with pytest.raises(UsageError, match="a OneByOne draws one picture at a time"):
        source.final_samples(lambda samples, *_: samples, range(2), slice(0, 1), 2, None)  # type: ignore[arg-type]


def test_a_package_that_a_pipeline_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    def call(*_: Any, **__: Any) -> Any:
        raise NameError("name 'ftfy' is not defined", name="ftfy")

    pipeline = tiny_stable_diffusion()
    monkeypatch.setattr(StableDiffusionImg2ImgPipeline, "encode_prompt", call)
    with pytest.raises(EnvironmentProblem, match="the StableDiffusionImg2ImgPipeline needs ftfy\npip install ftfy"):
        prepare(pipeline, image=[tiny_picture()])


class TextOnly(DiffusionPipeline):
    """A pipeline that diffusers does not know."""

    def __init__(self, unet: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    def __call__(self, prompt: list[str], num_inference_steps: int, generator: Any, output_type: str) -> None:
        raise AssertionError(f"it is not run: {prompt} {num_inference_steps} {generator} {output_type}")


@pytest.mark.parametrize(
    ("pipeline", "pictures", "told"),
    [
        (tiny_inpainting, {}, "a StableDiffusionInpaintPipeline draws from a picture and a mask, and none is given\ngive --image FILE and"),
        (tiny_inpainting, {"image": [tiny_picture()]}, "StableDiffusionInpaintPipeline draws from a mask too, .*\ngive --mask FILE"),
        (tiny_pix2pix, {}, "a StableDiffusionInstructPix2PixPipeline draws from a picture, and none is given\ngive --image FILE"),
        (tiny_refiner, {}, "a StableDiffusionXLImg2ImgPipeline draws from a picture, and none is given"),
        (tiny_pix2pix, {"image": [tiny_picture()], "strength": 0.5}, "a StableDiffusionInstructPix2PixPipeline takes no strength"),
        (
            lambda: TextOnly(tiny_conditioned_unet(), DDIMScheduler()),
            {"image": [tiny_picture()]},
            "a picture given, and a TextOnly takes none, and no other class .* found .*\nquantize its unet as a module: dq_deploy.quantize",
        ),
    ],
    ids=["inpaint", "mask", "pix2pix", "refiner", "strength", "unknown"],
)
def test_what_a_pipeline_lacks(pipeline: Any, pictures: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        prepare(pipeline(), **pictures)
