"""First values of every scale table, fitted to all calibration samples a few at a time."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch.fx import GraphModule

from .. import numerics
from ..calibration.trajectories import Trajectories
from ..config import QuantizeConfig
from ..graph.calls import arguments
from ..graph.shapes import live_bytes
from .group_setter import Group
from .watcher import Watcher

_PASS_BYTES = 4 << 30  # of a pass's values: a Stable Diffusion has a gigabyte of attention scores and probabilities for each sample


def fit_tables(float_graph: GraphModule, groups: Mapping[str, list[Group]], data: Trajectories, fit: slice | None, config: QuantizeConfig,
               advance: Any = lambda *_: None) -> None:  # fmt: skip
    """Fit every table to all the samples ``fit`` at each timestep, as they are with the dilations that the quantizers have.

    None: all samples of every size. The samples go through the network a few at a time, and only what was observed of them is kept.
    """
    watched = Observer(float_graph, groups, advance)
    for sized in data.by_size if fit is None else (data,):
        rows = numerics.select_table_rows(sized.timesteps, numerics.midpoints(data.timesteps)).tolist()
        for index, at, part in passes(float_graph, sized, fit, config):
            watched.observe(rows[index], at, sized.samples[index, part], sized.given(index, part), part.start)
    for group in chain.from_iterable(groups.values()):
        group.quantizer.calibrate(watched.seen[group.name], config)


def passes(float_graph: GraphModule, data: Trajectories, fit: slice | None, config: QuantizeConfig) -> list[tuple[int, float, slice]]:
    """Index and value of the timestep, and samples, of each pass of ``fit_tables`` at the first size; None: over all of its samples."""
    fit = fit or slice(0, data.samples.shape[1])
    count = samples_in_a_pass(live_bytes(list(float_graph.graph.nodes)), config)
    starts = range(fit.start, fit.stop, count)
    return [(row, at, slice(i, min(i + count, fit.stop))) for row, at in enumerate(data.timesteps.tolist()) for i in starts]


def samples_in_a_pass(sample_bytes: int, config: QuantizeConfig) -> int:
    """How many samples of one timestep go through the network together, where one of them takes ``sample_bytes``."""
    return max(1, min(config.batch_size, _PASS_BYTES // max(1, sample_bytes)))


class Observer(Watcher):
    """Remembers of each group's values, by row of its table, what a table is fitted to."""

    def __init__(self, module: GraphModule, groups: Mapping[str, list[Group]], advance: Any) -> None:
        super().__init__(module, groups, advance)
        self.seen = {group.name: group.quantizer.observation() for group in chain.from_iterable(groups.values())}
        self.row, self.timestep, self.first = 0, 0.0, 0

    def observe(self, row: int, timestep: float, samples: torch.Tensor, conditions: Mapping[str, torch.Tensor], first: int) -> None:
        """Run ``samples`` [m, ...], of which ``first`` is the first, at the timestep of ``row``."""
        self.row, self.timestep, self.first = row, timestep, first
        assert isinstance(self.module, GraphModule)
        self.run(*arguments(self.module, samples, torch.full((len(samples),), timestep), conditions))

    def watch(self, group: Group, value: torch.Tensor) -> None:
        """Remember what of ``value`` [N, ...] a table is fitted to."""
        seen = self.seen[group.name]
        seen.add(group.quantizer.divided(value), self.row if len(seen.low) > 1 else 0)

    def where(self, sample: int) -> tuple[float, int]:
        """As ``Watcher`` says."""
        return self.timestep, self.first + sample
