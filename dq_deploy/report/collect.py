"""From artefacts to the page's data: what their manifests say, and what is measured for the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..accuracy.check import CheckResult, check
from ..accuracy.layer_error import LayerErrors, layer_errors
from ..artifacts import Artifact
from ..artifacts.details import BundleDetails, CheckpointDetails, EngineDetails, GraphDetails
from ..artifacts.held_out import parted
from ..artifacts.layer_bits import bits_in_words, layer_bits
from ..artifacts.scale_tables import read_tables
from ..engines.bench import BenchResult, Contender, bench, contenders_from
from ..errors import ArtifactError, EnvironmentProblem, UsageError
from ..formats import of_bits
from ..progress import Progress, silent
from ..quantization.checkpoint import Checkpoint, load_checkpoint
from ..quantization.choices import Dilation
from ..sampling.request import Drawing
from .artifacts import ReportedArtifacts
from .data import (
    ArtifactRow,
    CheckRow,
    DilationRow,
    Fact,
    Layer,
    Pictures,
    ReportData,
    ScheduleRow,
    SnrSeries,
)
from .engine_rows import engine_rows, precisions
from .headlines import headlines
from .pictures import other_row, page_pictures
from .recipe import commands, report_command
from .request import ReportRequest, Timing

Note = Callable[[str], None]


def collect(
    artifacts: ReportedArtifacts, request: ReportRequest, *, progress: Progress = silent, note: Note = lambda _: None
) -> ReportData:
    """Everything on the page. What cannot be measured here is left out, and said to ``note`` and on the page.

    Raises UsageError and ArtifactError as the measurements do: settings that make no sense, damaged contents.
    """
    notes: list[str] = []

    def left_out(reason: str) -> None:
        notes.append(reason)
        note(reason)

    if request.timing:
        _check_timing(artifacts, request.timing)
    # First, for they refuse settings that make no sense.
    pictures = _pictures(artifacts, request.drawing, progress, left_out) if request.drawing else None
    checkpoint = load_checkpoint(artifacts.checkpoint.path)
    errors = _layer_errors(checkpoint, request, progress, left_out)
    checks = _checks(artifacts, progress, left_out) if request.check else []
    latency = _latency(artifacts, request.timing, progress, left_out) if request.timing else None
    manifest, details = artifacts.checkpoint.manifest, checkpoint.details
    if apart := parted(details.snr_db, manifest.timesteps):
        left_out(f"Held-out samples part from those calibrated on: {apart.message(manifest.quantization or {})}.")
    data = ReportData(
        title=manifest.model,
        subtitle=_subtitle(artifacts.checkpoint),
        summary=[Fact(label=one.name, value=one.summary) for one in details.widths],
        pictures=pictures,
        timesteps=manifest.timesteps,
        layers=_layers(artifacts, errors),
        float_layers=details.float_layers,
        error_samples=errors.samples if errors else 0,
        activation_db=errors.activation_db if errors else {},
        clipped=details.clipped or {},
        clipped_known=details.clipped is not None,
        tables=read_tables(artifacts.checkpoint),
        final_error=details.final_error,
        snr=_series(details, manifest.timesteps, checks, _bits_by_path(artifacts.bundles)),
        checks=[_check_row(result) for result in checks],
        schedules=[_schedule_row(result) for result in checks if any(row.member for row in result.shown_timesteps)],
        distillation=details.distillation,
        kept_state=details.kept_state,
        dilation=dilation_rows(checkpoint),
        dilation_rules=details.dilation_rule.mean_snr_db,
        latency=latency,
        engines=engine_rows(artifacts),
        artifacts=[_artifact(member) for member in artifacts.members],
        options=manifest.quantization or {},
        notes=notes,
        commands=[*_commands(artifacts), report_command([member.path for member in artifacts.members], request)],
        versions=_versions(artifacts.members),
    )
    return data.model_copy(update={"headlines": headlines(data)})


_SCALES = {
    "auto": "a scale for each token where that measured better, and elsewhere for each of {} timesteps",
    "per-timestep": "a scale for each of {} timesteps",
    "per-token": "a scale for each token, and elsewhere for each of {} timesteps",
    "static": "static scales",
}


def _subtitle(checkpoint: Artifact[CheckpointDetails]) -> str:
    manifest, (most, *_) = checkpoint.manifest, layer_bits(checkpoint)
    options = manifest.quantization or {}
    scaled, kind = of_bits(most.activation_bits).integer, f" ({most.format.upper()})" if most.format else ""
    activations = f"{most.activation_bits}-bit activations{kind}" if scaled else "float activations"
    others = (bits_in_words(checkpoint) or "").partition(", ")[2]
    tables = _SCALES[manifest.activations].format(len(manifest.timesteps))
    trained = f"{options['iterations']} distillation steps a block" if checkpoint.details.distillation else "not distilled"
    codes = f"codes {checkpoint.details.rounded_as}" if checkpoint.details.rounding else "nearest codes"
    bits = f"{most.weight_bits}-bit weights, {activations}" + (f" ({others})" if others else "")
    turned = [f"{checkpoint.details.rotated} rotated"] if checkpoint.details.rotation else []
    branches = [f"low-rank branches of {manifest.low_rank} beside linear layers"] if checkpoint.details.branched else []
    return ", ".join([bits, codes, tables, *turned, *branches, trained])


def _layer_errors(checkpoint: Checkpoint, request: ReportRequest, progress: Progress, left_out: Note) -> LayerErrors | None:
    if not request.layer_error:
        return None
    errors = layer_errors(checkpoint, progress=progress)
    if errors.no_output:
        left_out(f"No error of the layers' outputs: {errors.no_output}.")
    return errors


def _layers(artifacts: ReportedArtifacts, errors: LayerErrors | None) -> list[Layer]:
    by_engine = precisions(artifacts)
    return [
        Layer(
            name=layer.name,
            op=layer.op,
            macs=layer.macs,
            weight_bits=layer.weight_bits,
            activation_bits=layer.activation_bits,
            format=layer.format,
            quantizers=layer.quantizers,
            output_db=errors.output_db.get(layer.name) if errors else None,
            precisions={engine: found[layer.name][0] for engine, found in by_engine.items() if layer.name in found},
            reasons={engine: why for engine, found in by_engine.items() if (why := found.get(layer.name, ("", None))[1])},
        )
        for layer in artifacts.checkpoint.details.layers
    ]


def _bits_by_path(bundles: Sequence[Artifact[BundleDetails]]) -> dict[str, str]:
    """In words, of bundles whose weights have a width of their own."""
    return {str(bundle.path): bits_in_words(bundle) or "" for bundle in bundles if bundle.details.width}


def _series(details: CheckpointDetails, timesteps: list[float], checks: Sequence[CheckResult],
            bits: Mapping[str, str]) -> list[SnrSeries]:  # fmt: skip
    """Of the network and of each bundle; ``bits`` as ``_bits_by_path`` has them."""
    snr = details.snr_db
    series = [SnrSeries(name="PyTorch, quantized", timesteps=timesteps, snr_db=snr["after_distillation"], role="reference")]
    if details.distillation:
        series.insert(0, SnrSeries(name="before distillation", timesteps=timesteps, snr_db=snr["before_distillation"], role="before"))
    for size in details.calibrated_sizes[1:]:  # the first is what is there already
        name = f"PyTorch, {size}" + ("" if size.calibrated else ", not calibrated")
        if len(size.snr_db) == len(timesteps):
            series.append(SnrSeries(name=name, timesteps=timesteps, snr_db=list(size.snr_db)))
    for result in checks:
        rows = {row.timestep: row.snr_bundle_db for row in result.shown_timesteps}
        width = f" ({found})" if (found := bits.get(result.bundle)) else ""
        name = Path(result.bundle).resolve().name + width
        series.append(SnrSeries(name=name, timesteps=timesteps, snr_db=[rows.get(t) for t in timesteps]))
    return series


def _schedule_row(result: CheckResult) -> ScheduleRow:
    rows = result.shown_timesteps
    return ScheduleRow(
        name=Path(result.bundle).resolve().name,
        timesteps=[row.timestep for row in rows],
        members=[row.member or "" for row in rows],
        snr_db=[row.snr_bundle_db for row in rows],
        only_db=[_only_db(result, row.timestep) for row in rows],
    )


def _only_db(result: CheckResult, timestep: float) -> float | None:
    """What the final sample has with only this step quantized, by the checkpoint of the member that runs it; None: float, or not known."""
    steps = result.final_error.steps if result.final_error else []
    return next((step.only_db for step in steps if timestep in step.timesteps), None)


def _check_row(result: CheckResult) -> CheckRow:
    rows = [row for row in result.shown_timesteps if row.snr_reference_db is not None]
    differences = [row.difference_db for row in rows]
    return CheckRow(
        bundle=Path(result.bundle).resolve().name,
        target=result.target,
        dtype=result.dtype,
        passed=bool(result),
        layers=len(result.layers),
        timesteps=len(result.shown_timesteps),
        allowed_db=round(max((row.allowed_db for row in rows), default=0.0), 2),
        largest_difference_db=max(differences, default=None),
        worst_layer=result.worst_layer.layer if result.worst_layer else None,
        failures=result.failures,
    )


def dilation_rows(checkpoint: Checkpoint) -> list[DilationRow]:
    """What each activation's dilation did; nothing where none was tried."""
    quantizers = checkpoint.quantizers
    if (checkpoint.artifact.manifest.quantization or {}).get("dilation") == Dilation.NONE:
        return []
    return [
        DilationRow(
            rule=record.choice,
            largest_s=float(quantizers[record.quantizer].dilation.max()),
            **record.model_dump(include={"quantizer", "unsaturated_share", "dilated_share", "range_ratio", "error_ratio", "folded_into"}),
        )
        for record in checkpoint.details.dilation
    ]


