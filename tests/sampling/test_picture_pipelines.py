"""Pipelines that begin with a picture: from their own calibration to a picture through the drop-in, and what is refused."""

from __future__ import annotations

import copy
import json
import pickle
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoPipelineForImage2Image, ControlNetModel, DDIMScheduler, DiffusionPipeline
from PIL import Image
from safetensors.torch import save_file

import dq_deploy
from dq_deploy.artifacts import Artifact, open_artifact
from dq_deploy.decibels import psnr_db, snr_db
from dq_deploy.errors import UsageError
from dq_deploy.exporters import export
from dq_deploy.quantization import quantize
from dq_deploy.report.recipe import commands
from dq_deploy.sampling import Drawing, draw, not_drawable
from dq_deploy.sampling.seeds import picture_seed
from tests.command_line import Cli, assert_refused
from tests.nightly import mostly_nightly
from tests.picture_pipelines import (
    tiny_chroma,
    tiny_chrono_edit,
    tiny_flux_control,
    tiny_flux_controlnet,
    tiny_lcm,
    tiny_sana_sprint,
    tiny_sd3_controlnet,
    tiny_sdxl_pix2pix,
    tiny_skyreels_from_image,
    tiny_steered_sdxl,
    tiny_t2i_adapter,
    tiny_upscaler,
)
from tests.text_encoder_pipelines import tiny_flux_2, tiny_qwen_image, tiny_z_image_pipeline
from tests.tiny_pipelines import (
    tiny_cogvideox_from_image,
    tiny_conditioned_unet,
    tiny_controlnet,
    tiny_fill,
    tiny_flux,
    tiny_inpainting,
    tiny_ip_adapter,
    tiny_kontext,
    tiny_mask,
    tiny_picture,
    tiny_pix2pix,
    tiny_refiner,
    tiny_stable_diffusion,
    tiny_stable_diffusion_3,
    tiny_stable_diffusion_xl,
    tiny_video_diffusion,
    tiny_wan_from_image,
)

