"""``python -m benchmarks.latency.rewrites``: what each rewrite of the graph for OpenVINO is worth, by leaving it out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import click

from dq_deploy.console import Output
from dq_deploy.engines.bench import BenchRow, Contender, bench, contenders_from
from dq_deploy.engines.openvino.rewrites import REWRITES

from .preparing import Made, prepare
from .runners import PlainOpenVino
from .subjects import SUBJECTS, WORK

_COPIES = 3  # of every contender: where a compiled model's memory lies moves its time by some percent
_NONE, _ALL, _STATIC = "none", "all", "all, static scales"
Steps = Sequence[Callable[[Any], None]]


@click.command()
@click.option("--models", default="unet,unet-6m,dit", show_default=True)
@click.option("--batches", default="1,8", show_default=True)
@click.option("--runs", default=20, show_default=True, help="Rounds.")
@click.option("--work", type=click.Path(path_type=Path), default=WORK, show_default=True, help="For artefacts; may be deleted.")
def main(models: str, batches: str, runs: int, work: Path) -> None:
    """Time our W8A8 graph with all rewrites, with none, and with all but one, interleaved in one run on one thread."""
    out = Output()
    for name in models.split(","):
        made = prepare(SUBJECTS[name], work / name, out.progress)
        result = bench(_contenders(made), batches=[int(b) for b in batches.split(",")], runs=runs, progress=out.progress)
        out.table(f"{name}: speed over the graph as it is", ["rewrites", "batch", "speed", "SNR to it, dB"], _rows(result.rows))


def _contenders(made: Made) -> list[Contender]:
    (template,) = contenders_from([made.bundle("tensorrt")], engines=["onnxruntime"], threads=1)
    subsets: dict[str, Steps] = {_NONE: (), _ALL: REWRITES}
    subsets |= {f"all but {left.__name__}": [step for step in REWRITES if step is not left] for left in REWRITES}
    files = {name: made.bundle("tensorrt") / "model.onnx" for name in subsets} | {_STATIC: made.bundle("static") / "model.onnx"}
    return [
        Contender(f"{name} #{copy}", PlainOpenVino(file, threads=1, rewrites=subsets.get(name, REWRITES)), template.inputs)
        for copy in range(_COPIES)
        for name, file in files.items()
    ]


def _rows(rows: Sequence[BenchRow]) -> list[list[str]]:
    found: dict[tuple[str, int], list[BenchRow]] = {}
    for row in rows:
        found.setdefault((row.contender.rpartition(" #")[0], row.batch), []).append(row)
    base = {batch: median(row.median_ms for row in copies) for (name, batch), copies in found.items() if name == _NONE}
    return [
        [name, str(batch), f"{base[batch] / median(row.median_ms for row in copies):.2f}", _snr(copies[-1].snr_db)]
        for (name, batch), copies in found.items()
    ]


def _snr(value: float | None) -> str:
    return "equal" if value is None else f"{value:.0f}"


if __name__ == "__main__":
    main()
