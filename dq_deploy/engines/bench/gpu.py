"""What a timing adds for runners on a GPU: the device's own time, its clocks meanwhile, and the roofline to hold the time against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from ...progress import Advance
from ..layer_report.roofline import Peaks, Work, describe, roofline
from .contenders import Contender, Inputs
from .gpu_clocks import Clocks, clock_notes, read_clocks

if TYPE_CHECKING:
    from . import BenchRow


@runtime_checkable
class OnDevice(Protocol):
    """A runner that can say how long its device takes."""

    def device_ms(self, inputs: Inputs) -> float:
        """Milliseconds of one run on the device."""

    def peaks(self) -> Peaks | None:
        """What the device can do at the most."""

    def work(self) -> Work | None:
        """What one run takes."""


class GpuBench:
    """Times those contenders that run on a GPU once more, with the GPU's own clock."""

    def __init__(self, contenders: Sequence[Contender], runs: int) -> None:
        self.contenders = {c.name: c for c in contenders if isinstance(c.runner, OnDevice)}
        self._runs = runs
        self._clocks: list[Clocks] = []
        self._notes: list[str] = []

    def completed(self, row: BenchRow, advance: Advance) -> BenchRow:
        """The row with the device's times and the roofline, unchanged for a contender on a CPU."""
        contender = self.contenders.get(row.contender)
        if contender is None:
            return row
        runner = contender.runner
        assert isinstance(runner, OnDevice)
        cycle = contender.inputs(row.batch)
        self._read_clocks()
        times = []
        for number in range(self._runs):
            times.append(runner.device_ms(cycle[number % len(cycle)]))
            advance(1, contender.name)
        self._read_clocks()
        median, p90 = (float(value) for value in np.percentile(times, [50, 90]))
        return replace(row, device_median_ms=median, device_p90_ms=p90, floor_ms=self._floor(row, runner, median))

    def _floor(self, row: BenchRow, runner: OnDevice, device_ms: float) -> float | None:
        peaks, work = runner.peaks(), runner.work()
        if peaks is None or work is None:
            what = "the GPU's peaks are" if peaks is None else "the engine's layers are"
            self._notes.append(f"{row.contender}, batch {row.batch}: no roofline, since {what} not known")
            return None
        least = roofline(work, peaks, row.batch)
        self._notes.append(describe(row.contender, row.batch, device_ms, least, work, peaks))
        return least.floor_ms

    def _read_clocks(self) -> None:
        reading = read_clocks()
        if reading is not None:
            self._clocks.append(reading)

    def notes(self) -> list[str]:
        """What a reader of the times must know; nothing where no contender runs on a GPU."""
        if not self.contenders:
            return []
        graphs = [
            f"{name}: CUDA graph {state}"
            for name, contender in self.contenders.items()
            if (state := contender.runner.details.get("cuda_graphs")) not in (None, "on")
        ]
        return [*graphs, *clock_notes(self._clocks), *self._notes]

    def machine(self) -> dict[str, Any]:
        """The clocks that were read, for the result's ``machine``."""
        return {"gpu_clocks": [reading.to_json() for reading in self._clocks]} if self.contenders else {}