def _pictures(artifacts: ReportedArtifacts, drawing: Drawing, progress: Progress, left_out: Note) -> Pictures | None:
    """Drawn by the first schedule, or the first bundle that ONNX Runtime can run and those of other widths, or by the checkpoint."""
    from ..sampling import draw, not_drawable

    bundles = [bundle for bundle in artifacts.bundles if bundle.details.dtype != "bf16"]
    artifact: Artifact = next(iter([*artifacts.schedules, *bundles]), artifacts.checkpoint)
    if reason := not_drawable(artifact, drawing):
        left_out(f"No pictures: {reason}.")
        return None
    alone = replace(drawing, compare_float=False)
    try:
        drawn = draw(artifact, drawing, progress=progress)
    except (UsageError, ArtifactError) as error:
        drawn = draw(artifact, alone, progress=progress)  # fails again if the settings are wrong
        left_out(f"No pictures of the float model: {error.message}.")
    others = [] if artifacts.schedules else _of_other_widths(bundles)
    further = [other_row(draw(bundle, alone, progress=progress), bundle, drawn.expected) for bundle in others]
    return page_pictures(drawn, artifact, drawing.seed, further)


def _of_other_widths(bundles: Sequence[Artifact[BundleDetails]]) -> list[Artifact[BundleDetails]]:
    """A bundle for each width of the weights but that of the first: those of one width draw the same."""
    found: dict[str, Artifact[BundleDetails]] = {}
    for bundle in bundles:
        found.setdefault(str(bundle.details.width or 8), bundle)  # without a width: with all bits
    return list(found.values())[1:]


