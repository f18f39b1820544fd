"""``dq-deploy demo``: the whole way on the built-in model, and one page that shows what came out of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from .accuracy import CheckResult, check
from .artifacts import Artifact, check_output
from .engines.bench import BenchResult, bench, contenders_from
from .errors import AccuracyGateError, EnvironmentProblem, UsageError
from .exporters import export
from .progress import Progress
from .quantization import QuantizeConfig, load_checkpoint, quantize
from .report.data import BlockLoss, DilationRow, EngineRow, Fact, ReportData, ScaleTable, SnrSeries
from .report.page import write_report
from .sampling import SampleResult, sample

SOURCE = "builtin:fashion-mnist-unet"
_STEPS = 20
_PICTURES = 16
_FLOAT_GATE_DB = 30.0


@dataclass
class DemoResult:
    """What the demo measured; ``checks`` decide whether it succeeded."""

    page: Path
    facts: list[Fact]
    checks: list[CheckResult]

    def enforce(self) -> None:
        """Raise AccuracyGateError when a bundle does not compute what its checkpoint does."""
        failed = [c for c in self.checks if not c]
        if failed:
            raise AccuracyGateError("; ".join(f"{c.bundle}: {c.failures[0]}" for c in failed))


@dataclass
class _Run:
    folder: Path
    iterations: int
    seed: int
    force: bool
    progress: Progress
    note: Callable[[str], None]
    commands: list[str] = field(default_factory=list)

    def command(self, text: str) -> None:
        """Announce a step as the command that does it."""
        self.commands.append(f"dq-deploy {text}")
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
    checks = _check(run, bundles)
    engines = _build(run, bundles)
    latency = _bench(run, bundles)
    pictures = _sample(run)
    facts = [*_accuracy_facts(checkpoint, checks, pictures), *_engine_facts(engines), *_speed_facts(latency)]
    facts.append(
        Fact(label="time for all of this", value=f"{(time.monotonic() - started) / 60:.1f} min", wanted="≤ 10 min on 2 cores", passed=None)
    )
    page = write_report(folder / "index.html", _report(run, checkpoint, checks, engines, latency, facts), force=force)
    return DemoResult(page, facts, checks)


def _check_before(folder: Path, iterations: int, seed: int, force: bool) -> None:
    """Everything that would stop a later stage, before the first one starts."""
    QuantizeConfig.build("w8a8", steps=_STEPS, iterations=iterations, seed=seed)
    if find_spec("onnxruntime") is None:
        raise EnvironmentProblem(
            "the demo checks and times its graphs in onnxruntime, which is not installed", 'pip install "dq-deploy[cpu]"'
        )
    if not folder.exists():
        check_output(folder)
    elif not folder.is_dir():
        raise UsageError(f"output {folder} exists and is no folder")
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


def _export(run: _Run) -> dict[str, Artifact]:
    bundles = {}
    for name, target, dtype, is_float in (
        ("tensorrt", "tensorrt", "fp32", False),
        ("tensorrt-fp16", "tensorrt", "fp16", False),
        ("onnxruntime", "onnxruntime", "fp32", False),
        ("float", "tensorrt", "fp32", True),
    ):
        run.command(f"export checkpoint -o {name} --target {target} --dtype {dtype}{' --float' if is_float else ''}")
        bundles[name] = export(
            run.folder / "checkpoint", run.folder / name, target=target, dtype=dtype, float=is_float, force=run.force, progress=run.progress  # type: ignore[arg-type]
        )  # fmt: skip
    return bundles


def _check(run: _Run, bundles: dict[str, Artifact]) -> list[CheckResult]:
    results = []
    for name in ("tensorrt", "onnxruntime", "tensorrt-fp16"):
        run.command(f"check {name} --checkpoint checkpoint")
        results.append(check(bundles[name], run.folder / "checkpoint", progress=run.progress))
    return results


def _build(run: _Run, bundles: dict[str, Artifact]) -> list[EngineRow]:
    """Layer reports of the quantized engine beside the float one's weights; nothing where TensorRT-RTX is not installed."""
    if find_spec("tensorrt_rtx") is None:
        run.note("TensorRT-RTX is not installed, so no engine is built: pip install 'dq-deploy[tensorrt-rtx]'")
        return []
    from .engines.build import build_engine, load_report

    reports = {}
    for name, bundle in (("engine", "tensorrt-fp16"), ("engine-float", "float")):
        run.command(f"build-engine {bundle} -o {name} --backend tensorrt-rtx --compute-capability 8.9 --compute-capability 12.0")
        engine = build_engine(
            bundles[bundle],
            run.folder / name,
            backend="tensorrt-rtx",
            compute_capabilities=["8.9", "12.0"],
            force=run.force,
            progress=run.progress,
        )
        reports[name] = [report.summary() for report in load_report(engine)]
    pairs = zip(reports["engine"], reports["engine-float"], strict=True)
    return [EngineRow.from_summary(ours, float_weights_bytes=theirs["weights_bytes"]) for ours, theirs in pairs]


