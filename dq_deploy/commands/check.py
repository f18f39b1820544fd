"""``dq-deploy check``: the command, and what it prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import click

from ..console import Output
from .options import PATH, common, engines_option

if TYPE_CHECKING:
    from ..accuracy import CheckResult
    from ..accuracy.bisect import Bisection
    from ..accuracy.end_to_end import TimestepParity
    from ..accuracy.error_sources import LayerSource
    from ..artifacts.final_error import StepCost
    from ..exporters.lint import LintResult

_SHOWN_LAYERS = 5
_SHOWN_SOURCES = 8


@click.command(short_help="Compare a bundle or an engine with its checkpoint.")
@click.argument("path", type=PATH)
@click.option(
    "--checkpoint",
    "checkpoints",
    type=PATH,
    multiple=True,
    help="The checkpoint that PATH was exported or built from; repeatable, for the members of a schedule.",
)
@engines_option("Compare a bundle end to end on these engines too; repeatable. A built engine is compared on its own.")
@click.option(
    "--min-snr", type=click.FloatRange(min=0), metavar="DB", help="Fail timesteps whose SNR against the float model is below this."
)
@click.option("--bisect", "bisects", is_flag=True, help="Find the first layer and timestep that go wrong, and what more bits would buy.")
@click.option("--lint", "lints", is_flag=True, help="Look for what an engine would refuse, crash on or run in float; runs nothing.")
@common
def check(path: Path, checkpoints: tuple[Path, ...], engines: tuple[Any, ...], min_snr: float | None, bisects: bool, lints: bool,
          output: Output) -> None:  # fmt: skip
    """Judge PATH (a bundle, an engine or a schedule) against its checkpoint, or a bundle's graph alone, with --lint.

    A bundle is compared layer by layer and end to end, in ONNX Runtime as its graph is written, and then on every --engine end to end; an
    engine end to end where it runs, with the precision that it computes in: a fast engine that changes the pictures is found out. A
    schedule is compared as it takes turns, each timestep with the checkpoint of the member that runs it.

    Local: each layer gets the reference's recorded input; codes must be equal (one step on 0.01% at the most, or on 3 of a few thousand)
    and outputs within 1e-5.
    The float parts between layers get zeros, tiny, large and one-sided values too, so that a lost epsilon is seen.
    End to end: SNR against the float model, at every calibrated timestep, within 0.5 dB of the PyTorch quantized forward's (3 dB where
    the float part is fp16 or bf16, which has an error of its own) and what chance makes of so few samples, and --min-snr if you give it.
    Exit code 6 when anything fails.

    Which step matters is another question than which is wrong, and nothing is judged by it: a table has what each step's error costs the
    final sample, as measured when the checkpoint was made (docs/accuracy.md).

    --bisect, for bundles, answers two questions. Where did a failed comparison go wrong: the graph is cut after layer upon layer and run
    again. And which layers make the checkpoint's own error at its worst timestep, and what would 8 bits, or float, buy there.

    --lint names every pattern in the graph that is known to crash an engine's builder, to be refused, to lose INT8 or to be slow;
    PATH may then be any ONNX file, judged as for TensorRT. Exit code 3 on errors, 0 on warnings. With --checkpoint too, the lint comes
    first, and its errors end the command.
    """
    compares = {"--engine": engines, "--min-snr": min_snr is not None, "--bisect": bisects}
    if not checkpoints and any(compares.values()):
        given = next(name for name, value in compares.items() if value)
        raise click.UsageError(f"{given} compares with a checkpoint: give --checkpoint CHECKPOINT", click.get_current_context())
    if not checkpoints and not lints:
        raise click.UsageError("give --checkpoint CHECKPOINT to check against, --lint, or both", click.get_current_context())
    findings = None
    if lints:
        from ..exporters.lint import lint

        findings = lint(path)
        show_lint(findings, output, last=not checkpoints or not findings)
        findings.enforce()
    if checkpoints:
        from ..accuracy import check as run_check

        result = run_check(path, checkpoints, engines=engines, min_snr=min_snr, bisect=bisects, progress=output.progress)
        show_check(result, output, findings)
        result.enforce()


def show_sizes(result: CheckResult, output: Output) -> None:
    """The worst timestep at each size where sizes are free."""
    if not result.sizes:
        return
    rows = [
        (at.size, "yes" if at.calibrated else "no: between", on or "bundle", f"{at.worst_db(on):.2f}", "FAILED" if at.failures else "ok")
        for at in result.sizes
        for on in at.timesteps
    ]
    output.table(f"other sizes than {result.size}", ("height x width", "calibrated", "on", "worst dB", ""), rows)


def show_lint(result: LintResult, output: Output, *, last: bool) -> None:
    """Every finding, errors first. ``last``: nothing else is shown after it, so it is the command's JSON too."""
    rows = [(f.severity, f.rule, f.node, f.module or "", f.message, f.hint) for f in result.findings]
    if rows:
        output.table(f"{result.source} for {result.target}", ("", "rule", "node", "module", "what", "what to do"), rows)
    errors, warnings = len(result.errors), len(result.warnings)
    output.text(f"lint for {result.target}: {'passed' if result else 'FAILED'}, {errors} errors, {warnings} warnings")
    if last:
        output.data(_lint_json(result))


