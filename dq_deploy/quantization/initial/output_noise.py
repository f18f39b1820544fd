"""What the rounding of linear layers' inputs, and where it is wanted of their weights, makes of the layers' outputs in the float network.

Quantizers are fitted to some seeds of the float network's own values and judged on others. Nothing is known then of dilations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import GraphModule, Node

from ...decibels import floored, ratio_db
from .. import numerics
from ..calibration.trajectories import Trajectories
from ..config import QuantizeConfig
from ..graph.calls import arguments, device_of
from ..graph.plan import Plan
from ..graph.products import GraphLayer
from ..graph.shapes import static_shape
from ..quantizers import QUANTIZERS
from .group_setter import Group
from .initialize import fit_and_judge
from .tables import fit_tables, passes
from .watcher import Watcher


@dataclass
class Candidate(Group):
    """A quantizer to be judged. ``rounded`` are the weights that its codes are multiplied with; of a layer that is not there, its own."""

    rounded: dict[str, torch.Tensor] = field(default_factory=dict)


Candidates = dict[str, list[Candidate]]
"""By the name of the node that they read."""


def candidate(plan: Plan, layers: Sequence[GraphLayer], name: str, kind: str | None, graph: GraphModule, data: Trajectories) -> Candidate:
    """A quantizer of ``kind`` (None: the plan's) for the tensor that linear ``layers`` of a float ``graph`` read."""
    node = layers[0].node.args[0]
    assert isinstance(node, Node)
    reading, channels = plan.reading(layers[0], node, kind), static_shape(node.meta["val"])[-1]
    quantizer = QUANTIZERS[reading.kind](data.timesteps, reading.fmt, symmetric=reading.symmetric, axis=-1, channels=channels)
    weights = {layer.name: graph.get_buffer(str(layer.node.args[1].target)) for layer in layers}  # type: ignore[union-attr]
    return Candidate(name, quantizer.to(device_of(graph)), {}, weights)


def judged_passes(graph: GraphModule, data: Trajectories, config: QuantizeConfig) -> int:
    """Passes of the float network that ``judged`` makes."""
    return sum(len(passes(graph, data, part, config)) for part in fit_and_judge(data))


@torch.no_grad()
def judged(graph: GraphModule, candidates: Candidates, data: Trajectories, config: QuantizeConfig, advance: Any) -> dict[str, float]:
    """SNR in dB of the layers' outputs by the candidate's name, each timestep's noise relative to its own signal."""
    fit, judge = fit_and_judge(data)
    fit_tables(graph, candidates, data, fit, config, advance)  # type: ignore[arg-type]  # a list of a subclass
    run = _Judge(graph, candidates, len(data.timesteps), advance)
    run.run_all(data, passes(graph, data, judge, config))
    return {name: run.snr_db(name) for name in run.sums}


class _Judge(Watcher):
    """Sums, by candidate and row, the power of the layers' outputs and of the error in them."""

    def __init__(self, module: GraphModule, groups: Candidates, table_rows: int, advance: Any) -> None:
        super().__init__(module, groups, advance)  # type: ignore[arg-type]  # a list of a subclass
        self.sums = {group.name: torch.zeros(table_rows, 2, dtype=torch.float64) for group in chain.from_iterable(groups.values())}
        self.row, self.timestep, self.first = 0, 0.0, 0

    def run_all(self, data: Trajectories, parts: Sequence[tuple[int, float, slice]]) -> None:
        """Run the samples of each part at its timestep."""
        assert isinstance(self.module, GraphModule)
        for self.row, self.timestep, part in parts:
            samples, self.first = data.samples[self.row, part], part.start
            self.run(*arguments(self.module, samples, torch.full((len(samples),), self.timestep), data.given(self.row, part)))

    def watch(self, group: Group, value: torch.Tensor) -> None:
        """Add what the candidate makes of ``value``."""
        assert isinstance(group, Candidate)
        codes, scale = group.quantizer(value, torch.full((len(value),), self.timestep, device=value.device))
        made = codes * numerics.per_sample(scale, codes)
        for name, weight in group.weights.items():
            exact = F.linear(value, weight)
            error = F.linear(made, group.rounded.get(name, weight)) - exact
            self.sums[group.name][self.row] += torch.tensor([float(x.double().square().sum()) for x in (exact, error)]).double()

    def where(self, sample: int) -> tuple[float, int]:
        """As ``Watcher`` says."""
        return self.timestep, self.first + sample

    def snr_db(self, name: str) -> float:
        """Of all timesteps together."""
        power, noise = self.sums[name].T
        return round(floored(ratio_db(1.0, float((noise / power.clamp(min=1e-30)).mean()))), 3)
