"""``dq-deploy prove``: the command, and what it prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..console import Output
from .options import PATH, common, force_option, whole_numbers

if TYPE_CHECKING:
    from ..accuracy.proof import Proof

_COLUMNS = ("engine", "check", "executed", "as planned", "batch", "on the GPU, median", "p90", "CUDA graph")


@click.command(short_help="Check, inspect and time engines on this GPU.")
@click.argument("engines", nargs=-1, required=True, type=PATH, metavar="ENGINE...")
@click.option("--checkpoint", "checkpoints", multiple=True, type=PATH, help="Where a quantized engine came from; repeatable.")
@click.option("-o", "--output", "file", required=True, type=PATH, help="JSON file; a page in Markdown goes beside it.")
@click.option("--batch", default="1", show_default=True, metavar="N[,N...]", help="Batch sizes.")
@click.option("--runs", default=50, show_default=True, help="Timed runs of each engine.")
@force_option
@common
def prove(engines: tuple[Path, ...], checkpoints: tuple[Path, ...], file: Path, batch: str, runs: int, force: bool, output: Output) -> None:
    """On a machine with an NVIDIA GPU: check ENGINEs, read from TensorRT's inspector what they execute in, and time them.

    It compares the formats with those that the builder planned, and writes one JSON file and one page, to keep or to send in. Times are
    between CUDA events, of a CUDA graph where the engine can be captured. Give the FP16 engine of export --float too, for comparison.
    """
    from ..accuracy.proof import proof_page, prove
    from ..artifacts.output_file import check_output_file, write_whole

    page = file.with_suffix(".md")
    check_output_file(file, ".json", force=force)
    check_output_file(page, ".md", force=force)
    proof = prove(engines, checkpoints, batches=whole_numbers(batch, "--batch"), runs=runs, progress=output.progress)
    write_whole(file, (proof.model_dump_json(indent=1) + "\n").encode())
    write_whole(page, proof_page(proof).encode())
    show_proof(proof, output)
    output.note(f"written: {file} and {page}")
    proof.enforce()


def show_proof(proof: Proof, output: Output) -> None:
    """Every engine at every batch size."""
    from ..engines.layer_report.executed import counted

    rows = []
    for engine in proof.engines:
        verdict = "float" if engine.accuracy is None else "passed" if engine.accuracy.passed else "failed"
        executed = "not known" if engine.inspected else ", ".join(f"{n} {name.upper()}" for name, n in counted(engine.products).items())
        planned = "–" if engine.inspected else f"{sum(p.as_planned for p in engine.products)} of {len(engine.products)}"
        for time in engine.times:
            device = ("" if value is None else f"{value:.4f} ms" for value in (time.device_median_ms, time.device_p90_ms))
            rows.append((engine.engine, verdict, executed, planned, time.batch, *device, engine.cuda_graphs))
    output.table(f"on {proof.engines[0].gpu}", _COLUMNS, rows)
    for engine in proof.engines:
        if engine.inspected:
            output.warn(f"{engine.engine}: {engine.inspected}")
    for note in proof.notes:
        output.note(note)
    output.data(proof)
