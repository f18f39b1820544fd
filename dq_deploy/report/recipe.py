"""The commands that make an artefact again, from what its manifest says."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..artifacts import Artifact, Manifest
from ..artifacts.details import PICTURE_KINDS, BundleDetails, CheckpointDetails, EngineDetails, RefitRecord, ScheduleDetails
from ..artifacts.origin import is_path, source_name
from ..engines.build.options import flag
from ..engines.descriptors.registry import builder_named
from ..engines.loading.engine_files import range_words
from ..exporters.again import export_options
from ..formats.presets import NAMED_BY, preset_of
from ..quantization.config import QuantizeConfig
from ..quantization.methods import DILATEQUANT
from ..sampling.request import Drawing
from .request import ReportRequest

_DRAWING_FLAGS = (
    "n",
    "seed",
    "steps",
    "prompts",
    "negative_prompt",
    "image",
    "mask",
    "control_image",
    "ip_adapter_image",
    "strength",
    "classes",
    "guidance_scale",
    "runtime",
)
# Options of a quantization that are flags of the command line; the others go into a file.
_FLAGS = (
    "activations",
    "rotation",
    "low_rank",
    "steps",
    "iterations",
    "dilation",
    "rounding",
    "calibration_samples",
    "batch_size",
    "seed",
    "guidance_scale",
    "sampler",
)


def commands(artifact: Artifact, parent: Artifact | None = None) -> list[str]:
    """The commands that make an artefact from ``parent`` (a checkpoint from its source), with folders by their names alone.

    What a manifest does not hold stays a placeholder in capitals: a model in memory, prompts, a LoRA's file.
    """
    manifest, name = artifact.manifest, artifact.path.resolve().name
    details = artifact.details
    if isinstance(details, CheckpointDetails) and details.refit:
        return [_line("refit", "CHECKPOINT", "-o", name, *_refit_flags(details, details.refit))]
    if isinstance(details, CheckpointDetails):
        flags, unflagged = _quantize_flags(manifest, details)
        made = _line("quantize", _source(details), "-o", name, *flags)
        if not unflagged:
            return [made]
        return [f"echo {shlex.quote(json.dumps(unflagged, sort_keys=True))} > options.json", f"{made} --config options.json"]
    if isinstance(details, BundleDetails):
        return [_line("export", parent.path.resolve().name if parent else "CHECKPOINT", "-o", name, *_export_flags(details))]
    if isinstance(details, ScheduleDetails):
        switches = [word for switch in details.switches for word in ("--switch", f"{switch:g}")]
        return [_line("combine", *(entry.name for entry in details.members), *switches, "-o", name)]
    assert isinstance(details, EngineDetails)
    return [_line("build-engine", parent.path.resolve().name if parent else "BUNDLE", "-o", name, *_build_flags(details))]


def _source(details: CheckpointDetails) -> str:
    """What to type for the source: where its folder lay is nobody else's business."""
    if details.source is None:
        return "SOURCE"
    name = source_name(details.source)
    return f"path/to/{name}" if is_path(details.source) else name


def report_command(paths: Sequence[Path], request: ReportRequest) -> str:
    """The command that writes the page, into report.html."""
    flags: list[str] = []
    if request.drawing is None:
        flags.append("--no-samples")
    else:
        default = Drawing()
        for name in _DRAWING_FLAGS:
            value = getattr(request.drawing, name)
            if name in PICTURE_KINDS and value:
                flag = f"--{name.replace('_', '-')}"
                flags += [word for path in value for word in (flag, str(path) if isinstance(path, str | Path) else name.upper())]
            elif value != getattr(default, name):
                text = str(value) if isinstance(value, str | int | float | Path) else ",".join(map(str, value))
                text = "prompts.txt" if name == "prompts" and not isinstance(value, str | Path) else text  # they came as a list
                flags += ["-n" if name == "n" else f"--{name.replace('_', '-')}", text]
    flags += [] if request.layer_error else ["--no-layer-error"]
    flags += [] if request.check else ["--no-check"]
    if request.timing:
        flags += ["--bench", "--batch", ",".join(map(str, request.timing.batches)), "--runs", str(request.timing.runs)]
        flags += ["--baseline", request.timing.baseline.resolve().name] if request.timing.baseline else []
    return _line("report", *(path.resolve().name for path in paths), "-o", "report.html", *flags)


def _line(*words: str) -> str:
    return shlex.join(["dq-deploy", *words])


