"""``dq-deploy demo``: the whole way on the built-in model, and one page that shows what came out of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

from .artifacts import Artifact, check_output
from .artifacts.details import BundleDetails, EngineDetails
from .engines.descriptors.registry import DEFAULT_BUILDER, REFERENCE
from .engines.layer_report import formats_in_words
from .errors import EnvironmentProblem, UsageError
from .exporters import export
from .progress import Progress
from .quantization import QuantizeConfig, quantize
from .report.artifacts import gather
from .report.collect import collect
from .report.data import EngineRow, Fact, ReportData
from .report.page import write_page
from .report.request import ReportRequest, Timing
from .sampling.request import Drawing

SOURCE = "builtin:fashion-mnist-unet"
_STEPS = 20
_PICTURES = 16
_RUNS = 15


@dataclass
class DemoResult:
    """What the demo measured: the page's data, and its most important figures as ``facts``."""

    page: Path
    facts: list[Fact]
    data: ReportData

    def enforce(self) -> None:
        """Raise AccuracyGateError when a bundle does not compute what its checkpoint does."""
        self.data.enforce()


@dataclass
class _Run:
    folder: Path
    iterations: int
    seed: int
    force: bool
    progress: Progress
    note: Callable[[str], None]

    def command(self, text: str) -> None:
        """Announce a step as the command that does it."""
        self.note(f"$ dq-deploy {text}")


def run_demo(folder: Path, *, iterations: int, seed: int, force: bool, progress: Progress, note: Callable[[str], None]) -> DemoResult:
    """Run every stage into ``folder`` and write ``index.html`` there, last.

    With ``force`` artefacts of an earlier demo are replaced; other files in the folder are left alone. Raises what the stages raise.
    """
    _check_before(folder, iterations, seed, force)
    started = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    run = _Run(folder, iterations, seed, force, progress, note)
    checkpoint = _quantize(run)
    bundles = _export(run)
    engines = _build(run, bundles)
    data = _report(run, [checkpoint, *bundles.values(), *engines])
    minutes = (time.monotonic() - started) / 60
    facts = [
        *_accuracy_facts(data),
        *_engine_facts(data.engines),
        *_speed_facts(data),
        Fact(label="time for all of this", value=f"{minutes:.1f} min"),
    ]
    page = folder / "index.html"
    write_page(
        page, data.model_copy(update={"title": "dq-deploy demo", "subtitle": f"{SOURCE}: {data.subtitle}", "summary": facts}), force=force
    )
    return DemoResult(page, facts, data)


def _check_before(folder: Path, iterations: int, seed: int, force: bool) -> None:
    """Everything that would stop a later stage, before the first one starts."""
    QuantizeConfig.build("w8a8", steps=_STEPS, iterations=iterations, seed=seed)
    if REFERENCE.missing():
        raise EnvironmentProblem(f"the demo checks and times its graphs in {REFERENCE.name}, which is not installed", REFERENCE.install)
    if not folder.exists():
        check_output(folder)
    elif not folder.is_dir():
        raise UsageError(f"output {folder} exists and is not a folder")
    elif not force:
        raise UsageError(f"output {folder} already exists", "choose another folder, or pass --force to replace an earlier demo")


def _quantize(run: _Run) -> Artifact:
    run.command(f"quantize {SOURCE} -o checkpoint --preset w8a8 --steps {_STEPS} --iterations {run.iterations} --seed {run.seed}")
    return quantize(
        SOURCE,
        run.folder / "checkpoint",
        preset="w8a8",
        steps=_STEPS,
        iterations=run.iterations,
        seed=run.seed,
        force=run.force,
        progress=run.progress,
    )


def _export(run: _Run) -> dict[str, Artifact[BundleDetails]]:
    bundles = {}
    for name, target, dtype, is_float in (
        ("qdq", "qdq", "fp32", False),
        ("qdq-fp16", "qdq", "fp16", False),
        ("onnxruntime", "onnxruntime", "fp32", False),
        ("float", "qdq", "fp32", True),
        ("float-fp16", "qdq", "fp16", True),
    ):
        run.command(f"export checkpoint -o {name} --target {target} --dtype {dtype}{' --float' if is_float else ''}")
        bundles[name] = export(
            run.folder / "checkpoint", run.folder / name, target=target, dtype=dtype, float=is_float, force=run.force, progress=run.progress  # type: ignore[arg-type]
        )  # fmt: skip
    return bundles


