"""A bundle cut into head, body and tail, whose body is skipped at steps where the first block's residual barely moves.

The rule is First-Block-Cache's (ParaAttention, github.com/chengzeyi/ParaAttention; diffusers' ``FirstBlockCacheConfig``): the head runs at
every step; where max_n mean|r − r'| / mean|r'| < threshold, with r what the first block adds and r' what it added in the last step in
full, the body is skipped. What it added then is added now. Of a UNet what it gave then is taken, as DeepCache does (arXiv 2312.00858),
at the outermost level.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...artifacts import Artifact
from ...artifacts.details import BundleDetails
from ...errors import UsageError
from ...quantization.calibration.recording import varying_names
from ...quantization.calling import call_of_record
from ..running.runner import TIMESTEP, Array, GraphRunner, PartsRunner, gathered, taken
from .parts import Part, write_parts
from .steps import CacheReport, Kept, Run, condition_key, relative_change

MakeRunner = Callable[[Artifact[Any]], PartsRunner]
"""Makes the runner of a bundle, or of a part of one."""


class CachedRunner(GraphRunner):
    """A bundle that skips its body; ``make`` opens each part on the engine that would run the whole.

    At a ``threshold`` of 0 every step runs in full, the parts one after the other. Threads have a run each. The parts lie in a temporary
    folder for as long as the runner does, and take as much room there as the bundle's graph.

    Raises UsageError for a threshold that is negative or not finite and for a network that cannot be cut, and what ``make`` raises.
    """

    def __init__(self, bundle: Artifact[BundleDetails], threshold: float, make: MakeRunner) -> None:
        self._threshold = check_threshold(threshold)
        folder = Path(tempfile.mkdtemp(prefix="dq-deploy-cache-"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._parts = parts = write_parts(bundle, folder)
        self._head, self._body, self._tail = (_Opened(part, make(part.bundle)) for part in (parts.head, parts.body, parts.tail))
        self.specs = self._head.runner.specs
        self.nonfinite = self._head.runner.nonfinite
        self._conditions = _conditions(bundle.details)
        timesteps = bundle.manifest.timesteps or [0.0]
        self._span = (min(timesteps), max(timesteps))
        self._local, self._counting = threading.local(), threading.Lock()
        self._calls = self._skipped = 0

    @property
    def name(self) -> str:  # type: ignore[override]  # a part may fall back to another engine while it runs
        """The engine, or those of the parts."""
        return "+".join(dict.fromkeys(part.runner.name for part in (self._head, self._body, self._tail)))

    @property
    def details(self) -> dict[str, Any]:  # type: ignore[override]
        """Those of the body's runner, and how the graph is cut."""
        parts = self._parts
        cut = {"threshold": self._threshold, "behind": parts.where, "before": parts.kept, "residual": parts.residual}
        return {**self._body.runner.details, "cache": cut}

    def report(self) -> CacheReport:
        """What was saved so far, by all threads."""
        return CacheReport(calls=self._calls, skipped=self._skipped, body_work=self._parts.skipped_work)

    @property
    def _run(self) -> Run:
        if not hasattr(self._local, "run"):
            self._local.run = Run(self._span)
        found: Run = self._local.run
        return found

    def _infer_in_parts(self, feeds: dict[str, Array]) -> Array:
        steps = feeds[TIMESTEP]
        timesteps = np.unique(steps)
        if len(timesteps) == 1:
            return super()._infer_in_parts(feeds)
        outputs = []
        for timestep in timesteps:  # a batch that mixes them is no step of a run
            self._run.forget()
            samples = np.flatnonzero(steps == timestep)
            outputs.append((samples, super()._infer_in_parts(taken(self.specs, feeds, samples))))
        self._run.forget()
        return gathered(outputs)

    def _infer(self, feeds: dict[str, Array]) -> Array:
        parts, run = self._parts, self._run
        run.visit(float(feeds[TIMESTEP].reshape(-1)[0]))
        values = feeds | self._head.infer(feeds)
        first = values[parts.first]
        residual = _wide(first) - _wide(values[parts.entry])
        key = condition_key(feeds, self._conditions, residual.shape)
        kept = None if run.at_an_end else run.kept.get(key)
        skip = kept is not None and relative_change(residual, kept.residual) < self._threshold
        if kept is not None and skip:
            last = (_wide(first) + kept.body).astype(first.dtype) if parts.residual else kept.body
        else:
            last = self._body.infer(values)[parts.last]
            run.keep(key, Kept(residual, _wide(last) - _wide(first) if parts.residual else last))
        with self._counting:
            self._calls += 1
            self._skipped += skip
        (output,) = self._tail.infer(values | {parts.last: last}).values()
        return output


@dataclass(frozen=True)
class _Opened:
    """A part and its runner."""

    part: Part
    runner: PartsRunner

    def infer(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """The part's outputs by name."""
        feeds = {name: values[name] for name in self.part.inputs}
        return dict(zip(self.part.outputs, self.runner.infer_all(feeds), strict=True))


def _wide(array: Array) -> Array:
    """Sums and differences are computed in fp32 at the least."""
    return array.astype(np.promote_types(array.dtype, np.float32), copy=False)


def _conditions(details: BundleDetails) -> list[str]:
    """The inputs that stay as they are through a run; a ControlNet's residuals do not."""
    form, _ = call_of_record(details.call_record, details.input_names, (details.network_config or {}).get("_class_name"))
    _, *others = details.input_names
    changing = {TIMESTEP, *varying_names(form, details.input_names)}
    return [name for name in others if name not in changing]


def check_threshold(threshold: float) -> float:
    """Raises UsageError for what is no threshold."""
    number = isinstance(threshold, int | float) and not isinstance(threshold, bool)
    if not (number and math.isfinite(threshold) and threshold >= 0):
        raise UsageError(f"a cache threshold is a number of 0 or more, and {threshold!r} is given", "begin with 0.1, and 0 skips nothing")
    return float(threshold)
