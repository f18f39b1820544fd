"""What each command prints of its result: tables for people, one JSON object for machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from .artifacts import Artifact
from .console import Output
from .errors import EnvironmentProblem

if TYPE_CHECKING:
    from .accuracy import CheckResult
    from .artifacts.scale_tables import ScaleTable
    from .demo import DemoResult
    from .doctor import Diagnosis
    from .engines.bench import BenchResult, BenchRow
    from .engines.layer_compare import LayerComparison
    from .exporters.lint import LintResult
    from .quantization import Budget
    from .sampling import SampleResult

_SHOWN_LAYERS = 5


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


def show_bundle(bundle: Artifact, output: Output) -> None:
    """What was exported."""
    details = bundle.manifest.details
    size = sum(entry.size for entry in bundle.manifest.files.values())
    packed = sum(layer.get("weight_storage") == "int4" for layer in details["layers"])
    rows = [
        ("target", details["target"]),
        ("dtype", details["dtype"]),
        ("quantized layers", len(details["layers"])),
        *([("weights in INT4", f"{packed} layers")] if packed else []),
        ("size", f"{size / 1e6:.2f} MB"),
    ]
    output.table(str(bundle.path), ("", ""), rows)
    output.data({"bundle": bundle.path, "manifest": bundle.manifest.model_dump()})


def show_engine(engine: Artifact, reports: Sequence[dict[str, Any]], output: Output) -> None:
    """The layer report of every compute capability, in figures; warns of each planned layer that does not run in INT8."""
    rows = [
        (
            report["compute_capability"] or "CPU",
            f"{report['planned_int8']} of {report['planned_layers']}",
            _counts(report["conv_by_precision"]),
            _counts(report["gemm_by_precision"]),
            report["kernels"],
            f"{report['weights_bytes'] / 1e6:.2f} MB",
        )
        for report in reports
    ]
    output.table(str(engine.path), ("built for", "planned layers in INT8", "convs", "GEMMs", "kernels", "weights"), rows)
    amiss = sorted({name for report in reports for name in [*report["not_int8"], *report["not_found"]]})
    reasons = {name: reason for report in reports for name, reason in report["reasons"].items()}
    for name in amiss[:_SHOWN_LAYERS]:
        output.warn(f"layer {name} does not run in INT8: {reasons[name]}")
    if len(amiss) > _SHOWN_LAYERS:
        output.warn(f"and {len(amiss) - _SHOWN_LAYERS} more layers (--format json has them all)")
    if engine.manifest.details.get("built_on", {}).get("int8_saturates"):
        output.note("OpenVINO's INT8 kernels saturate on this CPU, which has no VNNI: see --int8-kernels")
    output.text(reports[0]["statement"])
    output.data({"engine": engine.path, "reports": reports})


def _counts(by_precision: dict[str, int]) -> str:
    return ", ".join(f"{count} {precision}" for precision, count in by_precision.items()) or "none"


def show_layers(comparisons: Sequence[LayerComparison], output: Output) -> None:
    """Both builds in figures, then every convolution and matrix product that is not INT8, with the reason; the JSON has all of them."""
    for comparison in comparisons:
        ours, theirs = comparison.totals, comparison.baseline
        device = ours.compute_capability or "CPU"
        rows = [
            (title, pick(ours), *([pick(theirs)] if theirs else []))
            for title, pick in (
                ("convs", lambda totals: _counts(totals.conv_by_precision)),
                ("GEMMs", lambda totals: _counts(totals.gemm_by_precision)),
                ("kernels", lambda totals: totals.kernels),
                ("kernels by type", lambda totals: ", ".join(f"{count} {kind}" for kind, count in totals.kernels_by_type.items())),
                ("weights", lambda totals: f"{totals.weights_bytes / 1e6:.2f} MB"),
            )
        ]
        output.table(f"{ours.backend} for {device}", ("", "engine", *(["baseline"] if theirs else [])), rows)
        amiss = [layer for layer in comparison.layers if layer.precision != "int8"]
        if amiss:
            columns = ("not in INT8", "op", "precision", *(["baseline"] if theirs else []), "why")
            shown = [(n.name, n.op, n.precision or "not found", *([n.baseline_precision or ""] if theirs else []), n.reason) for n in amiss]
            output.table(f"{len(amiss)} of {len(comparison.layers)} products are not INT8", columns, shown)
        if comparison.weights_ratio is not None:
            output.text(f"weights: {comparison.weights_ratio:.3f} × the baseline's")
        output.text(ours.statement)
    output.data({"comparisons": [comparison.to_json() for comparison in comparisons]})


def show_triton(repository: Artifact, output: Output) -> None:
    """What Triton will make of the repository."""
    details = repository.manifest.details
    rows = [
        ("model", details["name"]),
        ("backend", details["backend"]),
        ("largest batch", details["max_batch_size"] or "one request at a time"),
        ("requests share a batch", "yes, at any timesteps" if details["dynamic_batching"] else "no: one timestep for a whole batch"),
        ("instances on", details["kind"]),
    ]
    output.table(str(repository.path), ("", ""), rows)
    if details["backend"] == "onnxruntime":
        output.note(
            "on an x86 CPU without VNNI Triton's ONNX Runtime sums INT8 products in 16 bits, which saturate: prefer an engine there"
        )
    output.data({"repository": repository.path, "manifest": repository.manifest.model_dump()})


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


_BENCH_COLUMNS = ("contender", "batch", "median ms", "p90 ms", "IQR ms", "time ratio", "95% interval", "")
_DEVICE_COLUMNS = ("contender", "batch", "device median ms", "device p90 ms", "roofline ms")


def show_bench(result: BenchResult, output: Output) -> None:
    """Every contender at every batch size."""
    output.table(f"latency, against {result.baseline}", _BENCH_COLUMNS, [_bench_row(row) for row in result.rows])
    on_device = [row for row in result.rows if row.device_median_ms is not None]
    if on_device:
        shown = [(row.contender, row.batch, *map(_ms, (row.device_median_ms, row.device_p90_ms, row.floor_ms))) for row in on_device]
        output.table("time on the GPU alone", _DEVICE_COLUMNS, shown)
    for note in result.notes:
        output.note(note)
    output.data(result.to_json())


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _bench_row(row: BenchRow) -> tuple[object, ...]:
    return (
        row.contender,
        row.batch,
        f"{row.median_ms:.2f}",
        f"{row.p90_ms:.2f}",
        f"{row.iqr_ms:.2f}",
        f"{row.ratio:.2f}",
        f"{row.ratio_low:.2f}–{row.ratio_high:.2f}",
        "within the noise" if row.within_noise else "",
    )


def show_sample(result: SampleResult, picture: Path, output: Output) -> None:
    """What was drawn, and how close it is."""
    rows: list[tuple[str, object]] = [("pictures", result.n), ("engine", result.engine)]
    if result.psnr_mean_db is not None:
        rows.append(("PSNR against float", f"mean {result.psnr_mean_db:.1f} dB, worst {result.psnr_min_db:.1f} dB"))
    output.table(str(picture), ("", ""), rows)
    output.data(result.to_json())


def show_artifact(artifact: Artifact, found: Mapping[str, ScaleTable], output: Output, *, in_full: bool) -> None:
    """What the manifest says, that the files are those it lists, and the scale tables: a line each, or ``in_full`` every row."""
    manifest = artifact.manifest
    rows: list[tuple[str, object]] = [("kind", manifest.kind), ("model", manifest.model), ("schema version", manifest.schema_version)]
    rows += [("calibrated timesteps", ", ".join(f"{t:g}" for t in manifest.timesteps))]
    rows += [(key, manifest.details[key]) for key in ("target", "dtype", "backend", "float_mac_share") if key in manifest.details]
    if manifest.quantization:
        rows += [("weight bits", manifest.quantization["weight_bits"]), ("activation bits", manifest.quantization["activation_bits"])]
    rows += [(f"file {name}", f"{entry.size} bytes, sha256 verified") for name, entry in manifest.files.items()]
    rows += [(f"made with {name}", version) for name, version in manifest.tools.items()]
    output.table(str(artifact.path), ("", ""), rows)
    if in_full:
        for name, table in found.items():
            lines = zip(table.timesteps, table.scales, table.zero_points, strict=True)
            full = [(f"{timestep:g}", f"{scale:.6g}", str(zero_point)) for timestep, scale, zero_point in lines]
            output.table(name, ("timestep", "scale", "zero-point"), full)
    elif found:
        columns = ("quantizer", "rows", "scale: min", "max", "first", "last", "zero-point: min", "max")
        output.table("scale tables, first and last by timestep", columns, [_table_row(name, table) for name, table in found.items()])
    output.data({**manifest.model_dump(), "scale_tables": {name: _table_json(table, in_full=in_full) for name, table in found.items()}})


def _table_row(name: str, table: ScaleTable) -> tuple[object, ...]:
    summary = table.summary()
    scales = (f"{summary['scale'][key]:.4g}" for key in ("min", "max", "first", "last"))
    return name, summary["rows"], *scales, *(summary["zero_point"][key] for key in ("min", "max"))


def _table_json(table: ScaleTable, *, in_full: bool) -> dict[str, Any]:
    return {**table.summary(), **(table.model_dump() if in_full else {})}


def show_demo(result: DemoResult, output: Output) -> None:
    """The measured figures beside the wanted ones."""
    marks = {None: "", True: "ok", False: "MISSED"}
    output.table("demo", ("", "measured", "wanted", ""), [(f.label, f.value, f.wanted, marks[f.passed]) for f in result.facts])
    output.text(f"page: {result.page}")
    output.data({"page": result.page, "facts": [f.model_dump() for f in result.facts]})


def show_diagnosis(diagnosis: Diagnosis, output: Output) -> None:
    """Every finding, then what mends what is wrong or absent. Raises EnvironmentProblem when something is wrong."""
    rows = [(f.state, f.name, f.found, f.meaning) for f in diagnosis.findings]
    output.table("what is installed", ("", "what", "found", ""), rows)
    for finding in diagnosis.findings:
        if finding.mend:
            output.text(f"{finding.name}: {finding.mend}")
    output.data({**diagnosis.model_dump(), "passed": bool(diagnosis)})
    if diagnosis.wrong:
        names = ", ".join(f"{f.name} ({f.found})" for f in diagnosis.wrong)
        raise EnvironmentProblem(f"{len(diagnosis.wrong)} wrong: {names}", next((f.mend for f in diagnosis.wrong if f.mend), None))
    output.text("nothing is wrong")