def _checks(artifacts: ReportedArtifacts, progress: Progress, left_out: Note) -> list[CheckResult]:
    results = []
    judged = [(bundle, [artifacts.checkpoint]) for bundle in artifacts.bundles]
    for artifact, checkpoints in [*judged, *((one, artifacts.checkpoints_of(one)) for one in artifacts.schedules)]:
        try:
            results.append(check(artifact, checkpoints, progress=progress))
        except EnvironmentProblem as error:
            left_out(f"{artifact.path.resolve().name} was not checked: {error.message}.")
    return results


def _check_timing(artifacts: ReportedArtifacts, timing: Timing) -> None:
    """What the timing would refuse, before anything long is done. Raises UsageError."""
    timed = [str(artifact.path) for artifact in artifacts.runnable]
    problems = [] if timed else ["there is no bundle and no engine to time"]
    problems += [f"batch size {batch} is below 1" for batch in timing.batches if batch < 1]
    problems += [f"runs is {timing.runs}, and at least 1 is needed"] if timing.runs < 1 else []
    if timing.baseline is not None and str(timing.baseline) not in timed:
        problems.append(f"the baseline {timing.baseline} is not among what is timed: {', '.join(timed) or 'nothing'}")
    if problems:
        raise UsageError("; ".join(problems))


def _latency(artifacts: ReportedArtifacts, timing: Timing, progress: Progress, left_out: Note) -> BenchResult | None:
    contenders: list[Contender] = []
    for artifact in artifacts.runnable:
        try:
            contenders += contenders_from([artifact])
        except EnvironmentProblem as error:
            left_out(f"{artifact.path.resolve().name} was not timed: {error.message}.")
    if not contenders:
        left_out("No latency: nothing that was given can run here.")
        return None
    baseline = None if timing.baseline is None else str(timing.baseline)
    return bench(contenders, batches=timing.batches, runs=timing.runs, baseline=baseline, progress=progress)


def _artifact(artifact: Artifact) -> ArtifactRow:
    details = artifact.details
    graph = details if isinstance(details, GraphDetails) else None
    words: list[str] = [graph.target, graph.dtype] if graph else []
    words += [details.backend] if isinstance(details, EngineDetails) else []
    words += ["float"] if graph and graph.float else []
    words += [bits_in_words(artifact) or "float"] if artifact.members or (graph and graph.width) else []
    return ArtifactRow(
        name=artifact.path.resolve().name,
        kind=artifact.manifest.kind,
        what=", ".join(words),
        is_float=graph is not None and graph.float,
        bytes=sum(entry.size for entry in artifact.manifest.files.values()),
        manifest_sha256=artifact.as_parent.manifest_sha256,
        tools=artifact.manifest.tools,
    )


def _commands(artifacts: ReportedArtifacts) -> list[str]:
    made = [line for checkpoint in (artifacts.checkpoint, *artifacts.others) for line in commands(checkpoint)]
    for bundle in (*artifacts.bundles, *artifacts.floats):
        made += commands(bundle, artifacts.checkpoint)
    for engine in artifacts.engines:
        made += commands(engine, artifacts.bundle_of(engine))
    for schedule in artifacts.schedules:
        made += commands(schedule)
    return made


def _versions(members: Sequence[Artifact]) -> dict[str, str]:
    """Each tool's version; several where artefacts were made with several."""
    found: dict[str, list[str]] = {}
    for member in members:
        for name, version in member.manifest.tools.items():
            found.setdefault(name, []).append(version)
    return {name: ", ".join(dict.fromkeys(versions)) for name, versions in found.items()}
