"""Latency: contenders run in turns on the same inputs, and differences are stated with their uncertainty."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ...errors import ArtifactError, PerformanceGateError, UsageError
from ...progress import Advance, Progress, silent
from ..devices.machine import machine_info
from ..running.runner import TIMESTEP
from .contenders import Contender, Inputs, contenders_from
from .gpu import GpuBench
from .statistics import Floats, paired_ratio, snr_db

__all__ = ["BenchResult", "BenchRow", "Contender", "bench", "contenders_from"]


@dataclass(frozen=True)
class BenchRow:
    """One contender at one batch size. Times are of one call; ``ratio`` is its time over the baseline's (below 1 is faster).

    ``ratio_low`` and ``ratio_high`` bound the ratio's 95% bootstrap interval, and ``within_noise`` says that it contains 1. ``snr_db``
    compares the outputs with the baseline's on the timed inputs (None when they are equal): a fast wrong answer shows.

    ``device_median_ms`` and ``device_p90_ms`` are a GPU's own time, between two events, without copies and Python; ``floor_ms`` is the
    least that its peaks allow (``roofline.py``). All three are None for a CPU.
    """

    contender: str
    engine: str
    batch: int
    median_ms: float
    p90_ms: float
    iqr_ms: float
    ms_per_sample: float
    ratio: float
    ratio_low: float
    ratio_high: float
    within_noise: bool
    snr_db: float | None
    device_median_ms: float | None = None
    device_p90_ms: float | None = None
    floor_ms: float | None = None


@dataclass(frozen=True)
class BenchResult:
    """All rows, with what is needed to read them. True when the performance gate (if any) holds."""

    baseline: str
    rows: list[BenchRow]
    contenders: dict[str, dict[str, Any]]
    settings: dict[str, Any]
    machine: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return not self.failures

    def to_json(self) -> dict[str, Any]:
        """The result as plain JSON values."""
        return asdict(self)

    def enforce(self) -> None:
        """Raise PerformanceGateError when a contender missed ``max_ratio``."""
        if self.failures:
            raise PerformanceGateError("; ".join(self.failures))


def bench(
    contenders: Sequence[Contender],
    *,
    batches: Sequence[int] = (1,),
    runs: int = 50,
    warmup: int = 5,
    baseline: str | None = None,
    max_ratio: float | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> BenchResult:
    """Time every contender ``runs`` times at every batch size, in rounds: each round runs each contender once, in a new random order.

    ``baseline`` names a contender (its name, or its bundle's path); by default the first. With ``max_ratio`` every other contender's median
    ratio must stay at or below it at every batch size: look at the result's truth value, or call ``enforce``. A schedule's time in a
    round is the mean over the calibrated timesteps of its members' times in that round; the members have rows of their own, which nothing
    is required of.

    Raises UsageError (settings that time nothing, an unknown baseline) and ArtifactError (an output with NaN or Inf, another shape).
    """
    _check(contenders, batches, runs, warmup, max_ratio)
    reference = _find_baseline(contenders, baseline)
    rows: list[BenchRow] = []
    gpu = GpuBench(contenders, runs)
    steps = (runs + warmup) * sum(not contender.turns for contender in contenders) + len(contenders) + runs * len(gpu.contenders)
    with progress("timing", len(batches) * steps) as advance:
        for batch in batches:
            timed = _bench_batch(contenders, reference, batch, (runs, warmup, seed), advance)
            rows += [gpu.completed(row, advance) for row in timed]
    return BenchResult(
        baseline=reference.name,
        rows=rows,
        contenders={c.name: {"path": c.path, **c.runner.details, **({"part_of": c.part_of} if c.part_of else {})} for c in contenders},
        settings={"batches": list(batches), "runs": runs, "warmup": warmup, "seed": seed, "max_ratio": max_ratio},
        machine=machine_info() | gpu.machine(),
        notes=[*_notes(contenders), *gpu.notes()],
        failures=[]
        if max_ratio is None
        else [_failure(row, max_ratio) for row in rows if row.contender in _judged(contenders, reference) and not row.ratio <= max_ratio],
    )


def _judged(contenders: Sequence[Contender], reference: Contender) -> set[str]:
    """Names of those that a required ratio is required of."""
    return {contender.name for contender in contenders if contender is not reference and not contender.part_of}


def _check(contenders: Sequence[Contender], batches: Sequence[int], runs: int, warmup: int, max_ratio: float | None) -> None:
    names = [contender.name for contender in contenders]
    problems = [] if contenders else ["nothing to time was given"]
    problems += [f"two contenders are called '{name}'" for name in sorted(set(names)) if names.count(name) > 1]
    problems += [] if batches else ["no batch size was given"]
    problems += [f"batch size {batch} is below 1" for batch in batches if batch < 1]
    problems += [f"runs is {runs}, and at least 1 is needed"] if runs < 1 else []
    problems += [f"warmup is {warmup}, and it cannot be negative"] if warmup < 0 else []
    if max_ratio is not None:
        problems += [] if 0 < max_ratio < float("inf") else [f"max ratio is {max_ratio}, and a positive number is needed"]
        alone = sum(not contender.part_of for contender in contenders) == 1
        problems += ["a maximum ratio needs something to compare with the baseline"] if alone else []
    if problems:
        raise UsageError("; ".join(problems))


def _find_baseline(contenders: Sequence[Contender], baseline: str | None) -> Contender:
    if baseline is None:
        return contenders[0]
    for contender in contenders:
        if baseline == contender.name or (contender.path and str(baseline).rstrip("/") == contender.path):
            return contender
    raise UsageError(f"the baseline '{baseline}' is not among the contenders", "they are " + ", ".join(c.name for c in contenders))


def _bench_batch(
    contenders: Sequence[Contender], reference: Contender, batch: int, plan: tuple[int, int, int], advance: Advance
) -> list[BenchRow]:
    runs, warmup, seed = plan
    inputs = {contender.name: contender.inputs(batch) for contender in contenders}
    outputs = {}
    for contender in contenders:
        outputs[contender.name] = _outputs(contender, inputs[contender.name], batch)
        advance(1, contender.name)
    _run_rounds(contenders, inputs, warmup, seed, advance)
    times = _run_rounds(contenders, inputs, runs, seed, advance)
    return [
        _row(contender, batch, times[contender.name], times[reference.name], snr=_compare(contender, reference, outputs))
        for contender in contenders
    ]


def _outputs(contender: Contender, cycle: Sequence[Inputs], batch: int) -> Floats:
    """Outputs for every input of the cycle, [K, batch, …]."""
    outputs = np.stack([contender.runner.run(inputs) for inputs in cycle])
    for inputs, output in zip(cycle, outputs, strict=True):
        if not np.isfinite(output).all():
            raise ArtifactError(f"{contender.name} gives NaN or Inf at batch size {batch}, timestep {float(inputs[TIMESTEP]):g}")
    return outputs


def _compare(contender: Contender, reference: Contender, outputs: dict[str, Floats]) -> float | None:
    value, expected = outputs[contender.name], outputs[reference.name]
    if value.shape != expected.shape:
        raise UsageError(
            f"{contender.name} gives outputs of shape {list(value.shape[1:])} and {reference.name} of {list(expected.shape[1:])}: "
            "they are not the same model"
        )
    return snr_db(expected, value)


def _run_rounds(
    contenders: Sequence[Contender], inputs: dict[str, Sequence[Inputs]], rounds: int, seed: int, advance: Advance
) -> dict[str, Floats]:
    """Times in ms, [rounds] for each contender. The order changes from round to round: who ran before leaves its mark on the caches."""
    generator = np.random.default_rng(seed)
    timed = [contender for contender in contenders if not contender.turns]
    times: dict[str, Floats] = {contender.name: np.zeros(rounds) for contender in timed}
    for number in range(rounds):
        for index in generator.permutation(len(timed)):
            contender = timed[index]
            cycle = inputs[contender.name]
            start = time.perf_counter_ns()
            contender.runner.run(cycle[number % len(cycle)])
            times[contender.name][number] = (time.perf_counter_ns() - start) / 1e6
            advance(1, contender.name)
    for contender in contenders:
        if contender.turns:
            times[contender.name] = np.sum([share * times[name] for name, share in contender.turns.items()], axis=0)
    return times


def _row(contender: Contender, batch: int, times: Floats, baseline: Floats, snr: float | None) -> BenchRow:
    ratio = paired_ratio(times, baseline)
    quarter, median, three_quarters, p90 = (float(value) for value in np.percentile(times, [25, 50, 75, 90]))
    return BenchRow(
        contender=contender.name,
        engine=contender.runner.name,
        batch=batch,
        median_ms=median,
        p90_ms=p90,
        iqr_ms=three_quarters - quarter,
        ms_per_sample=median / batch,
        ratio=ratio.value,
        ratio_low=ratio.low,
        ratio_high=ratio.high,
        within_noise=ratio.within_noise,
        snr_db=snr,
    )


def _notes(contenders: Sequence[Contender]) -> list[str]:
    affected = [one for one in contenders if not one.turns and one.runner.details.get("int8_saturates")]  # of a schedule its members say it
    wrong = [contender.name for contender in affected if contender.runner.details["integer"]]
    slow = [contender.name for contender in affected if not contender.runner.details["integer"]]
    why = "this CPU has no VNNI, and OpenVINO's INT8 kernels saturate on it"
    notes = [f"{why}: the times of {', '.join(wrong)} are real, the outputs are off (see their SNR)"] if wrong else []
    notes += [f"{why}: {', '.join(slow)} computed quantized layers in float, exactly and slowly"] if slow else []
    return [*notes, *(_about_turns(contender) for contender in contenders if contender.turns)]


def _about_turns(contender: Contender) -> str:
    shares = ", ".join(f"{share:.0%} {name}" for name, share in contender.turns.items())
    return f"{contender.name} is a step's time on average over the calibrated timesteps: {shares}"


def _failure(row: BenchRow, max_ratio: float) -> str:
    return (
        f"{row.contender} takes {row.ratio:.2f} × the baseline's time at batch {row.batch} "
        f"(95%: {row.ratio_low:.2f} to {row.ratio_high:.2f}), and at most {max_ratio:g} is allowed"
    )
