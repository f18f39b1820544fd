"""Which cells a run has to measure, in which order, and how long it will take."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

import torch

from .child import Task
from .confirmed import same_code
from .drawing import BATCH, Drawing
from .identity import State, identity, state
from .measuring import SAMPLES, TRACE
from .methods import BY_NAME, DILATEQUANT, FEW_BITS, METHODS, PRESETS, method, representative
from .models import Reference
from .results import CellResult, read_result
from .settings import FLOAT, Cell, DrawnBy, Settings, Tier
from .workspace import Workspace

BEST_RIVALS = 3
HEADLINE_RIVAL_PRESET = "w4a4"
# In units of the float model's forward of one sample, measured on the built-in UNet with one thread; past cells replace them.
_QUANTIZED_FORWARD = 1.5
_TRAINING_STEP = 5.5
_INITIALIZE = 8.0
_INITIALIZE_AUTO = 40.0  # the error-aware dilation tries its rules by the whole network
_START_S = 6.0
_INCEPTION_S = 0.15


@dataclass(frozen=True)
class Folders:
    """Figures that are committed; checkpoints and pictures that are not; the real pictures."""

    results: Path
    work: Path
    data: Path


@dataclass(frozen=True)
class Scope:
    """What the user asked for."""

    models: tuple[str, ...]
    presets: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    settings: Settings
    folders: Folders
    device: str = "cpu"
    threads: int = 1
    drawn_by: DrawnBy = "torch"

    def task(self, cell: Cell, tier: Tier) -> Task:
        """A cell's task."""
        places = self.folders
        return Task(cell=cell, tier=tier, settings=self.settings, results=places.results, work=places.work, data=places.data,
                    device=self.device, threads=self.threads, drawn_by=self.drawn_by)  # fmt: skip


@dataclass(frozen=True)
class Planned:
    """A task, whether its figures are there, and what it is expected to take."""

    task: Task
    state: State
    reason: str
    estimate_s: float


