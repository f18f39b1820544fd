"""``dq-deploy build-engine``: the command, and what it prints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..console import Output
from .completion import compute_capabilities, lint_rules
from .headings import OUTPUT, HeadedCommand
from .options import PATH, EngineChoice, common, engine_options, force_option, output_folder, size_range

if TYPE_CHECKING:
    from ..artifacts import Artifact
    from ..artifacts.details import EngineDetails
    from ..engines.layer_report import LayerReport

_SHOWN_LAYERS = 5


_HEADINGS = {
    "What to build for": "--backend --compute-capability --hardware-compatibility --version-compatible",
    "Sizes": "--batch --height --width --picture-tokens --tokens --profile",
    "The build": "--optimization-level --workspace-mb --weight-streaming --int8-kernels --timing-cache --allow --timeout",
    "Output": OUTPUT,
}


@click.command("build-engine", cls=HeadedCommand, headings=_HEADINGS, short_help="Compile a bundle with TensorRT(-RTX) or OpenVINO.")
@click.argument("bundle", type=PATH)
@output_folder("engine")
@click.option(
    "--backend",
    type=EngineChoice("builders"),
    required=True,
    help="tensorrt-rtx builds without a GPU; tensorrt needs the GPU it is for; openvino is for CPUs.",
)
@click.option(
    "--compute-capability",
    "capabilities",
    multiple=True,
    shell_complete=compute_capabilities,
    help="GPU generation: 8.6 RTX 30, 8.9 RTX 40, 12.0 RTX 50; repeatable (tensorrt-rtx only).  [default: 8.9 and 12.0]",
)
@click.option(
    "--batch",
    metavar="MIN,OPT,MAX",
    help="Batch sizes: the smallest, the usual, the largest.  [default: 1,1,8; 1,2,8 where guidance was calibrated]",
)
@engine_options
@click.option(
    "--profile",
    "profiles",
    multiple=True,
    metavar="'NAME=MIN,OPT,MAX ...'",
    help="A profile with kernels of its own, repeatable: 'batch=1,2,2 height=64,64,96'; what it does not name is as the options above have "
    "it. A run takes the nearest (tensorrt, tensorrt-rtx).  [default: one, of the options above]",
)
@click.option(
    "--allow",
    multiple=True,
    metavar="RULE",
    shell_complete=lint_rules,
    help="Build although the graph breaks this lint rule (docs/lint.md); repeatable.",
)
@click.option("--timeout", "timeout_s", type=float, metavar="SECONDS", help="Time limit of one build, in seconds.  [default: none]")
@force_option
@common
def build_engine(bundle: Path, destination: Path, capabilities: tuple[str, ...], batch: str | None, profiles: tuple[str, ...],
                 engine_options: dict[str, Any], force: bool, output: Output, **options: Any) -> None:  # fmt: skip
    """Compile BUNDLE with TensorRT, TensorRT-RTX or OpenVINO, and report what every layer runs in.

    The graph is linted first (see check --lint); an error ends the command with exit code 3 before anything is built. --allow RULE lets one
    rule's errors pass, where you know better or want to see; the engine's manifest says so.
    """
    from ..engines.build.engine import build_engine as run_build
    from ..engines.build.engine import load_report
    from ..engines.build.profiles import parse_profile

    artifact = run_build(
        bundle, destination, compute_capabilities=capabilities or None, batch=None if batch is None else size_range(batch, "--batch"),
        profiles=[parse_profile(text) for text in profiles], warn=output.warn, force=force, progress=output.progress, **options,
        **engine_options,
    )  # fmt: skip
    show_engine(artifact, load_report(artifact), output)


def show_engine(engine: Artifact[EngineDetails], made: Sequence[LayerReport], output: Output) -> None:
    """The layer report of every compute capability, in figures; warns of each planned layer that does not run in its planned format."""
    from ..engines.layer_report import formats_in_words, undocumented

    reports = [report.summary() for report in made]
    attentions = any(report["attentions"] for report in reports)
    planned = any(report["planned_layers"] for report in reports)  # none of a float network
    rows = [
        (
            report["compute_capability"] or "CPU",
            *([f"{report['as_planned']} of {report['planned_layers']}"] if planned else []),
            counts(report["conv_by_precision"]),
            counts(report["gemm_by_precision"]),
            *([f"{report['attentions_fused']} of {report['attentions']}"] if attentions else []),
            report["kernels"],
            f"{report['weights_bytes'] / 1e6:.2f} MB",
        )
        for report in reports
    ]
    formats = formats_in_words(reports[0]["planned_formats"])
    title = ("attentions in one kernel",) if attentions else ()
    planned_in = (f"planned layers in {formats}",) if planned else ()
    columns = ("built for", *planned_in, "convs", "GEMMs", *title, "kernels", "weights")
    output.table(str(engine.path), columns, rows)
    for line in profile_lines(engine):
        output.note(line)
    not_as_planned = {name: planned for report in reports for name, planned in report["not_as_planned"].items()}
    reasons = {name: reason for report in reports for name, reason in report["reasons"].items()}
    for name in sorted(not_as_planned)[:_SHOWN_LAYERS]:
        output.warn(f"layer {name} does not run in {not_as_planned[name].upper()}: {reasons[name]}")
    if len(not_as_planned) > _SHOWN_LAYERS:
        output.warn(f"and {len(not_as_planned) - _SHOWN_LAYERS} more layers (--format json has them all)")
    for line in _split_attentions(reports):
        output.note(line)
    built_on = engine.details.built_on
    if built_on and built_on.int8_saturates and not_as_planned:
        output.note("OpenVINO's INT8 kernels saturate on this CPU, which has no VNNI: see --int8-kernels")
    for sentence in undocumented(made, built_on.instructions if built_on else None):
        output.note(sentence)
    output.text(reports[0]["statement"])
    output.data({"engine": engine.path, "reports": reports})


def profile_lines(engine: Artifact[EngineDetails]) -> list[str]:
    """Of an engine of several profiles what they are, and what runs in those that its layer report is not of."""
    from ..engines.build.profiles import in_words

    lines = [f"profile {number}: {in_words(profile)}" for number, profile in enumerate(engine.details.profiles, 1)]
    for entry in engine.details.engines:
        for number, other in enumerate(entry.further_profiles, 2):
            planned = f", {other.as_planned} of {other.planned_layers} layers as planned" if other.planned_layers else ""
            lines.append(
                f"profile {number} for {entry.compute_capability}: {other.kernels} kernels{planned}; layers are those of profile 1"
            )
    return lines


def _split_attentions(reports: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each reason why attentions are not one kernel."""
    names: dict[str, dict[str, None]] = {}
    for report in reports:
        for name, reason in report["attentions_split"].items():
            names.setdefault(reason, {})[name] = None
    return [f"{_first(list(of))}: attention is not one kernel: {reason}" for reason, of in names.items()]


def _first(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN_LAYERS
    return ", ".join(names[:_SHOWN_LAYERS]) + (f" and {more} more" if more > 0 else "")


def counts(by_precision: dict[str, int]) -> str:
    """How many layers each precision has, in words."""
    return ", ".join(f"{count} {precision}" for precision, count in by_precision.items()) or "none"
