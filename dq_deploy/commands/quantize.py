"""``dq-deploy quantize``: the command, and what it prints."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import click

from ..artifacts import Artifact
from ..console import Output
from .options import calibration_options, common, force_option, output_folder, parse_keep, read_config

if TYPE_CHECKING:
    from ..quantization import Budget


@click.command()
@click.argument("source")
@output_folder("checkpoint")
@click.option("--preset", help="w8a8, w6a6, w4a8 or w4a4: bits of weights and activations; w4a16: only weights.  [default: w8a8]")
@click.option("--weight-bits", type=int, help="2 to 8; overrides the preset.")
@click.option("--activation-bits", type=int, help="2 to 8, or 16 to leave activations in float; overrides the preset.")
@click.option("--steps", type=int, help="T: DDIM steps of the calibration, rows of every scale table.  [default: 20]")
@click.option("--iterations", type=int, help="Distillation steps for each block; 0 turns it off.  [default: 200]")
@click.option(
    "--dilation",
    type=click.Choice(["auto", "layerwise", "none", "symmetric", "asymmetric", "smoothquant"]),
    help="Rule of weight dilation; auto takes the one that serves the network best.  [default: auto]",
)
@click.option("--calibration-samples", type=int, help="Trajectories to calibrate and distil on.  [default: 64]")
@click.option("--batch-size", type=int, help="Samples in a batch.  [default: 32]")
@click.option("--seed", type=int, help="First seed of the calibration noise.  [default: 0]")
@click.option(
    "--keep",
    multiple=True,
    metavar="PATTERN=BITS|float",
    help="Bits of the layers that match (fnmatch), or float; @first and @last are patterns too. Repeatable.",
)
@calibration_options
@click.option("--config", type=click.Path(path_type=Path), help="JSON file with options, named as in the manifest; flags win.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N: where to calibrate and distil.")
@click.option("--resume", is_flag=True, help="Go on with the run that was interrupted while it wrote this output, if there is one.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done, and what it would take; writes nothing.")
@force_option
@common
def quantize(
    source: str,
    destination: Path,
    keep: tuple[str, ...],
    calibration: dict[str, Any],
    config: Path | None,
    device: str,
    resume: bool,
    dry_run: bool,
    force: bool,
    output: Output,
    **options: Any,
) -> None:
    """Quantize SOURCE with DilateQuant and write a checkpoint of integers and scale tables.

    SOURCE is a diffusers pipeline folder, a hub id, or a built-in name such as builtin:fashion-mnist-unet. Calibration data comes from the
    model's own sampling trajectories; no data set is needed.
    """
    from ..artifacts import check_output
    from ..quantization import QuantizeConfig, estimate, work_path
    from ..quantization import quantize as run_quantize

    merged = {"preset": "w8a8", **read_config(config), **{key: value for key, value in options.items() if value is not None}}
    if keep:
        merged["keep"] = merged.get("keep", {}) | dict(map(parse_keep, keep))
    QuantizeConfig.build(**merged)
    check_output(destination, force=force)
    if dry_run:
        show_budget(estimate(source, **calibration, device=device, **merged), output)
        return
    try:
        artifact = run_quantize(
            source, destination, **calibration, device=device, force=force, resume=resume, progress=output.progress, **merged
        )
    except (KeyboardInterrupt, MemoryError, OSError, RuntimeError):
        if work_path(destination).exists():
            output.warn(f"what is finished is kept in {work_path(destination)}: the same command with --resume goes on from there")
        raise
    show_checkpoint(artifact, output)
    output.note(f"next: dq-deploy export {destination} -o {destination}-tensorrt --target tensorrt")


def show_checkpoint(checkpoint: Artifact, output: Output) -> None:
    """What was quantized, and what it cost."""
    details = checkpoint.manifest.details
    blocks = details["distillation"]
    rows = [
        ("quantized layers", len(details["layers"])),
        ("multiply-accumulates in float", f"{details['float_mac_share']:.2%}"),
        ("SNR before distillation", _span(details["snr_db"]["before_distillation"])),
        ("SNR after distillation", _span(details["snr_db"]["after_distillation"])),
        ("blocks improved", f"{sum(b['after'] < b['before'] for b in blocks)} of {len(blocks)}"),
    ]
    output.table(str(checkpoint.path), ("", ""), rows)
    output.data({"checkpoint": checkpoint.path, "manifest": checkpoint.manifest.model_dump()})


def show_budget(budget: Budget, output: Output) -> None:
    """What a run would do and take."""
    rows = [
        (block.name, len(block.layers), f"{block.trained_parameters:,}", f"{block.macs / 1e6:.1f} M", _duration(block.seconds))
        for block in budget.blocks
    ]
    output.table(f"{budget.model}: blocks", ("block", "layers", "trained parameters", "multiply-accumulates", "time"), rows)
    if budget.float_layers:
        output.table("left in float", ("layer", "reason"), [(layer["name"], layer["reason"]) for layer in budget.float_layers])
    totals = [
        ("multiply-accumulates in float", f"{budget.float_mac_share:.2%}"),
        ("trained parameters", f"{budget.trained_parameters:,}"),
        ("calibration samples", f"{budget.samples:,}"),
        *((f"disk: {name}", f"{size / 1e6:.1f} MB") for name, size in budget.disk_bytes.items()),
        *((f"memory: {name}", f"{size / 1e6:.1f} MB") for name, size in budget.memory_bytes.items()),
        *((f"time: {name}", _duration(seconds)) for name, seconds in budget.seconds.items()),
    ]
    output.table("estimate", ("", ""), totals)
    output.note("times are extrapolated from a few passes measured now; memory comes on top of the loaded model; nothing was written")
    output.data(budget)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def _span(snr_db: list[float]) -> str:
    return f"median {median(snr_db):.1f} dB, worst {min(snr_db):.1f} dB"
