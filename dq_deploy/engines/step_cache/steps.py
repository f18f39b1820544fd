"""What is kept from step to step, and when a step may be skipped. Nothing here knows of graphs.

A **run** is the timesteps that a sampler goes through in one direction; where they turn back, the next begins and nothing is kept. In a
run, calls with the same conditions belong together: a pipeline may call its network twice a step, with the prompt and without.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from pydantic import computed_field

from ...artifacts.records import Record
from ..running.runner import Array

_MOST = 4
"""Conditions that something is kept for: with the prompt, without, and with a picture alone, as guidance by two takes; and one to spare."""

_NEARLY = 7 / 8
"""Of a stride: schedules round their timesteps, so the one before the last may seem to lead a little beyond it."""


class CacheReport(Record):
    """What caching across steps has saved so far.

    ``calls`` of the network, ``skipped`` those in which the body did not run, and ``body_work``, its share of the multiply-accumulates in
    products (None where the manifest lists none).
    """

    calls: int
    skipped: int
    body_work: float | None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def skipped_share(self) -> float:
        """Of the calls; 0 before there was one."""
        return self.skipped / self.calls if self.calls else 0.0

    @computed_field  # type: ignore[prop-decorator]
    @property
    def saved_work(self) -> float | None:
        """Share of all multiply-accumulates that were not computed."""
        return None if self.body_work is None else self.skipped_share * self.body_work


@dataclass(frozen=True)
class Kept:
    """Of the last call that ran in full: the first block's residual [N, ...], and what the body gave [N, ...], or added."""

    residual: Array
    body: Array


@dataclass
class Run:
    """Where a sampler is. ``span`` are the least and the largest calibrated timestep."""

    span: tuple[float, float]
    timestep: float | None = None
    stride: float | None = None
    kept: OrderedDict[str, Kept] = field(default_factory=OrderedDict)

    def visit(self, timestep: float) -> None:
        """Go on to a timestep, or begin anew where it lies back."""
        if self.timestep is not None and timestep != self.timestep:
            stride = timestep - self.timestep
            back = self.stride is not None and (stride > 0) != (self.stride > 0)
            if back:
                self.kept.clear()
            self.stride = None if back else stride
        self.timestep = timestep

    @property
    def at_an_end(self) -> bool:
        """Whether this is the first timestep of the run, or the next one at the same stride would lie beyond all calibrated ones."""
        if self.timestep is None or self.stride is None:
            return True
        following = self.timestep + _NEARLY * self.stride
        return following < self.span[0] if self.stride < 0 else following > self.span[1]

    def keep(self, key: str, kept: Kept) -> None:
        """Remember a call in full."""
        self.kept[key] = kept
        self.kept.move_to_end(key)
        if len(self.kept) > _MOST:
            self.kept.popitem(last=False)

    def forget(self) -> None:
        """Begin anew with whatever comes."""
        self.kept.clear()
        self.timestep = self.stride = None


def relative_change(residual: Array, before: Array) -> float:
    """By how much the first block's residual r [N, ...] differs from r' of the last call in full: mean |r − r'| / mean |r'|.

    The sample that moves most decides for the batch. NaN where one is not finite, or was zero and is.
    """
    axes = tuple(range(1, residual.ndim))
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.max(np.abs(residual - before).mean(axes) / np.abs(before).mean(axes)))


def condition_key(feeds: Mapping[str, Array], names: Iterable[str], shape: tuple[int, ...]) -> str:
    """A hash of some inputs [N, ...], values and shapes, and of the residual's ``shape``."""
    found = hashlib.blake2b(str(shape).encode(), digest_size=16)
    for name in names:
        array = np.ascontiguousarray(feeds[name])
        found.update(f"{name} {array.dtype} {array.shape}".encode())
        found.update(array.data)
    return found.hexdigest()
