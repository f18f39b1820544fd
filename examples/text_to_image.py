"""A text-to-image pipeline: calibrate on prompts, quantize the denoiser, and put the integers in its place.

python examples/text_to_image.py -o text.png
python examples/text_to_image.py --pipeline path/to/stable-diffusion --samples 32 -o text.png

Without --pipeline it is the small text pipeline that ships with the package, which knows clothes.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import make_image_grid

import dq_deploy
from dq_deploy.sources import builtin_path

PROMPTS = ["a light t-shirt", "a pair of dark trousers", "a wide bag", "an ankle boot, pointing left"]


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), default="text_to_image.png", show_default=True, help="PNG to write.")
@click.option("--pipeline", help="Pipeline folder or hub id.  [default: the built-in one]")
@click.option("--steps", default=10, show_default=True, help="Timesteps, and rows of every scale table.")
@click.option("--samples", default=8, show_default=True, help="Calibration samples; a few dozen for real use.")
@click.option("--guidance-scale", default=2.5, show_default=True, help="Classifier-free guidance, in calibration and sampling.")
def main(output: Path, pipeline: str | None, steps: int, samples: int, guidance_scale: float) -> None:
    """Quantize a text-to-image pipeline's denoiser and draw the same prompts with both."""
    source = pipeline or builtin_path("fashion-mnist-text")
    pipe = DiffusionPipeline.from_pretrained(source, use_safetensors=True, torch_dtype=torch.float32)
    # PixArt's pipelines choose among the sizes of the large models unless they are told not to.
    more = {} if pipeline else {"use_resolution_binning": False}

    def draw() -> list[Any]:
        generators = [torch.Generator().manual_seed(seed) for seed in range(len(PROMPTS))]
        return pipe(PROMPTS, generator=generators, num_inference_steps=steps, guidance_scale=guidance_scale, **more).images

    expected = draw()
    with TemporaryDirectory() as work:
        click.echo(f"quantizing {type(pipe).__name__} on {len(PROMPTS)} prompts, {steps} timesteps, guidance {guidance_scale:g}")
        checkpoint = dq_deploy.quantize(
            pipe, f"{work}/checkpoint", preset="w8a8", steps=steps, calibration_samples=samples, iterations=0, dilation="none",
            prompts=PROMPTS, guidance_scale=guidance_scale, sampler="pipeline",
        )  # fmt: skip
        bundle = dq_deploy.export(checkpoint, f"{work}/bundle", target="onnxruntime")
        # pipe.unet = dq_deploy.load(bundle), or pipe.transformer: all that the pipeline is told.
        setattr(pipe, bundle.manifest.details["component"], dq_deploy.load(bundle))
        click.echo("drawing with the integer denoiser")
        got = draw()
    make_image_grid([*expected, *got], rows=2, cols=len(PROMPTS), resize=None if pipeline else 128).save(output)
    click.echo(f"above the float model, below the integers: {output}")


if __name__ == "__main__":
    main()
