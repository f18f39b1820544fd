"""``dq-deploy check``: the command, and what it prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..console import Output
from .options import common

if TYPE_CHECKING:
    from ..accuracy import CheckResult
    from ..exporters.lint import LintResult

_SHOWN_LAYERS = 5


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--checkpoint", type=click.Path(path_type=Path), help="The checkpoint that the bundle was exported from.")
@click.option("--lint", "lints", is_flag=True, help="Look for what an engine would refuse, crash on or run in float; runs nothing.")
@common
def check(bundle: Path, checkpoint: Path | None, lints: bool, output: Output) -> None:
    """Judge BUNDLE against its checkpoint: layer by layer, and end to end at every calibrated timestep; or its graph alone, with --lint.

    Local: each layer gets the reference's recorded input; codes must be equal (one step on 0.01% at the most) and outputs within 1e-5.
    End to end: SNR against the float model within 0.5 dB of the PyTorch quantized forward's (3 dB
    in fp16 and bf16 bundles, whose float part has an error of its own). Exit code 6 when either fails.

    --lint names every pattern in the graph that is known to crash an engine's builder, to be refused, to lose INT8 or to be slow;
    BUNDLE may then be any ONNX file, judged as for TensorRT. Exit code 3 on errors, 0 on warnings. With --checkpoint too, the lint comes
    first, and its errors end the command.
    """
    if checkpoint is None and not lints:
        raise click.UsageError("give --checkpoint CHECKPOINT to check against, --lint, or both", click.get_current_context())
    findings = None
    if lints:
        from ..exporters.lint import lint

        findings = lint(bundle)
        show_lint(findings, output, last=checkpoint is None or not findings)
        findings.enforce()
    if checkpoint is not None:
        from ..accuracy import check as run_check

        result = run_check(bundle, checkpoint, progress=output.progress)
        show_check(result, output, findings)
        result.enforce()


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
    rows = [
        (
            f"{row.timestep:g}",
            f"{row.snr_reference_db:.2f}",
            f"{row.snr_bundle_db:.2f}",
            "" if row.snr_optimized_db is None else f"{row.snr_optimized_db:.2f}",
            f"{row.error_float:.1e}",
            f"{row.error_reference:.1e}",
            "ok" if row.passed else "FAILED",
        )
        for row in result.timesteps
    ]
    columns = ("timestep", "PyTorch dB", "bundle dB", "optimized dB", "error to float", "error to PyTorch", "")
    output.table(f"{result.bundle} against the float model (SNR)", columns, rows)
    worst = sorted(result.layers, key=lambda row: -row.severity)[:_SHOWN_LAYERS]
    layer_rows = [
        (
            row.layer,
            f"{row.code_share:.4%}",
            f"{row.code_step:g}",
            f"{row.output_error:.1e}",
            f"{row.worst_timestep:g}",
            "ok" if row.passed else "FAILED",
        )
        for row in worst
    ]
    title = f"{len(result.layers)} layers, the worst {len(worst)}"
    output.table(title, ("layer", "codes differ", "by", "output error", "timestep", ""), layer_rows)
    layer, timestep = result.worst_layer, result.worst_timestep
    verdict = "passed" if result else f"FAILED ({len(result.failures)} findings)"
    where = [f"worst layer {layer.layer}"] if layer else []
    where += [f"worst timestep {timestep.timestep:g}"] if timestep else []
    output.text("; ".join([verdict, ", ".join(where) or "nothing was compared"]))
    output.data(
        {
            **result.model_dump(),
            "passed": bool(result),
            "worst_layer": layer.layer if layer else None,
            "worst_timestep": timestep.timestep if timestep else None,
            **({} if lint is None else {"lint": _lint_json(lint)}),
        }
    )
