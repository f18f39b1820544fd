"""``dq-deploy refit``: the command, and what it prints."""

from __future__ import annotations

import shlex
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import click

from ..console import Output
from ..errors import UsageError
from .build_engine import show_engine
from .export import show_bundle
from .options import PATH, allows_pickles, common, force_option, output_folder

if TYPE_CHECKING:
    from ..artifacts import Artifact
    from ..artifacts.details import CheckpointDetails

_MANY = 0.001  # of the weights


@click.command(short_help="A LoRA into what was quantized, without calibration.")
@click.argument("path", type=PATH)
@click.option("--lora", type=PATH, help="LoRA file (safetensors) to merge into the weights; it replaces one that is there.")
@click.option("--lora-scale", type=float, help="Weight of the LoRA.  [default: 1]")
@click.option(
    "--source", help="Other weights of the same network: a fine-tuned copy's folder or hub id.  [default: the checkpoint's source]"
)
@click.option("--no-lora", is_flag=True, help="Take off the LoRA that the checkpoint was made with.")
@click.option(
    "--rounding", type=click.Choice(["nearest", "gptq"]), help="How the changed weights become codes.  [default: the checkpoint's]"
)
@click.option("--ip-adapter-scale", type=float, help="How much the IP-Adapter's picture counts.  [default: as quantized]")
@click.option("--checkpoint", type=PATH, help="Of a bundle or an engine: the checkpoint that it came from, or a refit of that.")
@output_folder("checkpoint, bundle or engine")
@force_option
@common
@allows_pickles
def refit(path: Path, lora: Path | None, lora_scale: float | None, source: str | None, no_lora: bool, rounding: str | None,
          ip_adapter_scale: float | None, checkpoint: Path | None, destination: Path, force: bool, output: Output) -> None:  # fmt: skip
    """Write PATH, a checkpoint, a bundle or an engine, with other weights: those of its source and a LoRA, or of a fine-tuned copy.

    Nothing is calibrated: tables, dilation and scales stay, and only layers that the LoRA changes get other integers. The source must lie
    where the manifest says.

    A bundle is exported, and an engine built, with the options that its manifest has. The checkpoint that it is made from stays beside it
    as OUT.checkpoint, and an engine's bundle as OUT.bundle.
    """
    if lora is None and source is None and ip_adapter_scale is None and not no_lora:
        raise UsageError("a refit is with other weights, and none are given", "give --lora FILE, --source DIR, or --no-lora")
    if no_lora and ip_adapter_scale is not None:
        raise UsageError("--no-lora and --ip-adapter-scale are given", "refit twice: the second keeps what the first has done")
    if lora is not None and no_lora:
        raise UsageError("--lora and --no-lora are given", "leave one out")
    if lora_scale is not None and lora is None:
        raise UsageError("--lora-scale is the weight of a LoRA, and none is given", "give --lora FILE too")
    from ..artifacts import is_kind, open_artifact
    from ..artifacts.details import BundleDetails, CheckpointDetails, EngineDetails
    from ..engines.refit import refit as run_refit

    scale = 1.0 if lora_scale is None else lora_scale
    made = run_refit(
        path, destination, checkpoint=checkpoint, lora=lora, lora_scale=scale, source=source, rounding=rounding,
        ip_adapter_scale=ip_adapter_scale, force=force, progress=output.progress,
    )  # fmt: skip
    if is_kind(made, CheckpointDetails):
        _show_refit(made, output)
        output.data({"checkpoint": made.path, "manifest": made.manifest.model_dump()})
        output.note("next: " + shlex.join(["dq-deploy", "export", str(destination), "-o", f"{destination}-qdq", "--target", "qdq"]))
        return
    refitted = open_artifact(f"{destination}.checkpoint", "checkpoint")
    _show_refit(refitted, output)
    if is_kind(made, BundleDetails):
        show_bundle(made, output)
        output.note("next: " + shlex.join(["dq-deploy", "check", str(destination), "--checkpoint", str(refitted.path)]))
    elif is_kind(made, EngineDetails):
        _show_built(made, output)


def _show_built(engine: Artifact[Any], output: Output) -> None:
    from ..engines.build.engine import load_report

    show_engine(engine, load_report(engine), output)


def _show_refit(checkpoint: Artifact[CheckpointDetails], output: Output) -> None:
    """How many layers have other integers, and what that costs; warns where it was too much."""
    details = checkpoint.details
    assert details.refit is not None
    snr = details.snr_db["after_distillation"]
    rows: list[tuple[str, object]] = [
        ("layers with other codes", f"{len(details.refit.layers)} of {len(details.layers)}"),
        ("their weights beyond the range of their scales", f"{details.refit.clipped_weights:.2%}"),
        ("SNR against the float model", f"median {median(snr):.1f} dB, worst {min(snr):.1f} dB"),
    ]
    output.table(str(checkpoint.path), ("", ""), rows)
    if details.refit.clipped_weights > _MANY:
        output.warn("the change is large for scales that were made for other weights: compare pictures, or quantize again with --lora")