class Planner:
    """Plans tiers one after the other: who the rivals are is known when the grid has been measured."""

    def __init__(self, scope: Scope, references: dict[str, Reference]) -> None:
        self.scope, self.references = scope, references
        self._same = same_code(scope.folders.results)
        self._units: dict[str, float] = {}

    def plan(self, tier: Tier) -> list[Planned]:
        """Every task of a tier, float models first."""
        return [self._planned(task) for task in self._tasks(tier)]

    def _tasks(self, tier: Tier) -> Iterator[Task]:
        scope = self.scope
        for model in scope.models:
            yield scope.task(Cell(model=model, preset=FLOAT, method=FLOAT), tier)
        for model in scope.models:
            for seed in scope.seeds:
                for preset in scope.presets:
                    for name in self._methods(tier, model, preset, seed):
                        yield scope.task(Cell(model=model, preset=preset, method=name, seed=seed), tier)

    def _methods(self, tier: Tier, model: str, preset: str, seed: int) -> list[str]:
        """Methods of a tier at a preset, each configuration once."""
        family = self.references[model].family
        prompted = self.references[model].prompted is not None  # whose rows are few: all are compared with real pictures
        if tier == "grid" or (tier == "rival" and prompted):
            offered = [name for name in self.scope.methods if method(name).compared(preset, family)]
            return list(dict.fromkeys(representative(name, preset, self.scope.settings, family=family) for name in offered))
        rivals = self.best_rivals(model, preset, seed)
        if tier == "headline":
            rivals = rivals[:1] if preset == HEADLINE_RIVAL_PRESET else []
        return [name for name in [DILATEQUANT, *rivals] if name in self.scope.methods]

    def best_rivals(self, model: str, preset: str, seed: int) -> list[str]:
        """The rivals with the highest mean PSNR in the grid, at most three."""
        found = {}
        for rival in METHODS:
            cell = Cell(model=model, preset=preset, method=rival.name, seed=seed)
            result = read_result(cell.result_file(self.scope.folders.results)) if rival.rival else None
            if result and result.grid and result.grid.psnr_db:
                found[rival.name] = mean(result.grid.psnr_db)
        return sorted(found, key=lambda name: -found[name])[:BEST_RIVALS]

    def _planned(self, task: Task) -> Planned:
        reference = self.references[task.cell.model]
        now = identity(task.cell, task.settings, model_sha256=reference.source.sha256, family=reference.family)
        found = read_result(task.cell.result_file(task.results))
        what, why = state(found, now, task.settings, task.tier, self._same)
        workspace = Workspace(task.work, task.cell.model, reference.source.sha256)
        if task.cell.method == FLOAT and task.tier == "grid" and what == "done":
            folder = workspace.float_folder(task.settings)
            if not ((folder / SAMPLES).is_file() and (folder / TRACE).is_file()):
                what, why = "missing", "not drawn on this machine yet"
        return Planned(task, what, why, self._estimate(task))

    def _estimate(self, task: Task) -> float:
        """Seconds; from past cells of the same model where there are some."""
        settings, samples = task.settings, task.settings.samples(task.tier)
        forward = self._unit(task.cell.model)
        if task.tier != "grid":
            before = settings.grid_samples if task.tier == "rival" else settings.rival_samples
            drawing = max(samples - before, 0) * settings.steps * forward * (1 if task.cell.method == FLOAT else _QUANTIZED_FORWARD)
            return drawing + (samples * _INCEPTION_S if task.tier == "headline" else 0)
        past = list(self._past(task))
        if past:
            return mean(past)
        if task.cell.method == FLOAT:
            return _START_S + forward * (samples + settings.snr_samples) * settings.steps
        inputs = settings.calibration_samples * settings.steps
        chosen = method(task.cell.method)
        initialize = _INITIALIZE_AUTO if chosen.options.get("dilation", "auto") == "auto" else _INITIALIZE
        work = 2 * inputs + min(settings.calibration_samples, 8) * settings.steps * initialize
        iterations = chosen.iterations(settings)
        work += iterations * settings.batch_size * _TRAINING_STEP + (inputs * (1 + _QUANTIZED_FORWARD) if iterations else 0)
        return _START_S + forward * (work + (samples + settings.snr_samples) * settings.steps * _QUANTIZED_FORWARD)

    def _past(self, task: Task) -> Iterator[float]:
        """Seconds of the same method at any preset, or else of any method that trains alike."""
        cells = [r for r in self._results(task.cell.model) if r.settings == task.settings and r.cost and r.grid]
        same = [r for r in cells if r.cell.method == task.cell.method]
        if not same and task.cell.method != FLOAT:
            own = method(task.cell.method)
            alike = [r for r in cells if _kind(r.cell.method) == (own.tool, own.training)]
            times = [r.cost.wall_s + r.grid.wall_s for r in alike if r.cost and r.grid]
            yield from [median(times)] if times else []
        yield from (r.cost.wall_s + r.grid.wall_s for r in same if r.cost and r.grid)

    def _results(self, model: str) -> Iterable[CellResult]:
        folder = Cell(model=model, preset=FLOAT, method=FLOAT).result_file(self.scope.folders.results).parent.parent
        return [found for path in sorted(folder.glob("*/*.json")) if (found := read_result(path))]

    def _unit(self, model: str) -> float:
        """Seconds of the float model's forward for one sample, in batches as they are drawn in."""
        if model not in self._units:
            reference = self.references[model]
            source = reference.source
            denoiser = reference.guided(reference)
            drawing = Drawing(source.scheduler, source.sample_shape, 2, reference.conditions)
            with _threads(self.scope.threads):
                drawing.samples(denoiser, range(BATCH))
                # The processor's time: what else runs on the machine just now is not the cells' doing.
                started = time.process_time()
                drawing.samples(denoiser, range(BATCH))
                self._units[model] = (time.process_time() - started) / (2 * BATCH * self.scope.threads)
        return self._units[model]


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """PyTorch's threads, for a while: how many there are decides the last bits of every sum in the process."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _kind(name: str) -> tuple[str, str] | None:
    known = BY_NAME.get(name)
    return (known.tool, known.training) if known else None


def pending(plan: Sequence[Planned], *, rerun_stale: bool) -> list[Planned]:
    """The tasks to run."""
    return [p for p in plan if p.state == "missing" or (rerun_stale and p.state == "stale")]


def default_presets() -> tuple[str, ...]:
    """All presets, the hardest first: there the methods differ most."""
    return tuple(reversed((*PRESETS, *FEW_BITS)))
