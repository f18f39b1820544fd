"""``dq-deploy bench``: the command, and what it prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..console import Output, megabytes
from .options import PATH, common, engines_option, size_options, whole_numbers

if TYPE_CHECKING:
    from ..engines.bench import BenchResult, BenchRow

_BENCH_COLUMNS = ("contender", "batch", "median ms", "p90 ms", "time ratio", "95% interval", "")
_DEVICE_COLUMNS = ("contender", "batch", "device median ms", "device p90 ms", "roofline ms")


@click.command(short_help="Time bundles and engines against each other.")
@click.argument("paths", nargs=-1, required=True, type=PATH, metavar="PATH...")
@click.option("--baseline", type=PATH, help="Which of them the others are compared with.  [default: the first]")
@click.option("--batch", default="1", show_default=True, metavar="N[,N...]", help="Batch sizes.")
@size_options
@click.option("--runs", default=50, show_default=True, help="Timed runs of each contender.")
@engines_option("Engines; repeatable.  [default: all that can run a bundle, and its own for a built engine]")
@click.option("--threads", type=int, help="Threads of every engine.  [default: the engine's own choice]")
@click.option(
    "--max-ratio", type=float, help="Fail with exit code 7 when a contender's median time exceeds this multiple of the baseline's."
)
@common
def bench(paths: tuple[Path, ...], baseline: Path | None, batch: str, engines: tuple[Any, ...], threads: int | None,
          sizes: dict[str, int], output: Output, **options: Any) -> None:  # fmt: skip
    """Time bundles, built engines and schedules against each other, interleaved, on every engine that can run here.

    The baseline is the first path, or --baseline. A fair one is the float model as you would run it: export --float for a CPU, and for a
    GPU export --float --dtype fp16 and an engine built from it.
    """
    from ..engines.bench import bench as run_bench
    from ..engines.bench import contenders_from

    batches = whole_numbers(batch, "--batch")
    given = [*paths]
    if baseline is not None and baseline not in given:
        given.insert(0, baseline)
    contenders = contenders_from(given, engines=engines or None, threads=threads, sizes=sizes)
    compared_with = None if baseline is None else str(baseline)
    result = run_bench(contenders, batches=batches, baseline=compared_with, progress=output.progress, **options)
    show_bench(result, output)
    output.note(f"sizes: {', '.join(f'{path} {megabytes(_size(path))}' for path in given)}")
    result.enforce()


def _size(path: Path) -> int:
    """Bytes of a folder's files, the manifest's and a report's apart."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file() and file.suffix != ".json")


def show_bench(result: BenchResult, output: Output) -> None:
    """Every contender at every batch size."""
    output.table(f"latency, against {result.baseline}", _BENCH_COLUMNS, [_bench_row(row, result.baseline) for row in result.rows])
    on_device = [row for row in result.rows if row.device_median_ms is not None]
    if on_device:
        shown = [(row.contender, row.batch, *map(_ms, (row.device_median_ms, row.device_p90_ms, row.floor_ms))) for row in on_device]
        output.table("time on the GPU alone", _DEVICE_COLUMNS, shown)
    for note in result.notes:
        output.note(note)
    output.data(result.to_json())


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _bench_row(row: BenchRow, baseline: str) -> tuple[object, ...]:
    is_baseline = row.contender == baseline
    return (
        row.contender,
        row.batch,
        f"{row.median_ms:.2f}",
        f"{row.p90_ms:.2f}",
        f"{row.ratio:.2f}",
        "" if is_baseline else f"{row.ratio_low:.2f}–{row.ratio_high:.2f}",
        "baseline" if is_baseline else "within the noise" if row.within_noise else "",
    )
