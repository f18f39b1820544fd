"""Which inputs of linear layers get a scale for each token where the choice is ours: those whose layers' outputs it brings nearer.

Both kinds are fitted to some seeds of the float network's own values and judged on others, by the error that rounding the activation alone
makes in the layers' outputs. Nothing is known then of dilations or of weights' rounding, which both kinds share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import GraphModule, Node

from ...artifacts.details import ScaleChoice
from ...decibels import ratio_db
from ...progress import Progress, silent
from .. import numerics
from ..calibration.trajectories import Trajectories
from ..config import QuantizeConfig
from ..graph.plan import Plan
from ..graph.products import GraphLayer
from ..graph.shapes import static_shape
from ..quantizers import QUANTIZERS, TokenQuantizer
from .group_setter import Group
from .initialize import fit_and_judge
from .tables import fit_tables, passes
from .watcher import Watcher, arguments

LEAD_DB = 1.0
"""A scale for each token costs a pass over the activation where it is made, and must be worth so much of a layer's SNR."""


@torch.no_grad()
def choose_scales(float_graph: GraphModule, plan: Plan, data: Trajectories, config: QuantizeConfig,
                  progress: Progress = silent) -> list[ScaleChoice]:  # fmt: skip
    """A choice for every tensor that linear layers of the plan read."""
    read = _tensors(plan)
    groups: dict[str, list[Group]] = {}
    for index, layers in enumerate(read):
        node = layers[0].node.args[0]
        assert isinstance(node, Node)
        weights = {layer.name: float_graph.get_buffer(str(layer.node.args[1].target)) for layer in layers}  # type: ignore[union-attr]
        made = [Group(f"{index} {kind}", _quantizer(plan, layers[0], node, kind, data), {}, weights) for kind in _kinds(plan)]
        groups.setdefault(node.name, []).extend(made)
    fit, judge = fit_and_judge(data)
    count = sum(map(len, groups.values())) * sum(len(passes(float_graph, data, part, config)) for part in (fit, judge))
    with progress("scales of activations", count) as advance:
        fit_tables(float_graph, groups, data, fit, config, advance)
        judged = _Judge(float_graph, groups, len(data.timesteps), advance)
        judged.run_all(data, passes(float_graph, data, judge, config))
    return [_choice(layers, {kind: judged.snr_db(f"{index} {kind}") for kind in _kinds(plan)}) for index, layers in enumerate(read)]


def take_choices(plan: Plan, choices: Sequence[ScaleChoice]) -> None:
    """Let the plan's layers have the kinds that were chosen."""
    chosen = {name: choice.chosen for choice in choices for name in choice.layers}
    for layer in plan.quantized:
        layer.quantizer = chosen.get(layer.name, layer.quantizer)


def _kinds(plan: Plan) -> tuple[str, str]:
    return plan.quantizer, TokenQuantizer.kind


def _choice(layers: Sequence[GraphLayer], snr: Mapping[str, float]) -> ScaleChoice:
    table, token = snr
    chosen = token if snr[token] >= snr[table] + LEAD_DB else table
    rounded = {kind: round(value, 3) for kind, value in snr.items()}
    return ScaleChoice(layers=[layer.name for layer in layers], snr_db=rounded, chosen=chosen)


def _tensors(plan: Plan) -> list[list[GraphLayer]]:
    """The linear layers with a choice of scales, by the tensor and format that they read."""
    found: dict[tuple[Any, ...], list[GraphLayer]] = {}
    for layer in plan.quantized:
        if layer.op == "linear" and not layer.weight_only and not layer.activation_format.block:
            found.setdefault((layer.node.args[0], layer.activation_format), []).append(layer)
    return list(found.values())


def _quantizer(plan: Plan, layer: GraphLayer, node: Node, kind: str, data: Trajectories) -> Any:
    reading = plan.reading(layer, node, kind)
    channels = static_shape(node.meta["val"])[-1]
    return QUANTIZERS[kind](data.timesteps, reading.fmt, symmetric=reading.symmetric, axis=-1, channels=channels)


class _Judge(Watcher):
    """Sums, by group and row, the power of the layers' outputs and of the error that its quantizer makes in them."""

    def __init__(self, module: GraphModule, groups: Mapping[str, list[Group]], table_rows: int, advance: Any) -> None:
        super().__init__(module, groups, advance)
        self.sums = {group.name: torch.zeros(table_rows, 2, dtype=torch.float64) for part in groups.values() for group in part}
        self.row, self.timestep, self.first = 0, 0.0, 0

    def run_all(self, data: Trajectories, parts: Sequence[tuple[int, float, slice]]) -> None:
        """Run the samples of each part at its timestep."""
        assert isinstance(self.module, GraphModule)
        for self.row, self.timestep, part in parts:
            samples, self.first = data.samples[self.row, part], part.start
            self.run(*arguments(self.module, samples, torch.full((len(samples),), self.timestep), data.given(self.row, part)))

    def watch(self, group: Group, value: torch.Tensor) -> None:
        """Add what the group's quantizer makes of ``value``."""
        codes, scale = group.quantizer(value, torch.full((len(value),), self.timestep, device=value.device))
        error = codes * numerics.per_sample(scale, codes) - value
        for weight in group.weights.values():
            powers = [float(F.linear(x, weight).double().square().sum()) for x in (value, error)]
            self.sums[group.name][self.row] += torch.tensor(powers, dtype=torch.float64)

    def where(self, sample: int) -> tuple[float, int]:
        """As ``Watcher`` says."""
        return self.timestep, self.first + sample

    def snr_db(self, group: str) -> float:
        """SNR in dB of a group's outputs, each timestep's noise relative to its own signal."""
        power, noise = self.sums[group].T
        return ratio_db(1.0, float((noise / power.clamp(min=1e-30)).mean()))
