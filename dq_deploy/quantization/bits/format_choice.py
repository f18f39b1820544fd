"""Which linear layers multiply FP8 where the others have FP4: those whose rounding to FP4 costs the network's output most for their size.

Each layer is rounded alone in the float network (``sensitivity.py``); errors of different layers are taken to add up there. Layers that
read one tensor share its codes, and engines merge their products, so they have one format. They are taken in the order of error for each
weight.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...artifacts.details import FormatChoice
from ...formats import FP4, FP8
from ...progress import Progress, silent
from ..calibration.trajectories import Trajectories
from ..config import QuantizeConfig
from ..graph.plan import Plan, as_fp8
from ..graph.products import GraphLayer
from ..graph.skip_halves import name_matches
from ..prepare import Prepared
from .sensitivity import MOST_TIMESTEPS, SEEDS, Sensitivity, sensitivities_on

MOST_WEIGHTS = 1 / 16
"""Share of the weights of these layers that may become FP8: the whole then stays below 0.15 of fp32's bytes (docs/decisions/nvfp4.md)."""
LOSES = 2.0
"""Times their share of the weights that layers' share of the error must be: what spreads evenly is FP4's price, and no layer's fault."""


def choose_formats(prepared: Prepared, data: Trajectories, progress: Progress = silent) -> list[FormatChoice]:
    """A choice for all layers planned in FP4 that read one tensor, but for those that the user's ``keep`` names."""
    layers = [layer for layer in prepared.plan.quantized if layer.activation_format is FP4 and not _kept(layer, prepared.config)]
    measured = sensitivities_on(prepared, data, layers, lambda _: [(FP4.bits, FP4.bits)], progress)
    read: dict[object, list[Sensitivity]] = {}
    for layer, found in zip(layers, measured, strict=True):
        read.setdefault(layer.node.args[0], []).append(found)
    return choose(list(read.values()))


def choose(measured: Sequence[Sequence[Sensitivity]]) -> list[FormatChoice]:
    """The choices, from what was measured of the layers that read one tensor."""
    noise = torch.tensor([sum(float(x.noise[FP4.bits, FP4.bits].median()) for x in group) for group in measured])
    weights = torch.tensor([float(sum(x.weights for x in group)) for group in measured])
    error, size = noise / noise.sum().clamp(min=1e-30), weights / weights.sum().clamp(min=1)
    left, chosen = MOST_WEIGHTS, set()
    for index in (error / size).argsort(descending=True).tolist():
        if error[index] >= LOSES * size[index] and size[index] <= left:
            chosen.add(index)
            left -= float(size[index])
    return [
        FormatChoice(
            layers=[x.layer for x in group], error_share=round(float(error[i]), 5), weight_share=round(float(size[i]), 5),
            chosen=(FP8 if i in chosen else FP4).name.lower(),
        )
        for i, group in enumerate(measured)
    ]  # fmt: skip


def take_formats(plan: Plan, choices: Sequence[FormatChoice], config: QuantizeConfig) -> None:
    """Let the plan's layers have the formats that were chosen."""
    fp8 = {name for choice in choices if choice.chosen == FP8.name.lower() for name in choice.layers}
    for layer in plan.quantized:
        if layer.name in fp8:
            as_fp8(layer, config)


def _kept(layer: GraphLayer, config: QuantizeConfig) -> bool:
    return any(name_matches(layer.name, pattern) for pattern in config.keep)


def passes_of_choice(plan: Plan) -> float:
    """Passes of a sample through the network that the choice takes, each layer's from it on."""
    return sum(layer.activation_format is FP4 for layer in plan.quantized) * MOST_TIMESTEPS * SEEDS / 2
