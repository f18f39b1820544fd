"""``dq-deploy layers``: the command, and what it prints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..console import Output, megabytes
from .build_engine import counts, profile_lines
from .options import PATH, common, force_option

if TYPE_CHECKING:
    from ..artifacts import Artifact
    from ..artifacts.details import EngineDetails
    from ..engines.layer_report.compare import LayerComparison


@click.command(short_help="What each layer of an engine runs in.")
@click.argument("engine", type=PATH)
@click.option("--compare", "baseline", type=PATH, help="Engine to compare with: for a GPU that of export --float --dtype fp16.")
@click.option("-o", "--output", "picture", type=PATH, help="SVG file for the report as a picture.")
@force_option
@common
def layers(engine: Path, baseline: Path | None, picture: Path | None, force: bool, output: Output) -> None:
    """Show what ENGINE's convolutions and matrix products run in, which are not as planned and why, its kernels and bytes of weights.

    Of a GPU's engine also how many of its attentions are one kernel, and why another is not.

    With --compare all of it beside another engine: for a GPU the one built from export --float --dtype fp16, since FP16 is what you would
    run otherwise. Needs no runtime.
    """
    from ..artifacts import open_artifact
    from ..engines.build.engine import load_report
    from ..engines.layer_report import undocumented
    from ..engines.layer_report.compare import compare

    opened = open_artifact(engine, "engine")
    beside = open_artifact(baseline, "engine") if baseline else None
    reports = load_report(opened)
    comparisons = compare(reports, load_report(beside) if beside else ())
    if picture is not None:
        from ..artifacts.output_file import check_output_file, write_whole
        from ..report.layer_plot import layer_plot
        from ..report.svg import standalone

        check_output_file(picture, ".svg", force=force)
        write_whole(picture, standalone(layer_plot(comparisons[0])))
    show_layers(comparisons, [one for one in (opened, beside) if one], output)
    for line in profile_lines(opened):
        output.note(line)
    for sentence in undocumented(reports):
        output.note(sentence)


def _deviating_title(comparison: LayerComparison, count: int) -> str:
    """How many products the table lists, and how many floats of the figures above are not among them: those of fused attentions."""
    from ..engines.descriptors.descriptor import FLOATS

    within = sum(layer.precision in FLOATS and not layer.reason for layer in comparison.layers)
    besides = f", beside {within} within attentions in one kernel" if within else ""
    return f"{count} of {len(comparison.layers)} products are in float or not as planned{besides}"


def show_layers(comparisons: Sequence[LayerComparison], engines: Sequence[Artifact[EngineDetails]], output: Output) -> None:
    """Both builds (``engines``) in figures, then every product that is in float or not as planned, and why; the JSON has all of them."""
    from ..engines.loading.engine_files import engine_bytes

    for comparison in comparisons:
        ours, theirs = comparison.totals, comparison.baseline
        device = ours.compute_capability or "CPU"
        rows = [
            (title, pick(ours), *([pick(theirs)] if theirs else []))
            for title, pick in (
                ("convs", lambda totals: counts(totals.conv_by_precision)),
                ("GEMMs", lambda totals: counts(totals.gemm_by_precision)),
                ("attentions in one kernel", lambda totals: f"{totals.attentions_fused} of {totals.attentions}"),
                ("kernels", lambda totals: totals.kernels),
                ("kernels by type", lambda totals: ", ".join(f"{count} {kind}" for kind, count in totals.kernels_by_type.items())),
                ("weights", lambda totals: megabytes(totals.weights_bytes)),
                (
                    "activations, largest batch",
                    lambda totals: megabytes(totals.activation_bytes) if totals.activation_bytes else "not known",
                ),
            )
        ]
        rows += [("file", *(megabytes(engine_bytes(engine, ours.compute_capability)) for engine in engines))]
        rows += [("not quantized", *(engine.details.dtype for engine in engines))]
        output.table(f"{ours.backend} for {device}", ("", "engine", *(["baseline"] if theirs else [])), rows)
        deviating = [layer for layer in comparison.layers if layer.reason]
        if deviating:
            columns = ("product", "op", "planned", "precision", *(["baseline"] if theirs else []), "why")
            beside = {layer.name: [layer.baseline_precision or ""] if theirs else [] for layer in deviating}
            shown = [(n.name, n.op, n.planned_format or "", n.precision or "not found", *beside[n.name], n.reason) for n in deviating]
            output.table(_deviating_title(comparison, len(deviating)), columns, shown)
        if comparison.not_fused:
            columns = ("attention", "tokens × keys", "heads × channels", "why")
            split = [(a.name, f"{a.tokens or '?'} × {a.keys or '?'}", f"{a.heads or '?'} × {a.head_size or '?'}", a.reason or "")
                     for a in comparison.not_fused]  # fmt: skip
            output.table(f"{len(split)} of {ours.attentions} attentions are not one kernel", columns, split)
        if comparison.weights_ratio is not None:
            output.text(f"weights: {comparison.weights_ratio:.2f} × the baseline's ({engines[-1].details.dtype})")
        output.text(ours.statement)
    output.data({"comparisons": [comparison.to_json() for comparison in comparisons]})
