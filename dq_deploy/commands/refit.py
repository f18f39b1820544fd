"""``dq-deploy refit``: the command, and what it prints."""

from __future__ import annotations

import shlex
from pathlib import Path
from statistics import median

import click

from ..console import Output
from ..errors import UsageError
from .options import PATH, allows_pickles, common, force_option, output_folder

_MANY = 0.001  # of the weights


@click.command(short_help="A LoRA into a checkpoint, without calibration.")
@click.argument("checkpoint", type=PATH)
@click.option("--lora", type=PATH, help="LoRA file (safetensors) to merge into the weights; it replaces one that is there.")
@click.option("--lora-scale", type=float, help="Weight of the LoRA.  [default: 1]")
@click.option(
    "--source", help="Other weights of the same network: a fine-tuned copy's folder or hub id.  [default: the checkpoint's source]"
)
@click.option("--no-lora", is_flag=True, help="Take off the LoRA that the checkpoint was made with.")
@click.option(
    "--rounding", type=click.Choice(["nearest", "gptq"]), help="How the changed weights become codes.  [default: the checkpoint's]"
)
@output_folder("checkpoint")
@force_option
@common
@allows_pickles
def refit(checkpoint: Path, lora: Path | None, lora_scale: float | None, source: str | None, no_lora: bool, rounding: str | None,
          destination: Path, force: bool, output: Output) -> None:  # fmt: skip
    """Write CHECKPOINT with other weights: those of its source and a LoRA, or of a fine-tuned copy, as integers in the scales that it has.

    Nothing is calibrated: tables, dilation and scales stay, and only layers that the LoRA changes get other codes. Export and build the new
    checkpoint as the old one. The source must lie where the manifest says.
    """
    if lora is None and source is None and not no_lora:
        raise UsageError("a refit is with other weights, and none are given", "give --lora FILE, --source DIR, or --no-lora")
    if lora is not None and no_lora:
        raise UsageError("--lora and --no-lora are given", "leave one out")
    if lora_scale is not None and lora is None:
        raise UsageError("--lora-scale is the weight of a LoRA, and none is given", "give --lora FILE too")
    from ..quantization.refit import refit as run_refit

    scale = 1.0 if lora_scale is None else lora_scale
    artifact = run_refit(
        checkpoint, destination, lora=lora, lora_scale=scale, source=source, rounding=rounding, force=force, progress=output.progress
    )
    made, snr = artifact.manifest.details["refit"], artifact.details.snr_db["after_distillation"]
    rows: list[tuple[str, object]] = [
        ("layers with other codes", f"{len(made['layers'])} of {len(artifact.details.layers)}"),
        ("their weights beyond the range of their scales", f"{made['clipped_weights']:.2%}"),
        ("SNR against the float model", f"median {median(snr):.1f} dB, worst {min(snr):.1f} dB"),
    ]
    output.table(str(artifact.path), ("", ""), rows)
    if made["clipped_weights"] > _MANY:
        output.warn("the change is large for scales that were made for other weights: compare pictures, or quantize again with --lora")
    output.data({"checkpoint": artifact.path, "manifest": artifact.manifest.model_dump()})
    output.note("next: " + shlex.join(["dq-deploy", "export", str(destination), "-o", f"{destination}-qdq", "--target", "qdq"]))
