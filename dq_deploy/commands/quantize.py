"""``dq-deploy quantize``: the command, and what it prints."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..console import Output
from ..errors import ResourceError, UsageError
from .completion import devices, known_devices, presets, sources
from .headings import OUTPUT, PICTURES, HeadedCommand
from .inspect import choice_rows
from .options import PATH, allows_pickles, calibration_options, common, force_option, output_folder, parse_keep, read_config, whole_numbers

if TYPE_CHECKING:
    from ..artifacts import Artifact
    from ..artifacts.details import CheckpointDetails
    from ..quantization import Budget, QuantizeConfig
    from ..quantization.bits.chosen import BitChoice, GroupChoice

_SHOWN_LAYERS = 10
_TURNED_OFF: dict[str, tuple[object, str]] = {"dilation": ("none", "dilation"), "iterations": (0, "distillation")}
"""Options with the value that turns a part of a method off, and that part."""


_HEADINGS = {
    "What to quantize": "--controlnet --pipeline --ip-adapter --ip-adapter-scale --lora --lora-scale --allow-pickle",
    "Bits and formats": "--preset --for --method --weight-bits --activation-bits --activations --rotation --low-rank --dilation "
    "--rounding --matryoshka --keep --auto-bits --sensitivity",
    "Calibration": "--steps --calibration-samples --guidance-scale --sampler --seed",
    "Prompts and pictures": PICTURES,
    "Sizes": "--height --width --frames --sizes --tokens",
    "Training": "--iterations --batch-size",
    "The run": "--config --device --dry-run --resume",
    "Output": OUTPUT,
}


@click.command(cls=HeadedCommand, headings=_HEADINGS, short_help="Float model in, checkpoint of integers and scales out.")
@click.argument("source", shell_complete=sources)
@output_folder("checkpoint")
@click.option(
    "--preset",
    metavar="NAME",
    shell_complete=presets,
    help="Bits of weights and activations: w8a8, w6a6, w4a8, w4a4; w4a16: weight-only; vq3a8, vq2a8: codebooks; fp8, w4a8-fp8: products in "
    "FP8, for GPUs of compute capability 8.9 and newer; nvfp4: linear layers in FP4, for 12.0 and newer.  [default: w8a8]",
)
@click.option(
    "--for",
    "device_for",
    metavar="GPU",
    shell_complete=known_devices,
    help="Take the preset that dq-deploy advise names for a GPU (sm_89, 8.9, 'RTX 4090') or cpu; --preset wins.  [default: none]",
)
@click.option(
    "--method",
    metavar="NAME",
    help="A published method, whose options are filled in and give way to yours: dilatequant, quest, quest-paper, vidit-q, vqdm, "
    "matgptq (docs/methods.md).  [default: dilatequant]",
)
@click.option("--weight-bits", type=int, metavar="2-8", help="Bits of weights.  [default: the preset's]")
@click.option(
    "--activation-bits", type=int, metavar="2-8|16", help="Bits of activations; 16 leaves them in float.  [default: the preset's]"
)
@click.option(
    "--activations",
    type=click.Choice(["auto", "per-timestep", "per-token", "static"]),
    help="Scales of activations: a table by timestep, one computed for each token that a linear layer reads, one for all, or of the first "
    "two what measures better for each layer.  "
    "[default: auto where activations are integers of 6 to 8 bits, else per-timestep]",
)
@click.option(
    "--rotation",
    type=click.Choice(["none", "auto", "64", "128", "256"]),
    help="Rotate what linear layers on tokens read, so many channels together at the most; auto: where that measures better.  "
    "[default: none]",
)
@click.option(
    "--low-rank",
    type=int,
    metavar="N",
    help="Rank of a float branch beside linear layers of up to 4 bits, which takes over what is largest of their weights.  [default: none]",
)
@click.option("--steps", type=int, help="Sampling steps of the calibration: as many as you will sample with.  [default: 20]")
@click.option("--iterations", type=int, help="Distillation steps per block; 0 for none.  [default: 200]")
@click.option(
    "--dilation",
    type=click.Choice(["auto", "layerwise", "none", "symmetric", "asymmetric", "smoothquant"]),
    help="Rule of weight dilation; auto takes the one that serves the network best.  [default: auto]",
)
@click.option(
    "--rounding",
    type=click.Choice(["auto", "nearest", "gptq"]),
    help="How weights become codes: each the nearest, or by GPTQ, by what they do to the layer's output; auto is GPTQ, "
    "but not before training with activations of fewer than 8 bits.  [default: auto]",
)
@click.option(
    "--matryoshka",
    metavar="8,6,4,3",
    help="Widths of weights that one checkpoint is to hold, descending from 8; export --weight-bits takes one (docs/widths.md).  "
    "[default: one width, of --weight-bits]",
)
@click.option(
    "--sizes",
    metavar="HxW,HxW",
    help="Heights and widths to calibrate at, each on its share of the samples; one bundle then takes these and what lies between. In "
    "pixels of a pipeline's pictures, or of the network's own samples.  [default: one size]",
)
@click.option(
    "--tokens",
    metavar="N[,N...]",
    help="Length of the text in tokens, where the pipeline leaves it open (max_sequence_length); of several one bundle takes these and "
    "what lies between.  [default: the pipeline's]",
)
@click.option("--calibration-samples", type=int, help="Images to calibrate and distil on, each with all its steps.  [default: 64]")
@click.option("--batch-size", type=int, help="Samples per batch; fewer need less memory.  [default: 32]")
@click.option("--seed", type=int, help="First seed of the calibration noise.  [default: 0]")
@click.option(
    "--keep",
    multiple=True,
    metavar="PATTERN=BITS|float",
    help="Bits of the layers that match (fnmatch), or float; @first and @last are patterns too. Repeatable.",
)
@click.option(
    "--auto-bits",
    metavar="BUDGET",
    help="Give 8 bits to the layers that need them most, the others keeping the preset's: 1.6MB or 0.18x (of the float32 weights) at the "
    "most, or 40dB of SNR at the least. The preset is then w4a8 by default.",
)
@click.option(
    "--sensitivity",
    type=click.Choice(["snr", "decoupled"]),
    help="What --auto-bits judges layers by: the prediction; or groups of layers by what each answers for, attention to the text by what "
    "the text changes, attention over frames by what changes between frames.  [default: snr]",
)
@calibration_options
@click.option("--config", type=PATH, help="JSON file with options, named as in the manifest; flags win.")
@click.option("--device", default="cpu", show_default=True, shell_complete=devices, help="cpu, cuda or cuda:N.")
@click.option("--resume", is_flag=True, help="Continue an interrupted run with the same output.")
@click.option("--dry-run", is_flag=True, help="Only estimate time, memory and disk; writes nothing.")
@force_option
@common
@allows_pickles
def quantize(
    source: str,
    destination: Path,
    device_for: str | None,
    keep: tuple[str, ...],
    auto_bits: str | None,
    sensitivity: str | None,
    matryoshka: str | None,
    sizes: str | None,
    tokens: str | None,
    calibration: dict[str, Any],
    config: Path | None,
    device: str,
    resume: bool,
    dry_run: bool,
    force: bool,
    output: Output,
    **options: Any,
) -> None:
    """Quantize SOURCE (DilateQuant by default) and write a checkpoint of integers and scale tables.

    SOURCE is a diffusers pipeline folder, a hub id, or a built-in name such as builtin:fashion-mnist-unet. Calibration data comes from the
    model's own sampling trajectories; no data set is needed.
    """
    from ..artifacts import check_output
    from ..quantization import QuantizeConfig, estimate, work_path
    from ..quantization import quantize as run_quantize
    from ..quantization.calibration.pipeline_source import read_prompts
    from ..sources import builtin_prompts

    given = {**read_config(config), **{key: value for key, value in options.items() if value is not None}}
    merged = {"preset": "w4a8" if auto_bits else "w8a8", **_advised(device_for, source, output, given), **given}
    if matryoshka is not None:
        merged["matryoshka"] = whole_numbers(matryoshka, "--matryoshka")
    if sizes is not None:
        merged["sizes"] = [size.strip() for size in sizes.split(",")]
    if tokens is not None:
        merged["tokens"] = whole_numbers(tokens, "--tokens")
    if keep:
        merged["keep"] = merged.get("keep", {}) | dict(map(parse_keep, keep))
    if auto_bits:
        _check_one_width(merged)
    elif sensitivity:
        raise UsageError("--sensitivity is of --auto-bits, and there is none", "give a budget too: --auto-bits 0.18x")
    _note_stretched(calibration, QuantizeConfig.build(**merged).sizes, output)
    if "prompts" not in calibration and (own := builtin_prompts(source)):
        output.note(f"calibrated on the {len(read_prompts(own))} prompts that {source} comes with; others: --prompts FILE")
    check_output(destination, force=force)
    choice = None
    if auto_bits:
        from ..quantization.bits.choose import choose_bits

        rule = sensitivity or "snr"
        choice = choose_bits(source, auto_bits, sensitivity=rule, **calibration, device=device, progress=output.progress, **merged)
        show_choice(choice, output)
        merged["keep"] = {**choice.keep, **merged.get("keep", {})}
    if dry_run:
        chosen = QuantizeConfig.build(**merged)
        show_budget(estimate(source, **calibration, device=device, **merged), chosen, output, choice)
        return
    try:
        artifact = run_quantize(
            source, destination, **calibration, device=device, force=force, resume=resume, progress=output.progress, **merged
        )
    except (KeyboardInterrupt, MemoryError, OSError, RuntimeError, ResourceError):
        if work_path(destination).exists():
            output.warn(f"finished stages are kept in {work_path(destination)}: the same command with --resume continues from there")
        raise
    show_checkpoint(artifact, output, choice)
    output.note("next: " + shlex.join(["dq-deploy", "export", str(destination), "-o", f"{destination}-qdq", "--target", "qdq"]))


def _advised(device: str | None, source: str, output: Output, given: dict[str, Any]) -> dict[str, str]:
    """The preset that suits a device, which gives way to one that was asked for. Raises UsageError for an unknown device."""
    if device is None:
        return {}
    from ..engines.devices.advice import advise, device_named, products_of

    advice = advise(device_named(device), source=source, ops=products_of(source))
    if "preset" not in given:
        capability = advice.compute_capability
        which = f", compute capability {capability}," if capability and capability not in advice.device.split() else ""
        output.note(f"preset {advice.preset} for {advice.device}{which} ({advice.why}); more: dq-deploy advise")
    return {"preset": advice.preset}


def _note_stretched(calibration: dict[str, Any], sizes: Sequence[tuple[int, int]], output: Output) -> None:
    """Say which pictures are stretched to the sizes that they are calibrated at. Raises UsageError as ``Pictures.read`` does."""
    from ..artifacts.details import PICTURE_KINDS
    from ..sources import Pictures

    given = {name: calibration[name] for name in PICTURE_KINDS if name in calibration}
    edges = calibration.get("height"), calibration.get("width")
    to = sizes or ([(edges[0], edges[1])] if edges[0] and edges[1] else [])
    if given and (stretched := Pictures.read(**given).stretched(to)):
        output.note(f"pictures are stretched (width × height): {stretched}; crop them first where that matters")


def _check_one_width(options: dict[str, Any]) -> None:
    """Refuse several widths beside ``--auto-bits``, which chooses bits for good. Raises UsageError."""
    from ..quantization.methods import METHODS

    method = METHODS.get(str(options.get("method")))
    if {**(method.options if method else {}), **options}.get("matryoshka"):
        raise UsageError(
            "--auto-bits chooses the bits of every layer now, and --matryoshka leaves them to be chosen at export",
            "leave one out",
        )


def show_choice(choice: BitChoice, output: Output) -> None:
    """The layers that were raised, and what is predicted of the network."""
    raised = sorted((layer for layer in choice.layers if layer.raised), key=lambda layer: -layer.error_share)
    rows = [(layer.layer, f"{layer.error_share:.1%}") for layer in raised[:_SHOWN_LAYERS]]
    output.table(
        f"raised to 8 bits: {len(raised)} of {len(choice.layers)} layers, the most harmful first", ("layer", "share of error"), rows
    )
    if choice.groups:
        columns = ("group", "judged by", "raised", "share of its error", "SNR of that", "none raised", "all raised")
        output.table("groups of layers, and what each is judged by", columns, [_group_row(group) for group in choice.groups])
    for note in choice.notes:
        output.note(note)
    output.note(
        f"weights {choice.weights_bytes / 1e6:.3g} MB ({choice.weights_bytes / choice.float_bytes:.3f} × float32); predicted SNR "
        f"{choice.snr_db:.1f} dB ({choice.snr_db_lowest:.1f} with none raised, {choice.snr_db_highest:.1f} with all), before distillation"
    )


def _group_row(group: GroupChoice) -> tuple[str, ...]:
    snr = (f"{value:.1f} dB" for value in (group.snr_db, group.snr_db_lowest, group.snr_db_highest))
    return group.group, group.judged_by, f"{group.raised} of {group.layers}", f"{group.error_share:.1%}", *snr


def show_checkpoint(checkpoint: Artifact[CheckpointDetails], output: Output, choice: BitChoice | None = None) -> None:
    """What was quantized, and what it cost."""
    from ..artifacts.details import snr_span
    from ..artifacts.held_out import parted

    details = checkpoint.details
    blocks = details.distillation
    rows: list[tuple[str, object]] = [
        ("quantized layers", len(details.layers)),
        ("multiply-accumulates in float", f"{details.float_mac_share:.2%}"),
    ]
    rows += choice_rows(checkpoint)
    snr = details.snr_db
    if blocks:
        rows += [
            ("SNR before distillation", snr_span(snr["before_distillation"])),
            ("SNR after distillation", snr_span(snr["after_distillation"])),
            ("blocks improved", f"{sum(block.after < block.before for block in blocks)} of {len(blocks)}"),
        ]
    else:
        rows.append(("SNR against the float model", snr_span(snr["after_distillation"])))
    if details.kept_state:
        rows.append(("kept of distillation", details.kept_state.summary))
    if details.rounding:
        rows.append((f"weights rounded {details.rounded_as}", details.rounding_summary))
    if details.final_error:
        rows.append(("SNR of the final sample", details.final_error.summary))
    rows += [(one.name, one.summary) for one in details.widths]
    for size in details.calibrated_sizes:
        rows.append((f"SNR at {size}" + ("" if size.calibrated else ", which was not calibrated"), snr_span(size.snr_db)))
    output.table(str(checkpoint.path), ("", ""), rows)
    if wide := [record.layer for record in details.rounding or () if record.parts > 1]:
        output.note(f"too many inputs to be rounded as one, and rounded in parts: {', '.join(wide)}")
    if apart := parted(snr, checkpoint.manifest.timesteps):
        output.warn(apart.message(checkpoint.manifest.quantization or {}))
    output.data({"checkpoint": checkpoint.path, "manifest": checkpoint.manifest.model_dump(), **_choice_json(choice)})


def _choice_json(choice: BitChoice | None) -> dict[str, Any]:
    return {} if choice is None else {"auto_bits": choice.model_dump()}


def show_budget(budget: Budget, config: QuantizeConfig, output: Output, choice: BitChoice | None = None) -> None:
    """What a run would do and take."""
    from ..quantization.methods import METHODS

    method = METHODS[config.method]
    off = [what for name, (value, what) in _TURNED_OFF.items() if getattr(config, name) == value != method.options.get(name)]
    described = [("name", f"{method.title} ({method.paper})"), ("the method", method.summary)]
    described += [("turned off by options", ", ".join(off))] if off else []
    output.table("method", ("", ""), [*described, *_options(config)])
    for limit in method.limits:
        output.note(limit)
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
        ("calibration inputs", f"{budget.samples:,} ({config.calibration_samples} samples at {config.steps} timesteps)"),
        *((f"disk: {name}", f"{size / 1e6:.1f} MB") for name, size in budget.disk_bytes.items()),
        *((f"memory: {name}", f"{size / 1e6:.1f} MB") for name, size in budget.memory_bytes.items()),
        *((f"time: {name}", _duration(seconds)) for name, seconds in budget.seconds.items()),
    ]
    output.table("estimate", ("", ""), totals)
    if budget.refused is not None:
        output.warn(f"quantize would not begin: {budget.refused}")
    output.note("times are extrapolated from a few passes measured now; memory comes on top of the loaded model; nothing was written")
    output.data({**asdict(budget), "options": config.model_dump(mode="json"), **_choice_json(choice)})


def _options(config: QuantizeConfig) -> list[tuple[str, str]]:
    """Every option that is not at its default."""
    defaults = type(config)().model_dump(mode="json")
    return [(name, str(value)) for name, value in config.model_dump(mode="json").items() if value != defaults[name] and name != "method"]


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"
