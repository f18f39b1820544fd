"""The command line: thin commands over the Python API. Data on stdout, everything else on stderr; exit codes in ``errors.py``."""

from __future__ import annotations

import errno
import functools
import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .console import Output
from .errors import DqDeployError, EnvironmentProblem, ResourceError, UsageError

if TYPE_CHECKING:
    from .accuracy import CheckResult
    from .artifacts import Artifact

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
_INTERRUPTED = 130
_TARGETS = click.Choice(["tensorrt", "onnxruntime"])


def main() -> None:
    """Entry point of ``dq-deploy``: runs a command and turns what it raises into a message and an exit code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run the command line and return its exit code."""
    output = Output()
    try:
        result = cli.main(args=arguments, prog_name="dq-deploy", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        output.warn("interrupted; nothing half-written is left")
        return _INTERRUPTED
    except Exception as error:  # noqa: BLE001  the one place where everything ends
        known = _known(error)
        if known is not None:
            output.error(known)
            return known.exit_code
        traceback.print_exc()
        output.warn("this is a bug in dq-deploy: please report it with the lines above")
        return 1


def _known(error: Exception) -> DqDeployError | None:
    """The error as one that a user can mend, or None for a bug of ours."""
    if isinstance(error, DqDeployError):
        return error
    if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("dq_deploy"):
        package = (error.name or "").split(".")[0]
        return EnvironmentProblem(
            f"the package '{package}' is not installed", f"pip install {package}   (or install dq-deploy with its extras)"
        )
    if isinstance(error, MemoryError) or "not enough memory" in str(error) or "out of memory" in str(error).lower():
        return ResourceError(f"out of memory: {error}", "a smaller --batch-size needs less")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceError(f"no space left on the disk: {error.filename or error}")
    if isinstance(error, PermissionError):
        return UsageError(f"no permission: {error.filename or error}")
    return None


def _common(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --format and --quiet, and hand the command an ``Output``."""

    @click.option(
        "--format", "format_", type=click.Choice(["table", "json"]), default="table", show_default=True, help="Tables, or one JSON object."
    )
    @click.option("-q", "--quiet", is_flag=True, help="No progress and no notes.")
    @functools.wraps(command)
    def wrapper(*args: Any, format_: Any, quiet: bool, **kwargs: Any) -> Any:
        return command(*args, output=Output(format_, quiet), **kwargs)

    return wrapper


_force = click.option("--force", is_flag=True, help="Replace the output if it is one of ours.")


def _output_folder(what: str) -> Callable[..., Any]:
    return click.option(
        "-o", "--output", "destination", type=click.Path(path_type=Path), required=True, help=f"Folder for the {what}; must not exist."
    )


def _json_list(text: str, option: str, kind: Callable[[str], Any]) -> list[Any]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"{option} takes numbers with commas between them, not '{text}'") from None


@click.group(context_settings=_CONTEXT)
@click.version_option(package_name="dq-deploy")
def cli() -> None:
    """Quantize diffusion models with per-timestep scales and deploy them as integer engines.

    \b
    A first round:
      dq-deploy quantize builtin:fashion-mnist-unet -o checkpoint
      dq-deploy export checkpoint -o bundle --target tensorrt
      dq-deploy check bundle --checkpoint checkpoint
      dq-deploy build-engine bundle -o engine --backend tensorrt-rtx --compute-capability 8.9
      dq-deploy sample bundle -o grid.png

    \b
    Exit codes: 0 done, 1 bug, 2 usage, 3 bad input artefact, 4 environment, 5 out of memory or disk,
    6 accuracy gate failed, 7 performance gate failed, 130 interrupted.
    """


@cli.command()
@click.argument("source")
@_output_folder("checkpoint")
@click.option("--preset", default="w8a8", show_default=True, help="w8a8, w6a6, w4a8 or w4a4: bits of weights and activations.")
@click.option("--weight-bits", type=int, help="2 to 8; overrides the preset.")
@click.option("--activation-bits", type=int, help="2 to 8; overrides the preset.")
@click.option("--steps", type=int, help="T: DDIM steps of the calibration, rows of every scale table.  [default: 20]")
@click.option("--iterations", type=int, help="Distillation steps for each block; 0 turns it off.  [default: 200]")
@click.option(
    "--dilation",
    type=click.Choice(["auto", "none", "symmetric", "asymmetric"]),
    help="Rule of weight dilation; auto keeps what lowers a layer's error.  [default: auto]",
)
@click.option("--calibration-samples", type=int, help="Trajectories to calibrate and distil on.  [default: 64]")
@click.option("--batch-size", type=int, help="Samples in a batch.  [default: 32]")
@click.option("--seed", type=int, help="First seed of the calibration noise.  [default: 0]")
@click.option(
    "--keep",
    multiple=True,
    metavar="PATTERN=BITS|float",
    help="Bits of the layers that match (fnmatch), or float; @first and @last are patterns too. Repeatable.",
)
@click.option("--config", type=click.Path(path_type=Path), help="JSON file with options, named as in the manifest; flags win.")
@_force
@_common
def quantize(
    source: str, destination: Path, preset: str, keep: tuple[str, ...], config: Path | None, force: bool, output: Output, **options: Any
) -> None:
    """Quantize SOURCE with DilateQuant and write a checkpoint of integers and scale tables.

    SOURCE is a diffusers pipeline folder, a hub id, or a built-in name such as builtin:fashion-mnist-unet. Calibration data comes from the
    model's own DDIM trajectories; no data set is needed.
    """
    from .artifacts import check_output
    from .quantization import QuantizeConfig
    from .quantization import quantize as run_quantize

    merged = _read_config(config) | {key: value for key, value in options.items() if value is not None}
    if keep:
        merged["keep"] = merged.get("keep", {}) | dict(map(_parse_keep, keep))
    preset = merged.pop("preset", preset) if preset == "w8a8" else preset
    QuantizeConfig.build(preset, **merged)
    check_output(destination, force=force)
    artifact = run_quantize(source, destination, preset=preset, force=force, progress=output.progress, **merged)
    _show_checkpoint(artifact, output)
    output.note(f"next: dq-deploy export {destination} -o {destination}-tensorrt --target tensorrt")


def _read_config(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise UsageError(f"no such path: {path}") from None
    except (ValueError, OSError) as error:
        raise UsageError(f"{path} is not a JSON file: {error}") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path} must hold one JSON object of options")
    return content


def _parse_keep(text: str) -> tuple[str, int | str]:
    pattern, separator, value = text.partition("=")
    if not separator or not pattern or not (value == "float" or value.isdigit()):
        raise UsageError(f"--keep takes PATTERN=BITS or PATTERN=float, not '{text}'")
    return pattern, value if value == "float" else int(value)


def _show_checkpoint(artifact: Artifact, output: Output) -> None:
    details = artifact.manifest.details
    before, after = details["snr_db"]["before_distillation"], details["snr_db"]["after_distillation"]
    blocks = details["distillation"]
    rows = [
        ("quantized layers", len(details["layers"])),
        ("multiply-accumulates in float", f"{details['float_mac_share']:.2%}"),
        ("SNR before distillation", f"median {_median(before):.1f} dB, worst {min(before):.1f} dB"),
        ("SNR after distillation", f"median {_median(after):.1f} dB, worst {min(after):.1f} dB"),
        ("blocks improved", f"{sum(b['after'] < b['before'] for b in blocks)} of {len(blocks)}"),
    ]
    output.table(str(artifact.path), ("", ""), rows)
    output.data({"checkpoint": artifact.path, "manifest": artifact.manifest.model_dump()})


def _median(values: list[float]) -> float:
    from statistics import median

    return median(values)


@cli.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@_output_folder("bundle")
@click.option(
    "--target",
    type=_TARGETS,
    required=True,
    help="tensorrt: constant Q/DQ scales, each sample its own timestep. onnxruntime: scales as graph values.",
)
@click.option(
    "--dtype",
    type=click.Choice(["fp32", "fp16", "bf16"]),
    help="Type of what is not quantized.  [default: fp16 for tensorrt, fp32 for onnxruntime and --float]",
)
@click.option("--float", "is_float", is_flag=True, help="Export the unquantized model instead, as the baseline.")
@_force
@_common
def export(checkpoint: Path, destination: Path, target: Any, dtype: str | None, is_float: bool, force: bool, output: Output) -> None:
    """Export CHECKPOINT as an ONNX graph whose scales are selected by the timestep input."""
    from .exporters import export as run_export

    artifact = run_export(checkpoint, destination, target=target, dtype=dtype, float=is_float, force=force, progress=output.progress)
    size = sum(entry.size for entry in artifact.manifest.files.values())
    details = artifact.manifest.details
    rows = [("target", target), ("dtype", details["dtype"]), ("quantized layers", len(details["layers"])), ("size", f"{size / 1e6:.2f} MB")]
    output.table(str(destination), ("", ""), rows)
    output.data({"bundle": destination, "manifest": artifact.manifest.model_dump()})
    if not is_float:
        output.note(f"next: dq-deploy check {destination} --checkpoint {checkpoint}")


@cli.command("build-engine")
@click.argument("bundle", type=click.Path(path_type=Path))
@_output_folder("engine")
@click.option(
    "--backend",
    type=click.Choice(["tensorrt-rtx", "tensorrt"]),
    required=True,
    help="tensorrt-rtx builds without a GPU; tensorrt needs the GPU it is for.",
)
@click.option(
    "--compute-capability",
    "capabilities",
    multiple=True,
    help="GPU generation, such as 8.9; repeatable (tensorrt-rtx only).  [default: 8.9 and 12.0]",
)
@click.option("--batch", default="1,1,8", show_default=True, metavar="MIN,OPT,MAX", help="Batch sizes of the optimization profile.")
@click.option("--timeout", type=float, help="Seconds that one build may take.")
@_force
@_common
def build_engine(bundle: Path, destination: Path, backend: Any, capabilities: tuple[str, ...], batch: str, timeout: float | None, force: bool,
                 output: Output) -> None:  # fmt: skip
    """Build a TensorRT engine from BUNDLE, with a report of what every layer runs in."""
    from .engines.build import build_engine as run_build
    from .engines.build import load_report

    sizes = _json_list(batch, "--batch", int)
    if len(sizes) != 3:
        raise UsageError(f"--batch takes MIN,OPT,MAX, not '{batch}'")
    artifact = run_build(
        bundle, destination, backend=backend, compute_capabilities=capabilities or None, batch=(sizes[0], sizes[1], sizes[2]),
        timeout_s=timeout, force=force, progress=output.progress,
    )  # fmt: skip
    summaries = [report.summary() for report in load_report(artifact)]
    rows = [
        (s["compute_capability"], f"{s['planned_int8']} of {s['planned_layers']}", s["conv_by_precision"], s["gemm_by_precision"], s["kernels"],
         f"{s['weights_bytes'] / 1e6:.2f} MB")
        for s in summaries
    ]  # fmt: skip
    output.table(str(destination), ("compute capability", "planned layers in INT8", "convs", "GEMMs", "kernels", "weights"), rows)
    for name in sorted({name for s in summaries for name in [*s["not_int8"], *s["not_found"]]}):
        output.warn(f"layer {name} does not run in INT8")
    output.text(summaries[0]["statement"])
    output.data({"engine": destination, "reports": summaries})


@cli.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--checkpoint", type=click.Path(path_type=Path), required=True, help="The checkpoint that the bundle was exported from.")
@_common
def check(bundle: Path, checkpoint: Path, output: Output) -> None:
    """Judge BUNDLE against its checkpoint: layer by layer, and end to end at every calibrated timestep.

    Local: each layer gets the reference's recorded input; codes must be equal (one step on 0.01% at the most) and outputs within 1e-5.
    End to end: SNR against the float model within 0.5 dB of the PyTorch quantized forward's. Exit code 6 when either fails.
    """
    from .accuracy import check as run_check

    result = run_check(bundle, checkpoint, progress=output.progress)
    _show_check(result, output)
    result.enforce()


def _show_check(result: CheckResult, output: Output) -> None:
    rows = [
        (f"{r.timestep:g}", f"{r.snr_reference_db:.2f}", f"{r.snr_bundle_db:.2f}", f"{r.snr_optimized_db:.2f}" if r.snr_optimized_db is not None else "",
         f"{r.error_float:.1e}", f"{r.error_reference:.1e}", "ok" if r.passed else "FAILED")
        for r in result.timesteps
    ]  # fmt: skip
    columns = ("timestep", "PyTorch dB", "bundle dB", "optimized dB", "error to float", "error to PyTorch", "")
    output.table(f"{result.bundle} against the float model (SNR)", columns, rows)
    worst = sorted(result.layers, key=lambda r: -r.severity)[:5]
    layer_rows = [
        (
            r.layer,
            f"{r.code_share:.4%}",
            f"{r.code_step:g}",
            f"{r.output_error:.1e}",
            f"{r.worst_timestep:g}",
            "ok" if r.passed else "FAILED",
        )
        for r in worst
    ]
    output.table(
        f"{len(result.layers)} layers, the worst five", ("layer", "codes differ", "by", "output error", "timestep", ""), layer_rows
    )
    verdict = "passed" if result else f"FAILED ({len(result.failures)} findings)"
    output.text(f"{verdict}; worst layer {result.worst_layer.layer}, worst timestep {result.worst_timestep.timestep:g}")
    output.data(
        {
            **result.model_dump(),
            "passed": bool(result),
            "worst_layer": result.worst_layer.layer,
            "worst_timestep": result.worst_timestep.timestep,
        }
    )


@cli.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="BUNDLE...")
@click.option("--baseline", type=click.Path(path_type=Path), help="Bundle that the others are compared with.  [default: the first]")
@click.option("--batch", default="1", show_default=True, metavar="N[,N...]", help="Batch sizes.")
@click.option("--runs", default=50, show_default=True, help="Timed runs of each contender.")
@click.option(
    "--engine",
    "engines",
    multiple=True,
    type=click.Choice(["onnxruntime", "openvino", "openvino-int8"]),
    help="Engines; repeatable.  [default: all that can run the bundle]",
)
@click.option("--threads", type=int, help="Threads of every engine.  [default: the engine's own choice]")
@click.option(
    "--max-ratio", type=float, help="Fail with exit code 7 when a contender's median time exceeds this multiple of the baseline's."
)
@_common
def bench(paths: tuple[Path, ...], baseline: Path | None, batch: str, runs: int, engines: tuple[Any, ...], threads: int | None, max_ratio: float | None,
          output: Output) -> None:  # fmt: skip
    """Time bundles against each other, interleaved, on every engine that can run here."""
    from .engines.bench import bench as run_bench
    from .engines.bench import contenders_from

    given = [*paths]
    if baseline is not None and baseline not in given:
        given.insert(0, baseline)
    contenders = contenders_from(given, engines=engines or None, threads=threads)
    result = run_bench(
        contenders, batches=_json_list(batch, "--batch", int), runs=runs, baseline=None if baseline is None else str(baseline), max_ratio=max_ratio,
        progress=output.progress,
    )  # fmt: skip
    output.table(f"latency, against {result.baseline}", _BENCH_COLUMNS, [_bench_row(row) for row in result.rows])
    for note in result.notes:
        output.note(note)
    output.data(result.to_json())
    result.enforce()


_BENCH_COLUMNS = ("contender", "batch", "median ms", "p90 ms", "IQR ms", "time ratio", "95% interval", "")


def _bench_row(row: Any) -> tuple[object, ...]:
    interval = f"{row.ratio_low:.2f}–{row.ratio_high:.2f}"
    verdict = "within the noise" if row.within_noise else ""
    return (
        row.contender,
        row.batch,
        f"{row.median_ms:.2f}",
        f"{row.p90_ms:.2f}",
        f"{row.iqr_ms:.2f}",
        f"{row.ratio:.2f}",
        interval,
        verdict,
    )


@cli.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("-o", "--output", "destination", type=click.Path(path_type=Path), required=True, help="PNG file for the grid.")
@click.option("-n", "--count", default=16, show_default=True, help="Number of pictures.")
@click.option("--seed", default=0, show_default=True, help="Seed of the first picture.")
@click.option("--steps", type=int, help="DDIM steps.  [default: the number of calibrated timesteps]")
@click.option(
    "--runtime", type=click.Choice(["auto", "onnxruntime", "openvino"]), default="auto", show_default=True, help="Engine for a bundle."
)
@click.option(
    "--compare-float/--no-compare-float",
    default=True,
    show_default=True,
    help="Draw the float model's pictures beside them, from the same seeds.",
)
@_force
@_common
def sample(
    path: Path, destination: Path, count: int, seed: int, steps: int | None, runtime: Any, compare_float: bool, force: bool, output: Output
) -> None:
    """Draw pictures with PATH (a bundle or a checkpoint) in the diffusers pipeline and write them as one grid."""
    from .sampling import sample as run_sample

    result = run_sample(
        path,
        destination,
        n=count,
        seed=seed,
        steps=steps,
        compare_float=compare_float,
        runtime=runtime,
        force=force,
        progress=output.progress,
    )
    rows = [("pictures", result.n), ("engine", result.engine)]
    if result.psnr_mean_db is not None:
        rows.append(("PSNR against float", f"mean {result.psnr_mean_db:.1f} dB, worst {result.psnr_min_db:.1f} dB"))
    output.table(str(destination), ("", ""), rows)
    output.data(result.to_json())


@cli.command()
@click.argument("path", type=click.Path(path_type=Path))
@_common
def inspect(path: Path, output: Output) -> None:
    """Show what PATH (a checkpoint, bundle or engine) is, and verify its files. Needs no runtime."""
    from .artifacts import open_artifact

    manifest = open_artifact(path, ("checkpoint", "bundle", "engine")).manifest
    rows: list[tuple[str, object]] = [("kind", manifest.kind), ("model", manifest.model), ("schema version", manifest.schema_version)]
    rows += [("calibrated timesteps", ", ".join(f"{t:g}" for t in manifest.timesteps))]
    rows += [(key, manifest.details[key]) for key in ("target", "dtype", "backend", "float_mac_share") if key in manifest.details]
    if manifest.quantization:
        rows += [("weight bits", manifest.quantization["weight_bits"]), ("activation bits", manifest.quantization["activation_bits"])]
    rows += [(f"file {name}", f"{entry.size} bytes, sha256 verified") for name, entry in manifest.files.items()]
    rows += [(f"made with {name}", version) for name, version in manifest.tools.items()]
    output.table(str(path), ("", ""), rows)
    output.data(manifest.model_dump())


@cli.command()
@click.option(
    "-o", "--output", "destination", type=click.Path(path_type=Path), required=True, help="Folder for everything that the demo makes."
)
@click.option("--iterations", default=100, show_default=True, help="Distillation steps for each block.")
@click.option("--seed", default=0, show_default=True, help="Seed of calibration and pictures.")
@_force
@_common
def demo(destination: Path, iterations: int, seed: int, force: bool, output: Output) -> None:
    """Take the built-in model all the way at W8A8: quantize, export, check, build, time, sample, and one HTML page about it."""
    from .demo import run_demo

    result = run_demo(destination, iterations=iterations, seed=seed, force=force, progress=output.progress, note=output.note)
    output.table(
        "demo",
        ("", "measured", "wanted", ""),
        [(f.label, f.value, f.wanted, {None: "", True: "ok", False: "MISSED"}[f.passed]) for f in result.facts],
    )
    output.text(f"page: {result.page}")
    output.data({"page": result.page, "facts": [f.model_dump() for f in result.facts]})
    result.enforce()


if __name__ == "__main__":
    main()