def _bench(run: _Run, bundles: dict[str, Artifact]) -> BenchResult:
    run.command("bench float tensorrt onnxruntime --baseline float --batch 1,8 --runs 15")
    contenders = contenders_from([bundles["float"], bundles["tensorrt"], bundles["onnxruntime"]])
    return bench(contenders, batches=(1, 8), runs=15, warmup=2, baseline=str(bundles["float"].path), progress=run.progress)


def _sample(run: _Run) -> SampleResult:
    run.command(f"sample onnxruntime -o grid.png -n {_PICTURES} --seed {run.seed}")
    return sample(run.folder / "onnxruntime", run.folder / "grid.png", n=_PICTURES, seed=run.seed, force=run.force, progress=run.progress)


def _accuracy_facts(checkpoint: Artifact, checks: list[CheckResult], pictures: SampleResult) -> list[Fact]:
    details = checkpoint.manifest.details
    before, after = details["snr_db"]["before_distillation"], details["snr_db"]["after_distillation"]
    facts = [
        Fact(
            label=f"parity of {Path(c.bundle).name}: {len(c.layers)} layers, {len(c.timesteps)} timesteps",
            value="passed" if c else f"failed: {c.failures[0]}",
            wanted=f"codes equal, outputs within 1e-5, SNR within {c.timesteps[0].allowed_db:g} dB",
            passed=bool(c),
        )
        for c in checks
    ]
    facts.append(
        Fact(
            label="SNR against the float model, median step", value=f"{median(after):.1f} dB", wanted="≥ 40 dB", passed=median(after) >= 40
        )
    )
    worst = min(range(len(after)), key=lambda i: after[i])
    gain = after[worst] - min(before)
    label = f"SNR at the worst step (timestep {checkpoint.manifest.timesteps[worst]:g})"
    facts.append(
        Fact(label=label, value=f"{after[worst]:.1f} dB, {gain:+.1f} dB by distillation", wanted="+5 dB by distillation", passed=gain >= 5)
    )
    blocks = details["distillation"]
    if blocks:
        share = sum(b["after"] < b["before"] for b in blocks) / len(blocks)
        facts.append(
            Fact(label="blocks whose held-out loss fell", value=f"{share:.0%} of {len(blocks)}", wanted="≥ 90%", passed=share >= 0.9)
        )
    mean = pictures.psnr_mean_db or 0.0
    value = f"{mean:.1f} dB mean, {pictures.psnr_min_db or 0.0:.1f} dB worst"
    facts.append(
        Fact(
            label=f"PSNR of {pictures.n} pictures, same seeds",
            value=value,
            wanted=f"≥ {_FLOAT_GATE_DB:.0f} dB mean",
            passed=mean >= _FLOAT_GATE_DB,
        )
    )
    return facts


