"""A class-conditional transformer (DiT): calibrate on its classes with guidance, quantize, and draw one picture of each.

python examples/class_conditional_dit.py -o dit.png
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import click

import dq_deploy


@click.command()
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default="class_conditional_dit.png", show_default=True, help="PNG to write."
)
@click.option("--source", default="builtin:fashion-mnist-dit", show_default=True, help="Pipeline folder, hub id or built-in name.")
@click.option("--preset", default="w8a8", show_default=True, help="Bits of weights and activations.")
@click.option("--classes", default="0-9", show_default=True, help="Classes to calibrate on and to draw.")
@click.option("--guidance-scale", default=1.5, show_default=True, help="Classifier-free guidance, in calibration and sampling.")
@click.option("--steps", default=20, show_default=True, help="Timesteps, and rows of every scale table.")
@click.option("--samples", default=10, show_default=True, help="Calibration samples, the classes in turn; 64 for real use.")
@click.option("-n", "--count", default=10, show_default=True, help="Pictures to draw, the classes in turn.")
@click.option("--max-float-share", default=0.02, show_default=True, help="Largest share of the arithmetic that may stay float.")
def main(output: Path, source: str, preset: str, classes: str, guidance_scale: float, steps: int, samples: int, count: int,
         max_float_share: float) -> None:  # fmt: skip
    """Quantize a class-conditional transformer and draw with it and with the float model, from the same noise."""
    with TemporaryDirectory() as work:
        click.echo(f"quantizing {source} at {preset}, classes {classes}, guidance {guidance_scale:g}")
        checkpoint = dq_deploy.quantize(
            source, f"{work}/checkpoint", preset=preset, steps=steps, calibration_samples=samples, iterations=0, dilation="none",
            classes=classes, guidance_scale=guidance_scale, max_float_share=max_float_share,
        )  # fmt: skip
        click.echo("exporting; attention's products are integers too, and a sample's class and timestep are inputs of the graph")
        bundle = dq_deploy.export(checkpoint, f"{work}/bundle", target="onnxruntime")
        drawn = dq_deploy.sample(bundle.path, output, n=count, classes=classes, guidance_scale=guidance_scale, force=True)
    click.echo(f"left the float model, right the integers, PSNR {drawn.psnr_mean_db:.1f} dB (worst {drawn.psnr_min_db:.1f}): {output}")


if __name__ == "__main__":
    main()