def _build(run: _Run, bundles: dict[str, Artifact[BundleDetails]]) -> list[Artifact[EngineDetails]]:
    """The quantized engine and the float one in fp16, as a GPU would run it; nothing where their builder is not installed."""
    if DEFAULT_BUILDER.missing():
        run.note(f"{DEFAULT_BUILDER.title} is not installed, so no engine is built: {DEFAULT_BUILDER.install}")
        return []
    from .engines.build.engine import build_engine

    engines = []
    for name, bundle in (("engine", "qdq-fp16"), ("engine-float-fp16", "float-fp16")):
        run.command(f"build-engine {bundle} -o {name} --backend {DEFAULT_BUILDER.name} --compute-capability 8.9 --compute-capability 12.0")
        engines.append(
            build_engine(
                bundles[bundle],
                run.folder / name,
                backend=DEFAULT_BUILDER.name,
                compute_capabilities=["8.9", "12.0"],
                force=run.force,
                progress=run.progress,
            )
        )
    return engines


def _report(run: _Run, members: list[Artifact]) -> ReportData:
    """Check, time, draw and measure for the page."""
    names = " ".join(member.path.name for member in members)
    run.command(f"report {names} -o index.html --seed {run.seed} --bench --batch 1,8 --runs {_RUNS}")
    timing = Timing(batches=(1, 8), runs=_RUNS, baseline=run.folder / "float")
    request = ReportRequest(drawing=Drawing(n=_PICTURES, seed=run.seed), timing=timing)
    return collect(gather([member.path for member in members]), request, progress=run.progress, note=run.note)


def _accuracy_facts(data: ReportData) -> list[Fact]:
    facts = [
        Fact(
            label=f"parity of {row.bundle}: {row.layers} layers, {row.timesteps} timesteps",
            value="passed" if row.passed else f"failed: {row.failures[0]}",
            passed=row.passed,
        )
        for row in data.checks
    ]
    series = {one.role: [value for value in one.snr_db if value is not None] for one in data.snr}
    after, before = series["reference"], series.get("before")
    typical, worst = median(after), min(range(len(after)), key=lambda i: after[i])
    facts.append(Fact(label="SNR against the float model, median step", value=f"{typical:.1f} dB"))
    trained = f", {after[worst] - min(before):+.1f} dB by distillation" if before else ""
    facts.append(Fact(label=f"SNR at the worst step (timestep {data.timesteps[worst]:g})", value=f"{after[worst]:.1f} dB{trained}"))
    if data.kept_state and not before:
        facts.append(Fact(label="what is kept of distillation: nothing", value=data.kept_state.summary))
    blocks = data.distillation
    if blocks:
        lowered = sum(block.after < block.before for block in blocks)
        facts.append(Fact(label="blocks whose held-out loss fell", value=f"{lowered} of {len(blocks)}"))
    psnr = (data.pictures and data.pictures.psnr_db) or [0.0]
    facts.append(Fact(label=f"PSNR of {len(psnr)} images, same seeds", value=f"{mean(psnr):.1f} dB mean, {min(psnr):.1f} dB worst"))
    return facts


def _engine_facts(engines: list[EngineRow]) -> list[Fact]:
    facts = []
    for row in engines:
        formats = formats_in_words(row.planned_formats)
        how = f"layers planned in {formats} by the compiler, not run" if row.only_planned else f"planned layers in {formats}"
        facts.append(Fact(label=f"{row.name}: {how}", value=f"{row.as_planned} of {row.planned_layers}, {row.kernels} kernels"))
        for dtype, ratio in row.ratios.items():
            facts.append(Fact(label=f"{row.name}: bytes of weights, of the {dtype.upper()} engine’s", value=f"{ratio:.2f} ×"))
    return facts


def _speed_facts(data: ReportData) -> list[Fact]:
    latency = data.latency
    if latency is None:
        return []
    facts = []
    floats = {row.name for row in data.artifacts if row.is_float}
    for batch in sorted({row.batch for row in latency.rows}):
        rows = [row for row in latency.rows if row.batch == batch and Path(latency.contenders[row.contender]["path"]).name not in floats]
        best = min(rows, key=lambda row: row.ratio)
        value = f"{1 / best.ratio:.1f} × as fast as {latency.baseline} ({best.contender})"
        facts.append(Fact(label=f"fastest quantized session here, batch {batch}", value=value))
    return facts