def _engine_facts(engines: list[EngineRow]) -> list[Fact]:
    facts = []
    for row in engines:
        ratio = row.weights_bytes / (row.float_weights_bytes or row.weights_bytes)
        facts.append(
            Fact(
                label=f"{row.name}: planned layers in INT8",
                value=f"{row.planned_int8} of {row.planned_layers}, {row.kernels} kernels",
                wanted="all",
                passed=row.planned_int8 == row.planned_layers,
            )
        )
        facts.append(
            Fact(label=f"{row.name}: weights against the FP32 engine", value=f"{ratio:.3f} ×", wanted="≤ 0.30 ×", passed=ratio <= 0.30)
        )
    return facts


def _speed_facts(latency: BenchResult) -> list[Fact]:
    facts = []
    float_path = latency.contenders[latency.baseline]["path"]
    for batch in sorted({row.batch for row in latency.rows}):
        rows = [row for row in latency.rows if row.batch == batch and latency.contenders[row.contender]["path"] != float_path]
        best = min(rows, key=lambda row: row.ratio)
        value = f"{best.ratio:.2f} × the time of {latency.baseline} ({best.contender})"
        facts.append(Fact(label=f"fastest quantized session here, batch {batch}", value=value, passed=None))
    return facts


def _report(
    run: _Run, checkpoint: Artifact, checks: list[CheckResult], engines: list[EngineRow], latency: BenchResult, facts: list[Fact]
) -> ReportData:
    details = checkpoint.manifest.details
    timesteps = checkpoint.manifest.timesteps
    snr = [
        SnrSeries(name="before distillation", timesteps=timesteps, snr_db=details["snr_db"]["before_distillation"], role="before"),
        SnrSeries(name="PyTorch, distilled", timesteps=timesteps, snr_db=details["snr_db"]["after_distillation"], role="reference"),
    ]
    snr += [SnrSeries(name=Path(c.bundle).name, timesteps=timesteps, snr_db=[r.snr_bundle_db for r in c.timesteps]) for c in checks]
    return ReportData(
        title="dq-deploy demo",
        subtitle=f"{SOURCE}, W8A8, {_STEPS} timesteps, {run.iterations} distillation steps for each block",
        summary=facts,
        grid=run.folder / "grid.png",
        grid_caption="The same seeds through the diffusers DDIM pipeline: the float model, and the integer graph in ONNX Runtime.",
        snr=snr,
        tables=_tables(run.folder / "checkpoint"),
        distillation=[BlockLoss(**{k: row[k] for k in BlockLoss.model_fields}) for row in details["distillation"]],
        dilation=[
            DilationRow(quantizer=r["quantizer"], rule=r["choice"], unsaturated_share=r["unsaturated_share"], range_ratio=r["range_ratio"])
            for r in details["dilation"]
        ],
        latency=latency,
        engines=engines,
        notes=_notes(details),
        commands=run.commands,
        versions=checkpoint.manifest.tools,
    )


def _tables(path: Path) -> dict[str, ScaleTable]:
    checkpoint = load_checkpoint(path)
    timesteps = checkpoint.artifact.manifest.timesteps
    return {
        name: ScaleTable(timesteps=timesteps, scales=quantizer.scale_table().tolist(), zero_points=quantizer.zero_point_table().tolist())
        for name, quantizer in checkpoint.quantizers.items()
        if not quantizer.fixed
    }


def _notes(details: dict[str, Any]) -> list[str]:
    kept = "; ".join(f"{layer['name']}: {layer['reason']}" for layer in details["float_layers"]) or "none"
    return [
        f"Layers left in float ({details['float_mac_share']:.2%} of the multiply-accumulates): {kept}.",
        "TensorRT-RTX kernels are what the compiler chose ahead of time; no engine was executed on this machine.",
        "Latency is of this machine's CPU, interleaved in one run; it says nothing about a GPU.",
    ]
