"""Which inputs of linear layers get a scale for each token where the choice is ours: those whose layers' outputs it brings nearer.

Judged by the error that rounding the activation alone makes in the layers' outputs; weights' rounding is the same with both kinds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.fx import GraphModule, Node

from ...artifacts.details import ScaleChoice
from ...progress import Progress, silent
from ..calibration.trajectories import Trajectories
from ..config import QuantizeConfig
from ..graph.plan import Plan
from ..graph.products import GraphLayer
from ..quantizers import TokenQuantizer
from .output_noise import Candidates, candidate, judged, judged_passes

LEAD_DB = 1.0
"""A scale for each token costs a pass over the activation where it is made, and must be worth so much of a layer's SNR."""


def choose_scales(float_graph: GraphModule, plan: Plan, data: Trajectories, config: QuantizeConfig,
                  progress: Progress = silent) -> list[ScaleChoice]:  # fmt: skip
    """A choice for every tensor that linear layers of the plan read."""
    read, kinds = _tensors(plan), (plan.quantizer, TokenQuantizer.kind)
    candidates: Candidates = {}
    for index, layers in enumerate(read):
        node = layers[0].node.args[0]
        assert isinstance(node, Node)
        made = [candidate(plan, layers, f"{index} {kind}", kind, float_graph, data) for kind in kinds]
        candidates.setdefault(node.name, []).extend(made)
    if not candidates:
        return []
    with progress("scales of activations", sum(map(len, candidates.values())) * judged_passes(float_graph, data, config)) as advance:
        snr = judged(float_graph, candidates, data, config, advance)
    return [_choice(layers, {kind: snr[f"{index} {kind}"] for kind in kinds}) for index, layers in enumerate(read)]


def take_choices(plan: Plan, choices: Sequence[ScaleChoice]) -> None:
    """Let the plan's layers have the kinds that were chosen."""
    chosen = {name: choice.chosen for choice in choices for name in choice.layers}
    for layer in plan.quantized:
        layer.quantizer = chosen.get(layer.name, layer.quantizer)


def _choice(layers: Sequence[GraphLayer], snr: Mapping[str, float]) -> ScaleChoice:
    table, token = snr
    chosen = token if snr[token] >= snr[table] + LEAD_DB else table
    return ScaleChoice(layers=[layer.name for layer in layers], snr_db=dict(snr), chosen=chosen)


def _tensors(plan: Plan) -> list[list[GraphLayer]]:
    """The linear layers with a choice of scales, by the tensor and format that they read."""
    found: dict[tuple[Any, ...], list[GraphLayer]] = {}
    for layer in plan.quantized:
        if layer.op == "linear" and not layer.weight_only and not layer.activation_format.block:
            found.setdefault((layer.node.args[0], layer.activation_format), []).append(layer)
    return list(found.values())