def _lint_json(result: LintResult) -> dict[str, Any]:
    return {**result.model_dump(), "passed": bool(result), "errors": len(result.errors), "warnings": len(result.warnings)}


def show_check(result: CheckResult, output: Output, lint: LintResult | None = None) -> None:
    """Every timestep, the worst layers, and the verdict; the JSON holds the lint's findings too where there are any."""
    if result.timesteps:
        title = f"{result.bundle} against the float model (SNR)"
        show_timesteps(title, ("PyTorch dB", "bundle dB", "optimized dB"), result.timesteps, output)
    for engine in result.engines:
        title = f"{result.bundle} on {engine.engine} against the float model (SNR)"
        show_timesteps(title, ("PyTorch dB", "engine dB"), engine.timesteps, output)
        if "precision" in engine.details:
            output.text(f"{engine.engine} computes what is not INT8 in {engine.details['precision']}" + _about_integers(engine.details))
    show_sizes(result, output)
    worst = sorted(result.layers, key=lambda row: -row.severity)[:_SHOWN_LAYERS]
    layer_rows = [
        (
            row.layer,
            f"{row.code_fraction:.4%}",
            f"{row.code_step:g}",
            f"{row.output_error:.1e}",
            f"{row.worst_timestep:g}",
            "ok" if row.passed else "FAILED",
        )
        for row in worst
    ]
    title = f"{len(result.layers)} layers, the worst {len(worst)}"
    if worst:
        output.table(title, ("layer", "codes differ", "by", "output error", "timestep", ""), layer_rows)
    layer, timestep = result.worst_layer, result.worst_timestep
    if result.final_error:
        show_final_error(result, output)
    if result.bisection:
        show_bisection(result.bisection, output)
    verdict = "passed" if result else f"FAILED ({len(result.failures)} findings)"
    where = [f"worst layer {layer.layer}"] if layer and (layer.code_mismatches or not layer.passed) else []
    where += ["every layer's codes are equal"] if layer and not where else []
    where += [f"worst timestep {timestep.timestep:g}"] if timestep else []
    output.text("; ".join([verdict, ", ".join(where) or "nothing was compared"]))
    if result and (quality := _quality(result)):
        output.text(f"it computes what its checkpoint does. Of that, {quality} (dq-deploy sample draws both)")
    output.data(
        {
            **result.model_dump(),
            "passed": bool(result),
            "worst_layer": layer.layer if layer else None,
            "worst_timestep": timestep.timestep if timestep else None,
            **({} if lint is None else {"lint": _lint_json(lint)}),
        }
    )


def _quality(result: CheckResult) -> str:
    """How near the checkpoint comes to the float model: its final sample, or else its outputs; empty where nothing of it is known."""
    if result.final_error and result.final_error.quality:
        return result.final_error.quality
    found = [row.snr_reference_db for row in result.shown_timesteps if row.snr_reference_db is not None]
    return f"the median step has {median(found):.1f} dB of SNR against the float model, the worst {min(found):.1f}" if found else ""


def show_timesteps(title: str, columns: tuple[str, ...], rows: Sequence[TimestepParity], output: Output) -> None:
    """A line for each, of a schedule with the member that runs it; ``columns`` are those of SNRs."""
    members = ("member",) if any(row.member for row in rows) else ()
    columns += ("frames dB",) if any(row.snr_frames_db is not None for row in rows) else ()
    shown = [_timestep_row(row, columns, members=bool(members)) for row in rows]
    output.table(title, ("timestep", *members, *columns, "error to float", "error to PyTorch", ""), shown)


