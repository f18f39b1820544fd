"""The command line: thin commands over the Python API. Data on stdout, everything else on stderr; exit codes in ``errors.py``."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import click

from . import cli_tables as tables
from .cli_errors import known_error, one_line
from .cli_options import (
    calibration_options,
    common,
    engine_options,
    force_option,
    output_folder,
    parse_keep,
    read_config,
    size_range,
    whole_numbers,
)
from .console import Output
from .errors import UsageError
from .versions import DISTRIBUTION, installed_version

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
_INTERRUPTED = 130
_BROKEN_PIPE = 141
_TARGETS = click.Choice(["tensorrt", "onnxruntime"])


def main() -> None:
    """Entry point of ``dq-deploy``: runs a command and turns what it raises into a message and an exit code."""
    # A job that is told to stop cleans up as one that is interrupted does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run the command line and return its exit code."""
    output = Output()
    try:
        result = cli.main(args=arguments, prog_name="dq-deploy", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "dq-deploy"
        output.error(UsageError(one_line(error.format_message()), f"{command} --help"))
        return UsageError.exit_code
    except (KeyboardInterrupt, click.Abort):
        output.warn("interrupted; nothing half-written is left")
        return _INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has what was wanted. Python would complain once more when it flushes the closed pipe at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except Exception as error:  # noqa: BLE001  the one place where everything ends
        known = known_error(error)
        if known is not None:
            output.error(known)
            return known.exit_code
        traceback.print_exc()
        output.warn("this is a bug in dq-deploy: please report it with the lines above")
        return 1


@click.group(context_settings=_CONTEXT)
@click.version_option(installed_version(DISTRIBUTION) or "of a checkout that is not installed")
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
    """  # noqa: D301  click reads the character \b, not the two that spell it


@cli.command()
@click.argument("source")
@output_folder("checkpoint")
@click.option("--preset", help="w8a8, w6a6, w4a8 or w4a4: bits of weights and activations; w4a16: only weights.  [default: w8a8]")
@click.option("--weight-bits", type=int, help="2 to 8; overrides the preset.")
@click.option("--activation-bits", type=int, help="2 to 8, or 16 to leave activations in float; overrides the preset.")
@click.option("--steps", type=int, help="T: DDIM steps of the calibration, rows of every scale table.  [default: 20]")
@click.option("--iterations", type=int, help="Distillation steps for each block; 0 turns it off.  [default: 200]")
@click.option(
    "--dilation",
    type=click.Choice(["auto", "layerwise", "none", "symmetric", "asymmetric", "smoothquant"]),
    help="Rule of weight dilation; auto takes the one that serves the network best.  [default: auto]",
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
@calibration_options
@click.option("--config", type=click.Path(path_type=Path), help="JSON file with options, named as in the manifest; flags win.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N: where to calibrate and distil.")
@click.option("--resume", is_flag=True, help="Go on with the run that was interrupted while it wrote this output, if there is one.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done, and what it would take; writes nothing.")
@force_option
@common
def quantize(
    source: str,
    destination: Path,
    keep: tuple[str, ...],
    calibration: dict[str, Any],
    config: Path | None,
    device: str,
    resume: bool,
    dry_run: bool,
    force: bool,
    output: Output,
    **options: Any,
) -> None:
    """Quantize SOURCE with DilateQuant and write a checkpoint of integers and scale tables.

    SOURCE is a diffusers pipeline folder, a hub id, or a built-in name such as builtin:fashion-mnist-unet. Calibration data comes from the
    model's own sampling trajectories; no data set is needed.
    """
    from .artifacts import check_output
    from .quantization import QuantizeConfig, estimate, work_path
    from .quantization import quantize as run_quantize

    merged = {"preset": "w8a8", **read_config(config), **{key: value for key, value in options.items() if value is not None}}
    if keep:
        merged["keep"] = merged.get("keep", {}) | dict(map(parse_keep, keep))
    QuantizeConfig.build(**merged)
    check_output(destination, force=force)
    if dry_run:
        tables.show_budget(estimate(source, **calibration, device=device, **merged), output)
        return
    try:
        artifact = run_quantize(
            source, destination, **calibration, device=device, force=force, resume=resume, progress=output.progress, **merged
        )
    except (KeyboardInterrupt, MemoryError, OSError, RuntimeError):
        if work_path(destination).exists():
            output.warn(f"what is finished is kept in {work_path(destination)}: the same command with --resume goes on from there")
        raise
    tables.show_checkpoint(artifact, output)
    output.note(f"next: dq-deploy export {destination} -o {destination}-tensorrt --target tensorrt")


@cli.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@output_folder("bundle")
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
@click.option(
    "--weight-storage",
    type=click.Choice(["auto", "int8"]),
    default="auto",
    show_default=True,
    help="auto: weights of up to 4 bits take half a byte in the tensorrt target. int8: a byte each.",
)
@click.option(
    "--attention",
    type=click.Choice(["int8", "float"]),
    default="int8",
    show_default=True,
    help="float: leave the products of attention (q·k and P·v) unquantized.",
)
@click.option("--float", "is_float", is_flag=True, help="Export the unquantized model instead, as the baseline.")
@force_option
@common
def export(
    checkpoint: Path,
    destination: Path,
    target: Any,
    dtype: str | None,
    weight_storage: Any,
    attention: Any,
    is_float: bool,
    force: bool,
    output: Output,
) -> None:
    """Export CHECKPOINT as an ONNX graph whose scales are selected by the timestep input."""
    from .exporters import export as run_export

    artifact = run_export(
        checkpoint,
        destination,
        target=target,
        dtype=dtype,
        weight_storage=weight_storage,
        attention=attention,
        float=is_float,
        force=force,
        progress=output.progress,
    )
    tables.show_bundle(artifact, output)
    if not is_float:
        output.note(f"next: dq-deploy check {destination} --checkpoint {checkpoint}")


@cli.command("build-engine")
@click.argument("bundle", type=click.Path(path_type=Path))
@output_folder("engine")
@click.option(
    "--backend",
    type=click.Choice(["tensorrt-rtx", "tensorrt", "openvino"]),
    required=True,
    help="tensorrt-rtx builds without a GPU; tensorrt needs the GPU it is for; openvino is for CPUs.",
)
@click.option(
    "--compute-capability",
    "capabilities",
    multiple=True,
    help="GPU generation, such as 8.9; repeatable (tensorrt-rtx only).  [default: 8.9 and 12.0]",
)
@click.option(
    "--batch", default="1,1,8", show_default=True, metavar="MIN,OPT,MAX", help="Batch sizes: the smallest, the usual, the largest."
)
@engine_options
@click.option("--timeout", type=float, help="Seconds that one build may take.")
@force_option
@common
def build_engine(
    bundle: Path,
    destination: Path,
    backend: str,
    capabilities: tuple[str, ...],
    batch: str,
    engine_options: dict[str, Any],
    sizes: dict[str, tuple[int, int, int]],
    timeout: float | None,
    force: bool,
    output: Output,
) -> None:
    """Build an engine of TensorRT or OpenVINO from BUNDLE, with a report of what every layer runs in.

    The graph is linted first (see check --lint); an error ends the command with exit code 3 before anything is built.
    """
    from .engines.build import build_engine as run_build
    from .engines.build import load_report

    artifact = run_build(
        bundle,
        destination,
        backend=backend,
        compute_capabilities=capabilities or None,
        batch=size_range(batch, "--batch"),
        sizes=sizes,
        timeout_s=timeout,
        force=force,
        progress=output.progress,
        **engine_options,
    )
    tables.show_engine(artifact, [report.summary() for report in load_report(artifact)], output)


@cli.command()
@click.argument("engine", type=click.Path(path_type=Path))
@click.option("--compare", "baseline", type=click.Path(path_type=Path), help="Engine to compare with: the float build's, usually.")
@click.option("-o", "--output", "picture", type=click.Path(path_type=Path), help="SVG file for the report as a picture.")
@force_option
@common
def layers(engine: Path, baseline: Path | None, picture: Path | None, force: bool, output: Output) -> None:
    """Show what ENGINE's convolutions and matrix products run in, which are not INT8 and why, its kernels and bytes of weights.

    With --compare all of it beside another engine, such as one built from export --float. Needs no runtime.
    """
    from .engines.build import load_report
    from .engines.layer_compare import compare

    comparisons = compare(load_report(engine), load_report(baseline) if baseline else ())
    if picture is not None:
        from .report.files import check_output_file, write_whole
        from .report.layer_plot import layer_plot
        from .report.svg import standalone

        check_output_file(picture, ".svg", force=force)
        write_whole(picture, standalone(layer_plot(comparisons[0])))
    tables.show_layers(comparisons, output)


@cli.command("triton-repository")
@click.argument("path", type=click.Path(path_type=Path))
@output_folder("model repository")
@click.option("--name", help="Name of the model.  [default: PATH's folder name]")
@click.option("--max-batch-size", type=int, help="Samples in a batch.  [default: the engine's largest batch; 8 for a bundle]")
@click.option("--queue-delay-us", type=int, help="Microseconds that a request may wait for others to share its batch.  [default: 2000]")
@click.option("--instances", default=1, show_default=True, help="Copies of the model that run side by side.")
@click.option("--device", type=click.Choice(["auto", "cpu", "gpu"]), default="auto", show_default=True, help="Where they run.")
@force_option
@common
def triton_repository(path: Path, destination: Path, force: bool, output: Output, **options: Any) -> None:
    """Write PATH (a bundle, or an engine of TensorRT or OpenVINO) as a model repository of the Triton Inference Server.

    Requests at different denoising steps share a batch where each sample has its own timestep: in every engine, and in bundles of target
    tensorrt. A bundle of target onnxruntime has one timestep for a batch, so Triton does not put its requests together.
    """
    from .engines.triton import triton_repository as write_repository

    tables.show_triton(write_repository(path, destination, force=force, **options), output)


@cli.command()
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
        from .exporters.lint import lint

        findings = lint(bundle)
        tables.show_lint(findings, output, last=checkpoint is None or not findings)
        findings.enforce()
    if checkpoint is not None:
        from .accuracy import check as run_check

        result = run_check(bundle, checkpoint, progress=output.progress)
        tables.show_check(result, output, findings)
        result.enforce()


@cli.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="PATH...")
@click.option("--baseline", type=click.Path(path_type=Path), help="Which of them the others are compared with.  [default: the first]")
@click.option("--batch", default="1", show_default=True, metavar="N[,N...]", help="Batch sizes.")
@click.option("--runs", default=50, show_default=True, help="Timed runs of each contender.")
@click.option(
    "--engine",
    "engines",
    multiple=True,
    type=click.Choice(["onnxruntime", "openvino", "openvino-int8", "tensorrt", "tensorrt-rtx"]),
    help="Engines; repeatable.  [default: all that can run a bundle, and its own for a built engine]",
)
@click.option("--threads", type=int, help="Threads of every engine.  [default: the engine's own choice]")
@click.option(
    "--max-ratio", type=float, help="Fail with exit code 7 when a contender's median time exceeds this multiple of the baseline's."
)
@common
def bench(
    paths: tuple[Path, ...],
    baseline: Path | None,
    batch: str,
    runs: int,
    engines: tuple[Any, ...],
    threads: int | None,
    max_ratio: float | None,
    output: Output,
) -> None:
    """Time bundles and built engines against each other, interleaved, on every engine that can run here."""
    from .engines.bench import bench as run_bench
    from .engines.bench import contenders_from

    batches = whole_numbers(batch, "--batch")
    given = [*paths]
    if baseline is not None and baseline not in given:
        given.insert(0, baseline)
    contenders = contenders_from(given, engines=engines or None, threads=threads)
    result = run_bench(
        contenders,
        batches=batches,
        runs=runs,
        baseline=None if baseline is None else str(baseline),
        max_ratio=max_ratio,
        progress=output.progress,
    )
    tables.show_bench(result, output)
    result.enforce()


@cli.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("-o", "--output", "destination", type=click.Path(path_type=Path), required=True, help="PNG file for the grid.")
@click.option("-n", "--count", default=16, show_default=True, help="Number of pictures.")
@click.option("--seed", default=0, show_default=True, help="Seed of the first picture.")
@click.option("--steps", type=int, help="DDIM steps.  [default: the number of calibrated timesteps]")
@click.option("--classes", metavar="LIST", help="Classes to draw in turn with a class-conditional model, such as 0-9,3.  [default: all]")
@click.option("--guidance-scale", type=float, help="Classifier-free guidance of a class-conditional model.  [default: as calibrated]")
@click.option(
    "--runtime",
    type=click.Choice(["auto", "onnxruntime", "openvino"]),
    default="auto",
    show_default=True,
    help="Engine for a bundle; a built engine runs on its own.",
)
@click.option(
    "--compare-float/--no-compare-float",
    default=True,
    show_default=True,
    help="Draw the float model's pictures beside them, from the same seeds.",
)
@force_option
@common
def sample(path: Path, destination: Path, count: int, seed: int, steps: int | None, classes: str | None, guidance_scale: float | None,
           runtime: Any, compare_float: bool, force: bool, output: Output) -> None:  # fmt: skip
    """Draw pictures with PATH (a bundle, a checkpoint or an engine of OpenVINO) in the diffusers pipeline and write them as one grid."""
    from .sampling import sample as run_sample

    result = run_sample(
        path,
        destination,
        n=count,
        seed=seed,
        steps=steps,
        classes=classes,
        guidance_scale=guidance_scale,
        compare_float=compare_float,
        runtime=runtime,
        force=force,
        progress=output.progress,
    )
    tables.show_sample(result, destination, output)


@cli.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--layer", metavar="PATTERN", help="Show the scale tables of the quantizers and layers that match (fnmatch), row by row.")
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Draw the scale tables (or those of --layer) as PNG or SVG.")
@force_option
@common
def inspect(path: Path, layer: str | None, plot: Path | None, force: bool, output: Output) -> None:
    """Show what PATH (a checkpoint, bundle or engine) is and its scale tables, and verify its files. Needs no runtime."""
    from .artifacts import open_artifact
    from .artifacts.scale_tables import read_tables, select_tables

    if plot is not None:
        from .report.table_file import check_picture, save_tables

        check_picture(plot, force=force)
    artifact = open_artifact(path, ("checkpoint", "bundle", "engine"))
    tables_wanted = artifact.manifest.kind != "engine" or layer is not None or plot is not None
    found = read_tables(artifact) if tables_wanted else {}
    if layer is not None:
        found = select_tables(artifact, found, layer)
    if plot is not None:
        save_tables(found, plot)
    tables.show_artifact(artifact, found, output, in_full=layer is not None)
    if plot is not None:
        output.note(f"drawn: {plot}")


@cli.command()
@common
def doctor(output: Output) -> None:
    """Say what is installed, what works, what is wrong, and the command that mends it.

    Every installed engine is imported once, in a process of its own. Exit code 4 when something is wrong; what is merely absent is not.
    """
    from .doctor import diagnose

    tables.show_diagnosis(diagnose(progress=output.progress), output)


@cli.command()
@click.option(
    "-o", "--output", "destination", type=click.Path(path_type=Path), required=True, help="Folder for everything that the demo makes."
)
@click.option("--iterations", default=100, show_default=True, help="Distillation steps for each block.")
@click.option("--seed", default=0, show_default=True, help="Seed of calibration and pictures.")
@force_option
@common
def demo(destination: Path, iterations: int, seed: int, force: bool, output: Output) -> None:
    """Take the built-in model all the way at W8A8: quantize, export, check, build, time, sample, and one HTML page about it."""
    from .demo import run_demo

    result = run_demo(destination, iterations=iterations, seed=seed, force=force, progress=output.progress, note=output.note)
    tables.show_demo(result, output)
    result.enforce()


if __name__ == "__main__":
    main()