PROMPTS = ["a cat", "two dogs"]
QUICK: dict[str, Any] = {
    "steps": 4, "calibration_samples": 2, "iterations": 0, "dilation": "none", "max_float_share": 0.6, "final_samples": 0,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A pipeline with what it is given, the class that draws, and the steps at which its denoiser is called.

    ``steered`` is "by" a ControlNet, "itself": the ControlNet is what is quantized, or "alone": by a picture without one. ``adapted``: an
    IP-Adapter reads a picture too. ``prompted``: it takes prompts. ``options`` are further ones of ``quantize``, and ``at_least`` the PSNR
    in dB of its pictures: networks with random weights differ in what rounding does to them. A name has the README's row before its colon.
    """

    pipeline: Callable[[], Any]
    draws: str
    given: dict[str, Any] = field(default_factory=dict)
    visited: tuple[float, ...] | None = (751, 501, 251, 1)
    steered: str = ""
    adapted: bool = False
    prompted: bool = True
    size: dict[str, int] = field(default_factory=dict)
    drawn: tuple[int, ...] = (16, 16, 3)
    options: dict[str, Any] = field(default_factory=dict)
    at_least: float = 25
    control: Callable[[Any], Any] = lambda pipeline: tiny_controlnet(pipeline.unet)

    @property
    def pictures(self) -> dict[str, Any]:
        """Two of each kind that is given none of its own."""
        return {**{kind: [tiny_picture(0), tiny_picture(1)] for kind in [self.kind] if kind}, **self.given}

    @property
    def kind(self) -> str:
        """The kind of picture that makes this pipeline what it is."""
        if self.adapted:
            return "ip_adapter_image"
        return "control_image" if self.steered else "image"

    @property
    def prompts(self) -> dict[str, Any]:
        """What it is to draw, where it is told."""
        return {"prompts": PROMPTS} if self.prompted else {}

    @property
    def beside(self) -> tuple[str, ...]:
        """Options that name what lies beside the pipeline's folder."""
        steered = {"by": ("controlnet",), "itself": ("pipeline",), "": (), "alone": ()}[self.steered]
        return (*steered, *(("ip_adapter", "ip_adapter_scale") if self.adapted else ()))


def steered_pipeline() -> Any:
    """Stable Diffusion whose UNet a ControlNet can steer."""
    return tiny_stable_diffusion(mid_block_type="UNetMidBlock2DCrossAttn")


PACKED = {"height": 16, "width": 16}
HALF: dict[str, Any] = {"strength": 0.5}
MASKED: dict[str, Any] = {"mask": [tiny_mask()], "strength": 0.5}
CASES = {
    "Image-to-image": Case(tiny_stable_diffusion, "StableDiffusionImg2ImgPipeline", {"strength": 0.5}, (251, 1)),
    "Image-to-image: LCM": Case(tiny_lcm, "LatentConsistencyModelImg2ImgPipeline", HALF, (499, 379, 259, 139)),
    "Image-to-image: Stable Diffusion 3": Case(tiny_stable_diffusion_3, "StableDiffusion3Img2ImgPipeline", HALF, None),
    "Image-to-image: FLUX.1": Case(tiny_flux, "FluxImg2ImgPipeline", HALF, None, size=PACKED, at_least=20),
    "Image-to-image: Chroma": Case(tiny_chroma, "ChromaImg2ImgPipeline", HALF, None, size=PACKED, at_least=12),
    "Image-to-image: Qwen-Image": Case(tiny_qwen_image, "QwenImageImg2ImgPipeline", HALF, None, size=PACKED),
    "Image-to-image: Z-Image": Case(
        tiny_z_image_pipeline, "ZImageImg2ImgPipeline", HALF, (0.5, 0.75), size=PACKED, options={"guidance_scale": 0},
    ),
    "Image-to-image: Sana-Sprint": Case(
        tiny_sana_sprint, "SanaSprintImg2ImgPipeline",
        {"image": [tiny_picture(0, (1024, 1024)), tiny_picture(1, (1024, 1024))], "strength": 0.5}, None, options={"steps": 2},
        drawn=(1024, 1024, 3),
    ),
    "Inpainting": Case(tiny_inpainting, "StableDiffusionInpaintPipeline", {"mask": [tiny_mask()]}),
    "Inpainting: SDXL": Case(tiny_stable_diffusion_xl, "StableDiffusionXLInpaintPipeline", MASKED, None),
    "Inpainting: FLUX.1": Case(tiny_flux, "FluxInpaintPipeline", MASKED, None, size=PACKED, at_least=20),
    "Inpainting: Qwen-Image": Case(tiny_qwen_image, "QwenImageInpaintPipeline", MASKED, None, size=PACKED),
    "Inpainting: Z-Image": Case(
        tiny_z_image_pipeline, "ZImageInpaintPipeline", MASKED, (0.5, 0.75), size=PACKED, options={"guidance_scale": 0},
    ),
    "Inpainting: FLUX.1 Kontext": Case(
        lambda: tiny_kontext(6), "FluxKontextInpaintPipeline",
        {"image": [tiny_picture(0, (64, 64)), tiny_picture(1, (64, 64))], "mask": [tiny_mask((64, 64))], "strength": 0.5}, None,
        drawn=(1024, 1024, 3),
    ),
    "InstructPix2Pix": Case(tiny_pix2pix, "StableDiffusionInstructPix2PixPipeline"),
    "InstructPix2Pix: SDXL": Case(tiny_sdxl_pix2pix, "StableDiffusionXLInstructPix2PixPipeline", visited=None),
    "Upscaling": Case(tiny_upscaler, "StableDiffusionUpscalePipeline", visited=None, drawn=(32, 32, 3)),
    "FLUX.1 Control": Case(
        tiny_flux_control, "FluxControlPipeline", {"control_image": [tiny_picture(0), tiny_picture(1)]}, None, steered="alone", size=PACKED,
    ),
    "SDXL's refiner": Case(tiny_refiner, "StableDiffusionXLImg2ImgPipeline", {"strength": 0.5}, (333, 0)),
    "FLUX.1 Fill": Case(tiny_fill, "FluxFillPipeline", {"mask": [tiny_mask()]}, None, size={"height": 16, "width": 16}),
    "Wan, image to video": Case(
        tiny_wan_from_image, "WanImageToVideoPipeline", visited=None, size={"height": 16, "width": 16, "frames": 5}, drawn=(5, 16, 16, 3)
    ),
    "CogVideoX, image to video": Case(
        tiny_cogvideox_from_image, "CogVideoXImageToVideoPipeline", visited=None, size={"height": 16, "width": 16, "frames": 5},
        drawn=(4, 16, 16, 3),
    ),
    "FLUX.1 Kontext": Case(
        lambda: tiny_kontext(6), "FluxKontextPipeline", {"image": [tiny_picture(0, (64, 64)), tiny_picture(1, (64, 64))]}, visited=None,
        drawn=(1024, 1024, 3),
    ),
    "FLUX.2, editing": Case(
        tiny_flux_2, "Flux2KleinPipeline", {"image": [tiny_picture(0, (64, 64)), tiny_picture(1, (64, 64))]}, None,
        size={"height": 64, "width": 64}, drawn=(64, 64, 3),
    ),
    "Wan, image to video: SkyReels V2": Case(
        tiny_skyreels_from_image, "SkyReelsV2ImageToVideoPipeline", visited=None, size={"height": 16, "width": 16, "frames": 5},
        drawn=(5, 16, 16, 3),
    ),
    "Wan, image to video: ChronoEdit": Case(
        tiny_chrono_edit, "ChronoEditPipeline", visited=None, size={"height": 16, "width": 16, "frames": 5}, drawn=(5, 16, 16, 3),
    ),
    "Stable Video Diffusion": Case(
        tiny_video_diffusion, "StableVideoDiffusionPipeline", visited=None, size={"height": 16, "width": 16, "frames": 2},
        drawn=(2, 16, 16, 3), prompted=False,
    ),
    "A pipeline steered by a ControlNet": Case(steered_pipeline, "StableDiffusionControlNetPipeline", steered="by"),
    "A pipeline steered by a ControlNet: SDXL": Case(
        tiny_steered_sdxl, "StableDiffusionXLControlNetPipeline", visited=None, steered="by",
    ),
    "A pipeline steered by a ControlNet: Stable Diffusion 3": Case(
        tiny_stable_diffusion_3, "StableDiffusion3ControlNetPipeline", visited=None, steered="by", at_least=20,
        control=tiny_sd3_controlnet,
    ),
    "A pipeline steered by a ControlNet: FLUX.1": Case(
        tiny_flux, "FluxControlNetPipeline", visited=None, steered="by", size=PACKED, at_least=20, control=tiny_flux_controlnet,
    ),
    "A T2I-Adapter": Case(tiny_t2i_adapter, "StableDiffusionAdapterPipeline", steered="alone"),
    "Steered by a ControlNet, image-to-image": Case(
        steered_pipeline, "StableDiffusionControlNetImg2ImgPipeline",
        {"image": [tiny_picture(2)], "control_image": [tiny_picture(0), tiny_picture(1)], "strength": 0.5}, (251, 1), steered="by",
    ),
    "A ControlNet itself": Case(steered_pipeline, "StableDiffusionControlNetPipeline", steered="itself"),
    "With an IP-Adapter": Case(steered_pipeline, "StableDiffusionPipeline", adapted=True),
    "SDXL with an IP-Adapter": Case(tiny_stable_diffusion_xl, "StableDiffusionXLPipeline", visited=None, adapted=True),
    "With an IP-Adapter, image-to-image": Case(
        tiny_stable_diffusion, "StableDiffusionImg2ImgPipeline", {"image": [tiny_picture(2)], "strength": 0.5}, (251, 1), adapted=True
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def bundle_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Artifact]:
    """Each pipeline saved in a folder, quantized there and exported, once."""
    made: dict[str, Artifact] = {}

    def make(name: str) -> Artifact:
        if name not in made:
            case, root = CASES[name], tmp_path_factory.mktemp(name)
            pipeline, source = case.pipeline(), root / "pipeline"
            beside: dict[str, Any] = {}
            pipeline.save_pretrained(source)
            if case.steered in ("by", "itself"):
                case.control(pipeline).save_pretrained(root / "controlnet")
                beside = {"controlnet": root / "controlnet"}
            if case.adapted:
                beside |= {"ip_adapter": tiny_ip_adapter(root / "adapter", pipeline.unet).parent, "ip_adapter_scale": 0.6}
            if case.steered == "itself":
                source, beside = root / "controlnet", {"pipeline": source}
            given = {**case.prompts, **beside, **case.pictures, **case.size, **QUICK, **case.options}
            checkpoint = quantize(source, root / "checkpoint", **given)
            assert checkpoint.manifest.details["calibration"]["pipeline"] == case.draws
            made[name] = export(checkpoint, root / "bundle", target="onnxruntime")
        return made[name]

    return make


_ALWAYS = (
    "Image-to-image",
    "Inpainting",
    "A pipeline steered by a ControlNet",
    "A ControlNet itself",
    "With an IP-Adapter",
)


@pytest.mark.parametrize("name", mostly_nightly(CASES, *_ALWAYS))
def test_from_its_own_calibration_to_a_picture(name: str, bundle_of: Callable[[str], Artifact]) -> None:
    bundle, case = bundle_of(name), CASES[name]
    # Those that a strength skips too; LCM takes others at another strength.
    assert len(bundle.manifest.timesteps) >= case.options.get("steps", QUICK["steps"])
    drawn = draw(bundle, Drawing(n=2, **case.prompts, **case.pictures))
    every = tuple(reversed(bundle.manifest.timesteps))
    assert tuple(drawn.timesteps) == (case.visited or every[-int(len(every) * case.given.get("strength", 1)) :])
    assert drawn.quantized.shape == (2, *case.drawn)
    assert drawn.psnr_db is not None
    assert min(drawn.psnr_db) > case.at_least
    # The pictures are dealt in turn: another one for the first image is another image.
    other = draw(bundle, Drawing(n=1, **case.prompts, compare_float=False, **{**case.pictures, case.kind: case.pictures[case.kind][1:]}))
    assert not np.allclose(other.quantized[0], drawn.quantized[0], atol=1e-3)


def test_the_readme_has_what_is_tested() -> None:
    """Its table has a row for each case, with the options that the case is given."""
    text = Path(__file__).parents[2].joinpath("README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+) \| `([^|]*)` \|", text.partition("## What pipelines work")[2].partition("\n## ")[0], re.MULTILINE)
    of_rows = {name.partition(":")[0] for name in CASES}
    found = {name: set(re.findall(r"--[a-z-]+", command)) for name, command in rows if name in of_rows}
    assert found.keys() == of_rows
    for name, case in CASES.items():
        row, variant, _ = name.partition(":")
        frames = ["frames"] if "frames" in case.size else []
        given = {f"--{option.replace('_', '-')}" for option in (*case.prompts, *case.pictures, *case.beside, *frames)}
        assert found[row] ^ given <= ({"--strength"} if variant else set()), name


def test_the_documentation_has_what_is_tested() -> None:
    """Each class that draws stands in its table, and no other does."""
    text = Path(__file__).parents[2].joinpath("docs/calibration.md").read_text(encoding="utf-8")
    table = text.partition("## Which pipelines")[2].partition("\n## ")[0]
    assert set(re.findall(r"`(\w+Pipeline)`", table)) == {case.draws for case in CASES.values()} - {
        "StableDiffusionPipeline",
        "StableDiffusionXLPipeline",
    }


def test_the_drop_in_draws_in_the_users_own_pipeline(bundle_of: Callable[[str], Artifact]) -> None:
    bundle = bundle_of("Image-to-image")
    pipeline = AutoPipelineForImage2Image.from_pipe(tiny_stable_diffusion())
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    pipeline.unet = dq_deploy.load(bundle)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(picture_seed(0, 0))
    by_hand = pipeline("a cat", tiny_picture(0), strength=0.5, num_inference_steps=4, generator=generator, output_type="np").images[0]
    drawn = draw(bundle, Drawing(n=1, prompts=PROMPTS, compare_float=False, image=[tiny_picture(0)]))  # at the calibration's strength
    assert psnr_db(by_hand[None], drawn.quantized)[0] > 40  # a float's last bit moves a code here and there
    stronger = draw(bundle, Drawing(n=1, prompts=PROMPTS, compare_float=False, image=[tiny_picture(0)], strength=1.0))
    assert stronger.timesteps == [751, 501, 251, 1]
    assert stronger.furthest == 0


def test_what_cannot_be_drawn(bundle_of: Callable[[str], Artifact]) -> None:
    bundle = bundle_of("Inpainting")
    assert "draws from a picture and a mask, and none is given" in (not_drawable(bundle, Drawing(prompts=PROMPTS)) or "")
    with pytest.raises(UsageError, match="draws from a picture and a mask, and none is given\ngive --image FILE and --mask FILE"):
        draw(bundle, Drawing(prompts=PROMPTS))
    with pytest.raises(UsageError, match="draws from a mask, and none is given\ngive --mask FILE"):
        draw(bundle, Drawing(prompts=PROMPTS, image=[tiny_picture()]))
    with pytest.raises(UsageError, match="a mask given, and .* was calibrated without"):
        draw(bundle_of("Image-to-image"), Drawing(prompts=PROMPTS, image=[tiny_picture()], mask=[tiny_mask()]))


@pytest.mark.nightly
def test_a_pipeline_without_prompts(bundle_of: Callable[[str], Artifact], tmp_path: Path, cli: Cli) -> None:
    """Its picture is all that it is told, by the command line too, and its video moves in a GIF."""
    bundle, picture = bundle_of("Stable Video Diffusion"), tmp_path / "a.png"
    tiny_picture().save(picture)
    assert not_drawable(bundle, Drawing(image=[picture])) is None
    ended = cli("sample", bundle.path, "-o", tmp_path / "made.gif", "-n", "1", "--image", picture)
    assert ended.code == 0, ended.err
    with Image.open(tmp_path / "made.gif") as made:
        assert made.n_frames == 2
    for flags, code, *told in (
        (["--image", picture, "--prompts", picture], 2, "a prompt is given, and the model takes none"),
        (["--image", picture, "--classes", "1"], 2, "classes are given, and the model takes none"),
        (["--image", picture, "--guidance-scale", "2"], 2, "a StableVideoDiffusionPipeline takes no guidance scale"),
        ([], 2, "draws from a picture, and none is given", "give --image FILE"),
    ):
        assert_refused(cli("sample", bundle.path, "-o", tmp_path / "none.gif", *flags), code, *told)
    quantize = ("quantize", bundle.path.parent / "pipeline", "-o", tmp_path / "out", "--steps", "2")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\n", encoding="utf-8")
    for flags, code, *told in (
        ([], 2, "a StableVideoDiffusionPipeline draws from a picture, and none is given", "give --image FILE"),
        (["--image", picture, "--prompts", prompts], 2, "prompts are given, and a StableVideoDiffusionPipeline takes none"),
        (["--image", picture, "--strength", "0.5"], 2, "a StableVideoDiffusionPipeline takes no strength"),
        (["--image", picture, "--mask", picture], 2, "given, and a StableVideoDiffusionPipeline takes none"),
    ):
        assert_refused(cli(*quantize, *flags), code, *told)


def test_a_strength_that_leaves_no_step_is_refused_before_anything_is_loaded(bundle_of: Callable[[str], Artifact]) -> None:
    bundle = bundle_of("Image-to-image")
    nowhere = bundle.manifest.model_copy(update={"details": {**bundle.manifest.details, "source": None}})
    with pytest.raises(UsageError, match=r"a strength of 0.1 runs 0.4 of 4 steps, which is none\ngive a strength of 0.25 or more"):
        draw(Artifact(bundle.path, nowhere), Drawing(prompts=PROMPTS, image=[tiny_picture()], strength=0.1))


def test_a_drop_in_for_a_controlnet(bundle_of: Callable[[str], Artifact]) -> None:
    """Pipelines ask by ``isinstance`` whether they have one ControlNet or several."""
    bundle = bundle_of("A ControlNet itself")
    drop_in = dq_deploy.load(bundle)
    assert isinstance(drop_in, ControlNetModel)
    assert isinstance(copy.deepcopy(drop_in), ControlNetModel)
    assert isinstance(pickle.loads(pickle.dumps(drop_in)), ControlNetModel)
    with pytest.raises(UsageError, match="a drop-in has no attribute 'set_attn_processor'"):
        drop_in.set_attn_processor(None)
    sample, text, picture = torch.randn(2, 4, 8, 8), torch.randn(2, 8, 16), torch.rand(2, 3, 16, 16)
    down, middle = drop_in(sample, 251, text, controlnet_cond=picture, return_dict=False)
    assert [tuple(value.shape) for value in (*down, middle)] == [(2, 8, 8, 8)] * 3
    with pytest.raises(UsageError, match="conditioning_scale is 0.5, and the graph was made with 1.0"):
        drop_in(sample, 251, text, controlnet_cond=picture, conditioning_scale=0.5)
    steered = bundle_of("A pipeline steered by a ControlNet").details
    assert steered.input_names[-3:] == [
        "down_block_additional_residuals_0", "down_block_additional_residuals_1", "mid_block_additional_residual",
    ]  # fmt: skip


def test_a_drop_in_with_an_ip_adapter(bundle_of: Callable[[str], Artifact], tmp_path: Path) -> None:
    """In the user's own pipeline, which encodes the picture, and asks for the adapter's projection and scales."""
    bundle = bundle_of("With an IP-Adapter")
    assert bundle.details.input_names == ["sample", "timestep", "encoder_hidden_states", "image_embeds_0"]
    (made,) = commands(open_artifact(bundle.path.parent / "checkpoint", "checkpoint"))[-1:]
    assert "--ip-adapter-image IP_ADAPTER_IMAGE --ip-adapter IP_ADAPTER --ip-adapter-scale 0.6" in made
    pipeline = steered_pipeline()  # it has a middle, for which diffusers looks where scales go by block
    pipeline.scheduler = DDIMScheduler(steps_offset=1, clip_sample=False)
    file = tiny_ip_adapter(tmp_path, pipeline.unet)
    pipeline.load_ip_adapter(str(tmp_path), subfolder="", weight_name=file.name, local_files_only=True, low_cpu_mem_usage=False)
    pipeline.set_ip_adapter_scale(0.6)

    def drawn() -> np.ndarray[Any, Any]:
        generator = torch.Generator().manual_seed(picture_seed(0, 0))
        picture = tiny_picture(1, (24, 18))
        found: np.ndarray[Any, Any] = pipeline(
            "a cat", ip_adapter_image=picture, num_inference_steps=4, generator=generator, output_type="np"
        ).images
        return found

    expected, pipeline.unet = drawn(), dq_deploy.load(bundle)
    assert psnr_db(expected, drawn())[0] > 25
    pipeline.set_ip_adapter_scale(0.6)
    pipeline.set_ip_adapter_scale({"down": {"block_0": [0.6]}, "mid": 0.6})
    for asked, number in ((0.8, "0.8"), ([0.3], "0.3"), (0, "0"), ({"down": 0.3, "mid": 0.6}, "0.3"), ({"down": 0.6}, "0.0")):
        told = f"the IP-Adapter's scale is 0.6 in this graph, and {number} is asked for\nmake one with that: dq-deploy refit"
        with pytest.raises(UsageError, match=told):
            pipeline.set_ip_adapter_scale(asked)
    with pytest.raises(UsageError, match="image_embeds"):
        pipeline("a cat", num_inference_steps=4)
    pipeline.unet = dq_deploy.load(bundle_of("Image-to-image"))
    with pytest.raises(UsageError, match="no attribute 'encoder_hid_proj': .*\nan IP-Adapter is quantized with the model"):
        pipeline("a cat", ip_adapter_image=tiny_picture(), num_inference_steps=4)


def test_an_ip_adapters_picture_by_the_command_line(bundle_of: Callable[[str], Artifact], tmp_path: Path, cli: Cli) -> None:
    """Every command that draws takes it, and says so where it is missing."""
    bundle, picture, prompts = bundle_of("With an IP-Adapter"), tmp_path / "a.png", tmp_path / "prompts.txt"
    tiny_picture().save(picture)
    prompts.write_text("a cat\n", encoding="utf-8")
    checkpoint, page = bundle.path.parent / "checkpoint", tmp_path / "page.html"
    drawn = ("-n", "1", "--prompts", prompts)
    ended = cli(
        "report", checkpoint, bundle.path, "-o", page, *drawn, "--ip-adapter-image", picture, "--no-layer-error", "--format", "json"
    )
    assert ended.code == 0, ended.err
    assert len(json.loads(ended.out)["pictures"]["expected"]) == 1
    assert f"--ip-adapter-image {picture}" in page.read_text(encoding="utf-8")
    assert cli("sample", bundle.path, "-o", tmp_path / "made.png", *drawn, "--ip-adapter-image", picture).code == 0
    missing = cli("sample", bundle.path, "-o", tmp_path / "none.png", *drawn)
    assert_refused(missing, 2, "draws from a picture for an IP-Adapter, and none is given", "give --ip-adapter-image FILE")


def test_an_ip_adapter_of_a_pipeline_object(tmp_path: Path) -> None:
    pipeline = tiny_stable_diffusion()
    file = tiny_ip_adapter(tmp_path / "adapter", pipeline.unet)
    pipeline.load_ip_adapter(str(file.parent), subfolder="", weight_name=file.name, local_files_only=True, low_cpu_mem_usage=False)
    pipeline.set_ip_adapter_scale(0.5)
    with pytest.raises(UsageError, match="has an IP-Adapter, and no picture for it is given\ngive --ip-adapter-image FILE"):
        quantize(pipeline, tmp_path / "none", prompts=PROMPTS, **QUICK)
    checkpoint = quantize(pipeline, tmp_path / "checkpoint", prompts=PROMPTS, ip_adapter_image=tiny_picture(), **QUICK)
    assert checkpoint.details.network_config is not None
    adapter = checkpoint.details.network_config["ip_adapter"]
    assert adapter["projections"] == ["ImageProjection"]
    assert list(adapter["scales"].values()) == [[0.5]]
    pipeline.load_ip_adapter([str(file.parent)] * 2, subfolder="", weight_name=[file.name] * 2, local_files_only=True,
                             low_cpu_mem_usage=False)  # fmt: skip
    with pytest.raises(UsageError, match="has 2 IP-Adapters, and pictures are given to one"):
        quantize(pipeline, tmp_path / "two", prompts=PROMPTS, ip_adapter_image=tiny_picture(), **QUICK)


def test_bad_ip_adapters(tmp_path: Path, cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    unet = tiny_conditioned_unet()
    good = tiny_ip_adapter(tmp_path / "good", unet)
    alone = tmp_path / "alone" / "ip.safetensors"
    alone.parent.mkdir()
    shutil.copy(good, alone)
    shutil.copytree(good.parent, tmp_path / "two")
    shutil.copy(good, tmp_path / "two" / "other.safetensors")
    wide = tiny_ip_adapter(tmp_path / "wide", unet, width=12)
    other = tiny_ip_adapter(tmp_path / "other", tiny_conditioned_unet(cross_attention_dim=24))
    save_file({"layer.weight": torch.zeros(2)}, tmp_path / "none.safetensors")
    save_file({"image_proj.a": torch.zeros(2), "ip_adapter.0.to_q_lora.down.weight": torch.zeros(2)}, tmp_path / "face.safetensors")
    (tmp_path / "ip-adapter.bin").write_bytes(b"pickle")
    quantize = ("quantize", "pipeline", "-o", "out", "--prompts", "prompts.txt", "--ip-adapter-image", "a.png")
    for given, code, *told in (
        (tmp_path / "nowhere", 2, "no such IP-Adapter: "),
        (tmp_path / "ip-adapter.bin", 2, "is not a .safetensors file", "a pickle can run code when loaded"),
        (folder / "empty", 2, "has no IP-Adapter (*.safetensors)"),
        (tmp_path / "two", 2, "has 2 files: ip-adapter.safetensors, other.safetensors"),
        (tmp_path / "none.safetensors", 3, "holds no IP-Adapter, whose tensors begin with image_proj. and ip_adapter.", "layer.weight"),
        (tmp_path / "face.safetensors", 2, "reads the embeddings of a face recognition, not a picture"),
        (alone, 2, "there is no encoder of pictures for", "named image_encoder"),
        (wide, 2, "takes embeddings of width 12, and the encoder of pictures gives 20"),
        (other, 3, "cannot load the IP-Adapter"),
    ):
        assert_refused(cli(*quantize, "--ip-adapter", given), code, *told)
    assert_refused(cli(*quantize, "--ip-adapter", good, "--ip-adapter-scale", "0"), 2, "the scale of the IP-Adapter is 0.0")
    assert_refused(cli(*quantize), 2, "a picture for an IP-Adapter is given, and the unet of a StableDiffusionPipeline has none")
    assert_refused(cli(*quantize[:-2], "--ip-adapter", good), 2, "has an IP-Adapter, and no picture for it is given")
    assert_refused(cli(*quantize, "--ip-adapter-scale", "0.6"), 2, "--ip-adapter-scale is of an IP-Adapter, and none is given")
    tiny_flux().save_pretrained(tmp_path / "flux")
    flux = cli("quantize", tmp_path / "flux", *quantize[2:], "--ip-adapter", good)
    assert_refused(flux, 2, "a FluxPipeline takes no IP-Adapter here: only pipelines with a UNet do")
    assert not Path("out").exists()


class Brightened(DiffusionPipeline):
    """A pipeline that diffusers does not know, which asks its denoiser for more than its output."""

    model_cpu_offload_seq = "unet"

    def __init__(self, unet: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(self, picture: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        assert self.unet.config.cross_attention_dim == texts.shape[-1]
        size, generator = self.unet.config.sample_size, torch.Generator().manual_seed(0)
        x = torch.randn(1, self.unet.config.in_channels, size, size, generator=generator, dtype=self.unet.dtype) + picture
        self.scheduler.set_timesteps(4)
        for t in self.scheduler.timesteps:
            x = self.scheduler.step(self.unet(x, t, texts).sample, t, x).prev_sample
        return x


def test_an_unknown_pipelines_network_goes_as_a_module_and_drops_in(tmp_path: Path) -> None:
    pipeline = Brightened(tiny_conditioned_unet(), DDIMScheduler(clip_sample=False))
    texts = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(1))
    checkpoint = quantize(
        pipeline.unet, tmp_path / "checkpoint", scheduler=pipeline.scheduler, sample_shape=(4, 8, 8),
        conditions={"encoder_hidden_states": texts}, **QUICK,
    )  # fmt: skip
    bundle, picture = export(checkpoint, tmp_path / "bundle", target="onnxruntime"), torch.full((1, 4, 8, 8), 0.1)
    expected = pipeline(picture, texts[:1])
    pipeline.unet = dq_deploy.load(bundle)
    assert snr_db(expected, pipeline(picture, texts[:1])) > 20


def test_bad_controlnets(tmp_path: Path, cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    tiny_controlnet(steered_pipeline().unet).save_pretrained(tmp_path / "controlnet")
    quantize = ("quantize", "pipeline", "-o", "out", "--prompts", "prompts.txt")
    assert_refused(cli(*quantize, "--controlnet", "none"), 2, "no such ControlNet folder")
    assert_refused(cli(*quantize, "--controlnet", "pipeline/unet"), 3, "holds no ControlNet: its config.json names UNet2DConditionModel")
    told = "a StableDiffusionControlNetPipeline draws from a control picture, and none is given"
    assert_refused(cli(*quantize, "--controlnet", tmp_path / "controlnet"), 2, told, "--control-image FILE")
    assert_refused(cli(*quantize, "--control-image", "a.png"), 2, "a control picture given, and a StableDiffusionPipeline takes none")
    alone = cli("quantize", tmp_path / "controlnet", "-o", "out", "--prompts", "prompts.txt", "--control-image", "a.png")
    assert_refused(alone, 3, "it is a ControlNetModel, which steers a pipeline", "--pipeline DIR")
    assert_refused(cli(*quantize, "--pipeline", "pipeline"), 2, "--pipeline is the pipeline that a ControlNet steers")


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--image", "none.png"], "no such picture: none.png"),
        (["--image", "text.png"], "cannot read text.png: not a picture that PIL knows"),
        (["--image", "half.png"], "cannot read half.png: "),
        (["--image", "a.png", "--image", "b.png"], "the pictures are 16×16, 24×16 pixels, and a graph is made for one size"),
        (["--image", "a.png", "--image", "b.png", "--height", "16"], "a height alone is given, and pictures are resized to both"),
        (["--mask", "mask.png"], "a mask is given, and no picture that it belongs to"),
        (["--image", "b.png", "--mask", "mask.png"], "a mask is 16×16 pixels, and its picture 24×16"),
        (["--image", "a.png", "--mask", "black.png"], "mask 1 is black everywhere, which leaves nothing to draw"),
        (["--image", "a.png", "--mask", "mask.png", "--mask", "mask.png"], "2 masks are given for 1 pictures"),
        (["--strength", "0.5"], "a strength is given, and no picture to change"),
        (["--image", "a.png", "--strength", "1.5"], "the strength is 1.5, and must be above 0 and at most 1"),
        (["--image", "a.png", "--strength", "0.01"], "a strength of 0.01 runs 0.2 of 20 steps, which is none"),
        (["--image", "empty"], "no pictures in empty"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_bad_pictures(flags: list[str], told: str, folder: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert_refused(cli("quantize", "pipeline", "-o", "out", "--prompts", "prompts.txt", *flags), 2, told)
    assert not Path("out").exists()


def test_what_is_said_before_anything_is_loaded(folder: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    ended = cli("quantize", "nowhere", "-o", "out", "--image", "b.png", "--height", 16, "--width", 16, "--strength", "0.01")
    said, *refused = ended.err.splitlines()
    assert said == "pictures are stretched (width × height): 24×16 to 16×16; crop them first where that matters"
    assert_refused(replace(ended, err="\n".join(refused)), 2, "a strength of 0.01 runs 0.2 of 20 steps, which is none")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text pipeline, one that paints in, and good and bad pictures."""
    root = tmp_path_factory.mktemp("pictures")
    tiny_stable_diffusion().save_pretrained(root / "pipeline")
    (root / "prompts.txt").write_text("a cat\n", encoding="utf-8")
    (root / "empty").mkdir()
    tiny_picture().save(root / "a.png")
    tiny_picture(1, (24, 16)).save(root / "b.png")
    tiny_mask().save(root / "mask.png")
    tiny_mask().point(lambda _: 0).save(root / "black.png")
    (root / "text.png").write_text("no picture", encoding="utf-8")
    content = (root / "a.png").read_bytes()
    (root / "half.png").write_bytes(content[: len(content) // 2])
    return root
