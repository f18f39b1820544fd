"""``dq-deploy export``: the command, and what it prints."""

from __future__ import annotations

import shlex
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..console import Output
from .headings import OUTPUT, HeadedCommand
from .inspect import width_rows
from .options import PATH, TargetChoice, allows_pickles, common, force_option, output_folder

if TYPE_CHECKING:
    from ..artifacts import Artifact
    from ..artifacts.details import BundleDetails

_NARROW = {"int4": "weights in INT4", "planes": "weights as bit planes", "codebook": "weights as codewords"}


_HEADINGS = {
    "What to export": "--target --float --allow-pickle",
    "Bits and formats": "--dtype --weight-storage --weight-bits --weight-budget --attention --convolutions",
    "Output": OUTPUT,
}


@click.command(cls=HeadedCommand, headings=_HEADINGS, short_help="Checkpoint in, ONNX bundle out.")
@click.argument("checkpoint", type=PATH)
@output_folder("bundle")
@click.option(
    "--target",
    type=TargetChoice(),
    required=True,
    help="qdq: for OpenVINO, TensorRT and TensorRT-RTX (and ONNX Runtime). onnxruntime: for ONNX Runtime alone, and faster there.",
)
@click.option(
    "--dtype",
    type=click.Choice(["fp32", "fp16", "bf16"]),
    help="Type of what is not quantized.  [default: fp16 for qdq, fp32 for onnxruntime and --float]",
)
@click.option(
    "--weight-storage",
    type=click.Choice(["auto", "int8"]),
    default="auto",
    show_default=True,
    help="auto: weights of up to 4 bits take half a byte in target qdq, of 2 and 3 bits as many bits. int8: a byte each.",
)
@click.option(
    "--weight-bits",
    type=int,
    metavar="BITS",
    help="Of a checkpoint of several widths (quantize --matryoshka): the width to export.  [default: 8]",
)
@click.option(
    "--weight-budget",
    metavar="BUDGET",
    help="Of such a checkpoint: a width for each layer, so that the weights take so many bytes (1.6MB) or such a share of the float32 "
    "weights (0.18x) at the most, and lose as little as possible (docs/widths.md).  [default: one width for all]",
)
@click.option(
    "--attention",
    type=click.Choice(["auto", "int8", "float"]),
    default="auto",
    show_default=True,
    help="Products of attention (q·k and P·v). auto: what is best for the engine: one kernel of floats in TensorRT(-RTX), INT8 on CPUs. "
    "int8, float: that, whatever the engine.",
)
@click.option(
    "--convolutions",
    type=click.Choice(["auto", "integer", "float"]),
    help="Of the onnxruntime target. auto: float where integers would be slower. integer: all. float: none.  [default: auto]",
)
@click.option("--float", is_flag=True, help="Export the unquantized model instead, as the baseline.")
@force_option
@common
@allows_pickles
def export(checkpoint: Path, destination: Path, force: bool, output: Output, **options: Any) -> None:
    """Export CHECKPOINT as an ONNX graph whose scales are selected by the timestep input."""
    from ..exporters import export as run_export

    show_bundle(run_export(checkpoint, destination, force=force, progress=output.progress, **options), output)
    if not options["float"]:
        output.note("next: " + shlex.join(["dq-deploy", "check", str(destination), "--checkpoint", str(checkpoint)]))


def show_bundle(bundle: Artifact[BundleDetails], output: Output) -> None:
    """What was exported."""
    details = bundle.details
    size = sum(entry.size for entry in bundle.manifest.files.values())
    stored = Counter(layer.weight_storage for layer in details.layers)
    rows = [
        ("target", details.target),
        ("dtype", details.dtype),
        ("quantized layers", len(details.layers)),
        *width_rows(details),
        *([("convolutions left in float", str(len(floats)))] if (floats := details.float_convolutions) else []),
        *((label, f"{stored[storage]} layers") for storage, label in _NARROW.items() if stored[storage]),
        *([("kept in fp32", _kept(details.kept_fp32))] if details.kept_fp32 else []),
        ("size", f"{size / 1e6:.2f} MB"),
    ]
    output.table(str(bundle.path), ("", ""), rows)
    output.data({"bundle": bundle.path, "manifest": bundle.manifest.model_dump()})


def _kept(parts: list[dict[str, Any]]) -> str:
    """What fp16 cannot hold: how many values, the largest, and behind which layer."""
    count, worst = sum(part["values"] for part in parts), max(parts, key=lambda part: part["largest"])
    return f"{count} values that fp16 cannot hold, up to {worst['largest']:.1e} after {worst['after']}"