def show_final_error(result: CheckResult, output: Output) -> None:
    """What each step's error costs the final sample, beside what it is, and where values are clipped."""
    from ..artifacts.final_error import most_clipped

    found = result.final_error
    assert found is not None
    snr = {row.timestep: row.snr_reference_db for row in result.shown_timesteps}
    if found.steps:
        members = ("member",) if any(step.member for step in found.steps) else ()
        whole = "each by its member's checkpoint" if members else f"{_db(found.all_db)} dB with every step quantized"
        title = f"cost to the final sample (seeds: {found.seeds}, in PyTorch): {whole}"
        columns = ("timestep", *members, "SNR dB", "share of the error", "final dB, only it quantized")
        columns += () if members else ("all but it quantized",)
        output.table(title, columns, [_cost_row(step, snr) for step in found.steps])
    else:
        output.text(f"cost of each step to the final sample: {found.summary}")
    if result.clipped:
        output.text(f"clipped on held-out samples: {most_clipped(result.clipped, list(snr))}")


def _cost_row(step: StepCost, snr: Mapping[float, float | None]) -> tuple[str, ...]:
    own = min((found for t in step.timesteps if (found := snr.get(t)) is not None), default=None)
    share = "" if step.share is None else f"{step.share:.1%}"
    if step.member:  # what is left without it depends on the other members
        return step.span, step.member, _db(own), share, _db(step.only_db)
    return step.span, _db(own), share, _db(step.only_db), _db(step.without_db)


def _db(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def show_bisection(found: Bisection, output: Output) -> None:
    """Where each failed comparison went wrong, and the layers that cost most."""
    for row in found.divergences:
        where = f"layer {row.layer}" if row.layer else "what follows the last layers"
        error = "" if row.error is None else f": error {row.error:.1e} of its output (" + (
            "it reads no other)" if row.before is None else f"{row.before:.1e} of what it reads)"
        )  # fmt: skip
        output.text(f"{row.engine} goes wrong at timestep {row.timestep:g} in {where}{error}; {row.allowed:.1e} would pass")
    for node in found.nodes:
        output.text(f"the graph goes wrong before {node.value}, in what PyTorch computes as {node.node or 'unknown'}")
    sources = found.sources
    if sources is None:
        output.text(f"which layers make the error is not known: {found.no_sources}")
        return
    shown = sources.worst[:_SHOWN_SOURCES]
    title = f"error at timestep {sources.timestep:g}, {sources.snr_db:.2f} dB: the worst {len(shown)} of {len(sources.layers)} layers"
    output.table(title, ("layer", "bits", "share", "output dB", "with 8 bits", "in float"), [_source_row(row) for row in shown])
    if sources.first_below:
        output.text(f"the first layer whose output is below: {sources.first_below}")
    raised = next((row for row in shown if row.raised_db is not None), None)
    if raised:
        output.text(f'to try it: dq-deploy quantize … --keep "{raised.layer}=8"; --auto-bits chooses among all layers under a budget')


def _source_row(row: LayerSource) -> tuple[str, ...]:
    from ..artifacts.layer_bits import bits_name

    bits = bits_name(row.weight_bits, row.activation_bits, row.format)
    raised = "" if row.raised_db is None else f"{row.raised_db:.2f} dB"
    return (
        row.layer,
        bits,
        f"{row.error_share:.1%}",
        "" if row.output_db is None else f"{row.output_db:.2f}",
        raised,
        f"{row.float_db:.2f} dB",
    )


def _timestep_row(row: TimestepParity, columns: tuple[str, ...], *, members: bool) -> tuple[str, ...]:
    who = (row.member or "",) if members else ()
    further = {"optimized dB": row.snr_optimized_db, "frames dB": row.snr_frames_db}
    quick = tuple(_db(value) for name, value in further.items() if name in columns)
    to_pytorch = "" if row.snr_reference_db is None else f"{row.error_reference:.1e}"
    found = (f"{row.timestep:g}", *who, _db(row.snr_reference_db), f"{row.snr_bundle_db:.2f}", *quick)
    return *found, f"{row.error_float:.1e}", to_pytorch, "ok" if row.passed else "FAILED"


def _about_integers(details: Mapping[str, Any]) -> str:
    return ", and quantized layers on INT8 kernels" if details.get("integer") else ", and quantized layers in float, exactly"
