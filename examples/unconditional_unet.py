"""An unconditional UNet: quantize it, export it, and let diffusers' own pipeline draw with the integers.

python examples/unconditional_unet.py -o unet.png
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import click
import torch
from diffusers import DDIMPipeline, DDIMScheduler
from diffusers.utils import make_image_grid

import dq_deploy


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), default="unconditional_unet.png", show_default=True, help="PNG to write.")
@click.option("--source", default="builtin:fashion-mnist-unet", show_default=True, help="Pipeline folder, hub id or built-in name.")
@click.option("--preset", default="w8a8", show_default=True, help="Bits of weights and activations.")
@click.option("--steps", default=20, show_default=True, help="Timesteps, and rows of every scale table.")
@click.option("--samples", default=8, show_default=True, help="Calibration samples; 64 for real use.")
@click.option("--iterations", default=0, show_default=True, help="Distillation steps for each block; 200 for real use.")
@click.option("--max-float-share", default=0.02, show_default=True, help="Largest share of the arithmetic that may stay float.")
def main(output: Path, source: str, preset: str, steps: int, samples: int, iterations: int, max_float_share: float) -> None:
    """Quantize an unconditional UNet and draw sixteen pictures with it."""
    with TemporaryDirectory() as work:
        click.echo(f"quantizing {source} at {preset}, {steps} timesteps")
        checkpoint = dq_deploy.quantize(
            source, f"{work}/checkpoint", preset=preset, steps=steps, calibration_samples=samples, iterations=iterations, dilation="none",
            max_float_share=max_float_share,
        )  # fmt: skip
        click.echo("exporting and checking the integer graph")
        bundle = dq_deploy.export(checkpoint, f"{work}/bundle", target="onnxruntime")
        verdict = dq_deploy.check(bundle, checkpoint)
        verdict.enforce()
        worst = verdict.worst_timestep
        click.echo(f"it computes what the checkpoint does; worst SNR against float: {worst.snr_bundle_db:.1f} dB at t = {worst.timestep:g}")

        # The pipeline's own loop drives the integer graph; the schedule is the one that it was calibrated for.
        if (ran := bundle.manifest.scheduler["calibrated_with"])["class"] != "DDIMScheduler":
            raise click.ClickException(f"this example draws by DDIM, and the model is calibrated with a {ran['class']}: {ran['why']}")
        scheduler = DDIMScheduler.from_config(bundle.manifest.scheduler["config"])
        pipe = DDIMPipeline(unet=dq_deploy.load(bundle), scheduler=scheduler)
        pictures = pipe(16, generator=torch.Generator().manual_seed(0), num_inference_steps=steps).images
    make_image_grid(pictures, rows=4, cols=4, resize=96).save(output)
    click.echo(f"drawn by integers: {output}")


if __name__ == "__main__":
    main()
