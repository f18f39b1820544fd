"""The command: measure what is missing, network by network, and write the tables."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from safetensors import safe_open

from benchmarks.accuracy.command import Run, comma_list
from benchmarks.accuracy.planning import Folders, Scope
from benchmarks.accuracy.results import write_text
from benchmarks.accuracy.settings import Settings
from dq_deploy.console import Output, duration
from dq_deploy.errors import DqDeployError, UsageError

from .data import DATA
from .methods import FEW_BITS, FEW_BITS_PRESETS, MEASURED, PRESET
from .network import NAMES, network, source_name
from .report import SPEED, accuracy_folder, few_bits_folder, write_report
from .speed import SpeedTask
from .weights import WEIGHTS, work_folder

HERE = Path(__file__).parent
_ROOT = Path(__file__).parents[2]


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME…]")
@click.option("--accuracy", is_flag=True, help="Measure how near each quantized network draws to its float network.")
@click.option("--few-bits", is_flag=True, help="The same where weights have few bits: by nearest codes, trained, by GPTQ.")
@click.option("--speed", is_flag=True, help="Time each on every engine.")
@click.option("--calibration-samples", type=click.IntRange(2), default=8, show_default=True, help="Trajectories, the same for everyone.")
@click.option("--steps", type=click.IntRange(1), default=10, show_default=True, help="Of calibration and of the samples.")
@click.option("--samples", type=click.IntRange(2), default=16, show_default=True, help="Held-out noises, and conditions, to judge by.")
@click.option("--methods", callback=comma_list, help=f"With commas.  [default: {','.join(MEASURED)}; --few-bits: {','.join(FEW_BITS)}]")
@click.option("--presets", callback=comma_list, default=",".join(FEW_BITS_PRESETS), show_default=True, help="Of --few-bits, with commas.")
@click.option("--iterations", type=click.IntRange(1), default=40, show_default=True, help="A block, of what --few-bits trains.")
@click.option("--seeds", callback=comma_list, default="0", show_default=True, help="First calibration seeds: 0,8 share no trajectory of 8.")
@click.option("--rounds", type=click.IntRange(5), default=25, show_default=True, help="Of the timing; slow networks take fewer.")
@click.option("--again", is_flag=True, help="Measure anew what is recorded: of accuracy, what other code or settings measured.")
@click.option("--report-only", is_flag=True, help="Only write the tables.")
@click.option("--note", default="", help="What a reader must know of how it was timed; goes onto the page.")
@click.option(
    "--results", type=click.Path(path_type=Path), default=HERE / "results", help="Folder of the figures.  [default: beside the code]"
)
def main(names: tuple[str, ...], accuracy: bool, few_bits: bool, speed: bool, calibration_samples: int, steps: int, samples: int,
         methods: tuple[str, ...] | None, presets: tuple[str, ...], iterations: int,
         seeds: tuple[str, ...], rounds: int, again: bool, report_only: bool, note: str, results: Path) -> None:  # fmt: skip
    """Judge networks that nothing here was tuned on.

    W8A8 without training against the tools that others use, final samples and speed; and weights of few bits by our own ways.

    NAME are of the list (all by default). Figures lie in one file each; what is there is not measured again, so a run may be stopped at any
    time. Weights are those of `python -m benchmarks.networks train`, else random ones.
    """
    out = Output()
    try:
        if unknown := [name for name in names if name not in NAMES]:
            raise UsageError(f"unknown network '{unknown[0]}'", f"networks: {', '.join(NAMES)}")
        known = dict.fromkeys((*(MEASURED if accuracy or not few_bits else ()), *(FEW_BITS if few_bits else ())))
        if unknown := [name for name in methods or () if name not in known]:
            raise UsageError(f"unknown method '{unknown[0]}'", f"methods: {', '.join(known)}")
        if unknown := [name for name in presets if name not in FEW_BITS_PRESETS]:
            raise UsageError(f"unknown preset '{unknown[0]}'", f"presets: {', '.join(FEW_BITS_PRESETS)}")
        if wrong := [seed for seed in seeds if not seed.isdecimal()]:
            raise UsageError(f"'{wrong[0]}' is no seed", "give whole numbers with commas: --seeds 0,8,16")
        if not (accuracy or few_bits or speed or report_only):
            raise UsageError("nothing to measure", "give --accuracy, --few-bits, --speed or more than one; --report-only writes the tables")
        settings = Settings(
            steps=steps, calibration_samples=calibration_samples, iterations=0, batch_size=8, max_float_share=0.2, grid_samples=samples,
            snr_samples=min(samples, 8),
        )  # fmt: skip
        failed = 0
        for name in () if report_only else names or NAMES:
            plan = _Plan(name, settings, methods, tuple(map(int, seeds)), results.absolute(), again, rounds, note, out)
            started = time.monotonic()
            try:
                failed += plan.accuracy() if accuracy else 0
                failed += plan.few_bits(presets, iterations) if few_bits else 0
                failed += plan.speed() if speed else 0
            except DqDeployError as error:
                out.warn(f"{name} failed: {error.message}")
                failed += 1
            out.note(f"{name}: {duration(time.monotonic() - started)}")
            write_report(results, results.parent)
        write_report(results, results.parent)
        out.note(f"wrote {results.parent / 'RESULTS.md'}")
        sys.exit(1 if failed else 0)
    except DqDeployError as error:
        out.error(error)
        sys.exit(error.exit_code)


@dataclass(frozen=True)
class _Plan:
    """One network's part of a run; each part warns of what failed and gives its number."""

    name: str
    settings: Settings
    methods: tuple[str, ...] | None
    seeds: tuple[int, ...]
    results: Path
    again: bool
    rounds: int
    note: str
    out: Output

    def accuracy(self) -> int:
        """Cells of the accuracy harness."""
        return self._cells(accuracy_folder(self.results, self.settings), (PRESET,), MEASURED, self.settings)

    def few_bits(self, presets: tuple[str, ...], iterations: int) -> int:
        """The same with fewer bits, in a folder of its own: its weights may be others than those of what was measured before."""
        settings = self.settings.model_copy(update={"iterations": iterations})
        return self._cells(few_bits_folder(self.results, settings), presets, FEW_BITS, settings)

    def _cells(self, folder: Path, presets: tuple[str, ...], known: tuple[str, ...], settings: Settings) -> int:
        write_text(folder / f"{self.name}.json", json.dumps(self._facts(), indent=1))
        folders = Folders(folder, work_folder() / "accuracy", DATA)
        methods = known if self.methods is None else tuple(name for name in self.methods if name in known)
        scope = Scope((source_name(self.name),), presets, methods, self.seeds, settings, folders)
        return len(Run(scope, ("grid",), 1, None, self.again, self.out).measure())

    def _facts(self) -> dict[str, Any]:
        own, weights = network(self.name), work_folder() / "trained" / self.name / WEIGHTS
        steps = 0
        if weights.is_file():
            with safe_open(weights, "pt") as file:
                steps = int((file.metadata() or {}).get("steps", 0))
        parameters = sum(p.numel() for p in own.fresh().parameters())
        return {"name": self.name, "title": own.title, "family": own.family, "parameters": parameters, "trained_steps": steps,
                "time": own.time, "conditions": own.conditions}  # fmt: skip

    def speed(self) -> int:
        """In a process of its own: an engine that dies takes nothing else with it."""
        file = self.results / SPEED / f"{self.name}.json"
        if file.is_file() and not self.again:
            return 0
        task = SpeedTask(self.name, self.settings.model_dump(), str(work_folder() / "accuracy"), str(file), rounds=self.rounds)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])}
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.networks.speed"], input=json.dumps(asdict(task)), text=True, env=environment, check=False
        )
        if done.returncode:
            self.out.warn(f"{self.name} (speed) failed with exit code {done.returncode}")
            return 1
        found = json.loads(file.read_text())
        write_text(file, json.dumps({**found, "note": self.note, "measured": datetime.now(UTC).strftime("%Y-%m-%d")}, indent=1))
        return 0