_LISTS: dict[str, Callable[[Any], str]] = {"matryoshka": str, "sizes": lambda size: "x".join(map(str, size)), "tokens": str}
"""Options whose flags take several values, and how each is written."""


def _written(changed: dict[str, Any]) -> list[str]:
    """The flags of those options that have one, which are taken out of ``changed``."""
    flags: list[str] = []
    for option in _FLAGS:
        if option in changed:
            flags += [f"--{option.replace('_', '-')}", str(changed.pop(option))]
    for option, written in _LISTS.items():
        if option in changed:
            flags += [f"--{option}", ",".join(map(written, changed.pop(option)))]
    return flags


def _quantize_flags(manifest: Manifest, details: CheckpointDetails) -> tuple[list[str], dict[str, Any]]:
    """The flags, and the options that have none."""
    options = {name: value for name, value in (manifest.quantization or {}).items() if name != "temporal"}
    options["activations"] = manifest.activations
    method, preset = options.get("method", DILATEQUANT.name), preset_of(options)
    # With what the preset and the method fill in by themselves.
    own = {} if preset else {name: options[name] for name in ("weight_bits", "activation_bits")}
    defaults = QuantizeConfig.build(preset or "w8a8", method=method, **own).model_dump(mode="json")
    bits = [str(options[name]) for name in ("weight_bits", "activation_bits")]
    flags = ["--preset", preset] if preset else ["--weight-bits", bits[0], "--activation-bits", bits[1]]
    flags += ["--method", method] if method != DILATEQUANT.name else []
    named = NAMED_BY if preset else ("weight_bits", "activation_bits")
    changed = {k: v for k, v in options.items() if k not in (*named, "keep") and v != defaults.get(k)}
    flags += _written(changed)
    for pattern, value in options["keep"].items():
        if defaults["keep"].get(pattern) != value:
            flags += ["--keep", f"{pattern}={value}"]
    if details.calibration.classes:
        flags += ["--classes", ",".join(map(str, details.calibration.classes))]
    if details.calibration.prompts:
        flags += ["--prompts", "PROMPTS"]
    if details.calibration.negative_prompt is not None:
        flags += ["--negative-prompt", details.calibration.negative_prompt]
    drawn = details.picture_size
    edges = ("height", "width") if not any(size.size for size in details.calibrated_sizes) else ()  # else --sizes has them
    flags += [word for name in edges if name in drawn for word in (flag(name), str(drawn[name]))]
    flags += ["--frames", str(drawn["num_frames"])] if "num_frames" in drawn else []
    if details.pictures:
        flags += [word for kind in details.pictures.kinds for word in (f"--{kind.replace('_', '-')}", kind.upper())]
        flags += ["--strength", str(details.pictures.strength)] if details.pictures.strength is not None else []
    for name in ("controlnet", "pipeline"):
        if details.source and getattr(details.source, name):
            flags += [f"--{name}", name.upper()]
    adapter = details.source.ip_adapter if details.source else None
    flags += ["--ip-adapter", "IP_ADAPTER", "--ip-adapter-scale", str(adapter.scale)] if adapter else []
    return [*flags, *_lora_flags(details)], changed


def _lora_flags(details: CheckpointDetails) -> list[str]:
    lora = details.source.lora if details.source else None
    return [] if lora is None else ["--lora", "LORA", "--lora-scale", str(lora.scale)]


def _refit_flags(details: CheckpointDetails, refit: RefitRecord) -> list[str]:
    """From the checkpoint that was refitted, which the manifest has the hash of alone."""
    flags = _lora_flags(details) + (["--source", _source(details)] if refit.new_source else [])
    flags += [] if refit.ip_adapter_scale is None else ["--ip-adapter-scale", f"{refit.ip_adapter_scale:g}"]
    return [*(flags or ["--no-lora"]), *(["--rounding", refit.rounding] if refit.rounding else [])]


def _export_flags(details: BundleDetails) -> list[str]:
    flags: list[str] = []
    for name, value in export_options(details).items():
        flags += [flag(name)] if value is True else [flag(name), str(value)]
    return flags


def _build_flags(details: EngineDetails) -> list[str]:
    flags = ["--backend", details.backend]
    if builder_named(details.backend).building.compute_capabilities:
        flags += [word for capability in details.capabilities for word in ("--compute-capability", capability)]
    flags += range_words(details)
    for name, value in details.options.items():
        flags += [f"--{name.replace('_', '-')}"] if value is True else [f"--{name.replace('_', '-')}", str(value)]
    return flags
