"""Bundle → engine: checks and the lint first, then one child process for each device, then the layer reports and the manifest.

An engine folder holds its file and its layer report, with the compute capability in their names where it is built for some:
``model.smXY.engine`` and ``layers.smXY.json``; OpenVINO's IR is ``model.xml`` and ``model.bin``, beside ``layers.cpu.json``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from ...artifacts import Artifact, Manifest, check_output, create_artifact, open_artifact
from ...artifacts.details import BundleDetails, EngineDetails, FurtherProfile
from ...artifacts.layer_bits import layer_bits
from ...artifacts.reading import read_record
from ...artifacts.writing import write_text
from ...errors import ArtifactError, EnvironmentProblem, UsageError
from ...exporters.lint import check_allowed, consequences, lint
from ...progress import Advance, Progress, silent
from ..descriptors.descriptor import Builder, EngineDescriptor
from ..descriptors.registry import DEFAULT_BUILDER, builder_named
from ..layer_report import LayerReport, build_report
from ..running.lookup_tables import entries_in_onnx
from .options import BuildOptions
from .plan import check_capabilities, check_formats, check_graph, default_batch, input_profile, output_spec
from .prepared_graph import PreparedGraph, prepare
from .process import BuilderCrash, run_child
from .profiles import BATCH, Profile, Range, envelope, whole_profiles
from .request import BuildRequest, ShapeRange

# Carried over, so that an engine folder can be run without its bundle.
_FROM_BUNDLE = (
    "component", "pipeline_class", "model_config", "sample_shape", "picture_size", "pictures", "call", "inputs", "output", "source",
    "target", "dtype", "float", "attention", "width", "width_choice", "weight_storage", "refit_of", "free", "calibrated_sizes",
    "samples_per_image",
)  # fmt: skip


@dataclass(frozen=True)
class _Job:
    """What the builds of one engine folder share."""

    bundle: Artifact[BundleDetails]
    engine: EngineDescriptor
    profiles: list[dict[str, ShapeRange]]
    options: BuildOptions
    timeout_s: float | None
    allowed: dict[str, int]
    about: dict[str, Any]
    graph: PreparedGraph


def build_engine(
    bundle: str | Path | Artifact,
    output: str | Path,
    *,
    backend: str = DEFAULT_BUILDER.name,
    compute_capabilities: Sequence[str] | None = None,
    batch: Range | None = None,
    sizes: Mapping[str, Range] | None = None,
    profiles: Sequence[Profile] = (),
    force: bool = False,
    timeout_s: float | None = None,
    allow: Sequence[str] = (),
    warn: Callable[[str], None] = lambda _: None,
    progress: Progress | None = None,
    **options: Any,
) -> Artifact[EngineDetails]:
    """Compile a ``tensorrt`` bundle into engines, one for each compute capability ("8.9" and "12.0" by default for TensorRT-RTX).

    ``batch`` and ``sizes`` (by name of the dynamic dimension, such as "height") are the (min, opt, max) of the optimization profile. The
    batch is (1, 1, 8) by default, and (1, 2, 8) where the model was calibrated with guidance, whose halves are one batch. A dimension that
    was calibrated at several sizes has their range by default, and the first as opt.
    ``profiles``, each with ranges by name ("batch" and others) in the place of those, are several of one engine (profiles.py).
    OpenVINO takes shapes from min to max, and its report shows the kernels that it chooses at opt. ``options`` are those of BuildOptions;
    ``timeout_s`` limits each build. Everything is checked before the first build starts, the graph by the lint too; ``output`` appears only
    when all succeeded. Errors of the lint's rules in ``allow`` pass: ``warn`` gets what they are about, and the manifest records them.

    Raises UsageError (options, existing output), ArtifactError (no bundle of that target, a graph with errors of the lint, or one that the
    builder refuses or crashes on), EnvironmentProblem (backend missing or not loading), ResourceError (memory, disk, time limit).
    """
    source = open_artifact(bundle.path if isinstance(bundle, Artifact) else bundle, "bundle")
    engine = builder_named(backend)
    _check_target(source, engine.building.target)
    if timeout_s is not None and not timeout_s > 0:
        raise UsageError(f"the time limit of a build is {timeout_s} s, and it must be above 0")
    engine.check()
    asked = BuildOptions.build(backend, **options)
    target = engine.building.target
    allow = check_allowed(allow, target)
    capabilities = check_capabilities(engine, compute_capabilities)
    check_formats(engine, source, capabilities)
    if profiles and not engine.building.profiles:
        raise UsageError(f"an engine of {engine.title} has no profiles", "leave --profile out; --batch and the sizes have MIN and MAX")
    whole = whole_profiles(source.details, batch or default_batch(source.details), sizes or {}, profiles)
    inputs = source.details.inputs
    shapes = [input_profile(inputs, ranges[BATCH], {k: v for k, v in ranges.items() if k != BATCH}) for ranges in whole]
    check_output(Path(output), force=force, source=source.path)
    graph = check_graph(source)
    allowed = lint(source, target=target).enforce(allow)
    for line in consequences(allow, allowed):
        warn(line)
    about = resolve_name(engine.building.details)(source) if engine.building.details else {}
    job = _Job(source, engine, shapes, asked, timeout_s, allowed, about, prepare(engine.building, source, graph, capabilities))
    manifest = _manifest(job, _ranges(whole))
    manifest.details |= {"output_spec": output_spec(graph), "rows": entries_in_onnx(graph)}
    title = f"building with {backend}"
    with create_artifact(output, manifest, force=force) as folder, (progress or silent)(title, len(capabilities)) as advance:
        for capability in capabilities:
            report, further = _build_one(job, folder, capability, advance)
            manifest.details["version"] = report.version
            manifest.details["engines"].append({**_entry(engine.building, report), **further})
            advance(1, f"compute capability {report.compute_capability}" if report.compute_capability else "CPU")
    return open_artifact(output, "engine")


def load_report(engine: str | Path | Artifact[EngineDetails]) -> list[LayerReport]:
    """The layer reports of an engine folder, one for each compute capability. Raises ArtifactError when one is not valid."""
    artifact = engine if isinstance(engine, Artifact) else open_artifact(engine, "engine")
    reports = []
    for entry in artifact.details.engines:
        path = artifact.file(entry.report)
        reports.append(read_record(path, LayerReport, "a layer report", hint="build the engine again"))
    return reports


def _check_target(bundle: Artifact[BundleDetails], required: str) -> None:
    target = bundle.details.target
    if target != required:
        raise ArtifactError(
            f"{bundle.path} was exported for target '{target}', and engines take scales that are known when they are built",
            f"export it again with: dq-deploy export CHECKPOINT -o BUNDLE --target {required}",
        )


def _ranges(profiles: Sequence[Profile]) -> dict[str, Any]:
    """What the manifest says of what the engine takes."""
    together, *each = ({name: list(values) for name, values in ranges.items()} for ranges in (envelope(profiles), *profiles))
    return {"batch": together.pop(BATCH), "sizes": together, **({"profiles": each} if len(each) > 1 else {})}


def _manifest(job: _Job, shapes: Mapping[str, Any]) -> Manifest:
    origin = job.bundle.manifest
    details: dict[str, Any] = {key: origin.details[key] for key in _FROM_BUNDLE if key in origin.details}
    details |= {
        "backend": job.engine.name,
        "statement": job.engine.building.statement,
        "engines": [],
        "profile": {name: [list(shape) for shape in ranges] for name, ranges in job.profiles[0].items()},
        "bundle": str(job.bundle.path),
        "checkpoint_sha256": origin.parent.manifest_sha256 if origin.parent else None,
        "options": job.options.asked(),
        "lint_allowed": job.allowed,
        "float_attention": job.graph.float_attention,
        "layer_bits": [row.model_dump() for row in layer_bits(job.bundle)],
        **shapes,
        **job.about,
    }
    return Manifest(
        kind="engine",
        model=origin.model,
        parent=job.bundle.as_parent,
        quantization=origin.quantization,
        scheduler=origin.scheduler,
        timesteps=origin.timesteps,
        details=details,
    )


def _build_one(job: _Job, folder: Path, capability: tuple[int, int] | None, advance: Advance) -> tuple[LayerReport, dict[str, Any]]:
    """The report of the first profile, and what the manifest says of the others."""
    # The engine is written where it will stay, on the output's disk; which GPU it is for may be known only afterwards.
    builder = job.engine.building
    plan = folder / builder.file
    with tempfile.TemporaryDirectory(prefix="dq-deploy-build-") as scratch, job.graph.file() as graph, _as_was_said(job.allowed):
        request = BuildRequest(
            backend=job.engine.name,
            onnx=str(graph),
            plan=str(plan.absolute()),
            result=str(Path(scratch) / "result.json"),
            compute_capability=capability,
            profiles=job.profiles,
            options=job.options.asked(),
            about=job.about,
        )
        build = run_child(request, Path(scratch), timeout_s=job.timeout_s, alive=lambda: advance(0, "compiling"))
    dump = build.result.dump or (resolve_name(builder.kernels)(build.log) if builder.kernels else None)
    if dump is None:
        raise EnvironmentProblem(
            f"{job.engine.name} {build.result.version} printed no kernel list that can be read", "try another version of it"
        )
    found = build.result.compute_capability
    details = job.bundle.details
    report, *others = (
        build_report(
            dump.of_profile(number),
            backend=job.engine.name,
            version=build.result.version,
            compute_capability=f"{found[0]}.{found[1]}" if found else None,
            planned=details.layers,
            float_layers=details.float_layers,
            dtype=details.dtype,
            integer=build.result.integer,
            attentions=job.graph.attentions,
        )
        for number in range(len(job.profiles))
    )
    names = _file_names(builder, report)
    plan.rename(folder / names["file"])
    write_text(folder / names["report"], report.to_json())
    summaries = [other.summary() for other in others]
    kept = [{key: summary[key] for key in FurtherProfile.model_fields} for summary in summaries]
    return report, {"further_profiles": kept} if kept else {}


@contextmanager
def _as_was_said(allowed: Mapping[str, int]) -> Iterator[None]:
    """A crash of what the lint had named, and the user let pass, is no news."""
    try:
        yield
    except BuilderCrash as error:
        if not allowed:
            raise
        hint = f"the lint names what may crash it, and --allow lets it pass: leave out {' '.join(f'--allow {rule}' for rule in allowed)}"
        raise BuilderCrash(error.message, hint, signal=error.signal) from None


def _file_names(builder: Builder, report: LayerReport) -> dict[str, str]:
    if report.compute_capability is None:
        return {"file": builder.file, "report": "layers.cpu.json"}
    device, file = "sm" + report.compute_capability.replace(".", ""), Path(builder.file)
    return {"file": f"{file.stem}.{device}{file.suffix}", "report": f"layers.{device}.json"}


def _entry(builder: Builder, report: LayerReport) -> dict[str, Any]:
    summary = report.summary()
    kept = (
        "weights_bytes", "kernels", "int8_share_conv", "int8_share_gemm", "planned_layers", "planned_int8", "as_planned", "attentions",
        "attentions_fused",
    )  # fmt: skip
    return {"compute_capability": report.compute_capability, **_file_names(builder, report), **{key: summary[key] for key in kept}}
