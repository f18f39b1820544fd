"""Which inputs of linear layers are rotated, and by which block, where the choice is ours: those whose layers' outputs it brings nearer.

Every block is tried on a copy of the float network in which all inputs are rotated by it. A layer's outputs are judged with its activation
rounded, and its weights too where their codes will be the nearest: GPTQ makes good what a rotation does to the weights' range, and
nearest codes do not (docs/decisions/rotation.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace

import torch
from torch.fx import GraphModule, Node

from ...artifacts.details import RotatedInput
from ...errors import UsageError
from ...formats import Kind, NumberFormat
from ...progress import Progress, silent
from .. import numerics
from ..calibration.trajectories import Trajectories
from ..choices import Rotation
from ..config import QuantizeConfig
from ..graph.plan import Plan
from ..graph.products import GraphLayer
from ..graph.rotation import BLOCKS, channels_read, largest_block, rotate, source_of, token_inputs
from ..quantizers.ranges import clips_weights
from .output_noise import Candidate, Candidates, candidate, judged, judged_passes

LEAD_DB = 1.0
"""A product more, or a larger one, must be worth so much of a layer's SNR."""
FOLDED_LEAD_DB = 0.25
"""What costs nothing must be more than the luck of the seeds."""


def check_rotation(plan: Plan, config: QuantizeConfig) -> None:
    """Raise UsageError where a block is asked for that no layer can have."""
    if config.rotation in (Rotation.NONE, Rotation.AUTO):
        return
    channels = sorted({channels_read(layers) for layers in token_inputs(plan)})
    if not any(largest_block(count, int(config.rotation)) for count in channels):
        found = f"their inputs have {', '.join(map(str, channels))} channels" if channels else "there are none"
        raise UsageError(
            f"rotation {config.rotation} is for linear layers on tokens whose input channels {BLOCKS[0]} divides, and {found}",
            "--rotation none",
        )


def choose_rotations(float_graph: GraphModule, plan: Plan, data: Trajectories, config: QuantizeConfig,
                     progress: Progress = silent) -> list[RotatedInput]:  # fmt: skip
    """A block for every tensor of tokens that linear layers of the plan read: with AUTO by measurement, else the asked one."""
    inputs = [layers for layers in token_inputs(plan) if largest_block(channels_read(layers), BLOCKS[-1])]
    if config.rotation is not Rotation.AUTO:
        most = int(config.rotation)
        return [RotatedInput(layers=_names(layers), block=largest_block(channels_read(layers), most)) for layers in inputs]
    blocks = [block for block in BLOCKS if any(channels_read(layers) % block == 0 for layers in inputs)]
    snr: dict[int, dict[int, float]] = {index: {} for index in range(len(inputs))}
    count = judged_passes(float_graph, data, config) * len(inputs) * (1 + len(blocks))
    with progress("rotations", count) as advance:
        for block in (0, *blocks) if inputs else ():
            fitting = {i: layers for i, layers in enumerate(inputs) if not block or channels_read(layers) % block == 0}
            graph, own = _copy(float_graph, fitting)
            if block:
                rotate(graph, [(layers, block) for layers in own.values()])
            for index, value in judged(graph, _candidates(graph, plan, own, data, config), data, config, advance).items():
                snr[int(index)][block] = value
    return [_choice(layers, snr[index]) for index, layers in enumerate(inputs)]


def take_rotations(float_graph: GraphModule, layers: Sequence[GraphLayer], chosen: Sequence[RotatedInput]) -> list[RotatedInput]:
    """Rotate what was chosen in the float graph that ``layers`` are of, in place; the choices, with what took a rotation."""
    by_name, names = ({layer.name: layer for layer in layers}, {layer.node: layer.name for layer in layers})
    turned = [choice for choice in chosen if choice.block]
    found = rotate(float_graph, [([by_name[name] for name in choice.layers], choice.block) for choice in turned])
    taken = {id(choice): node for choice, node in zip(turned, found, strict=True)}
    return [
        choice.model_copy(update={"folded_into": names[node]}) if (node := taken.get(id(choice))) is not None else choice
        for choice in chosen
    ]


def _copy(graph: GraphModule, inputs: Mapping[int, Sequence[GraphLayer]]) -> tuple[GraphModule, dict[int, list[GraphLayer]]]:
    """A copy of a float graph that shares its tensors, and the layers as they are in it."""
    made = deepcopy(graph, {id(tensor): tensor for tensor in graph.buffers()})
    by_name = {node.name: node for node in made.graph.nodes}
    return made, {i: [replace(layer, node=by_name[layer.node.name]) for layer in layers] for i, layers in inputs.items()}


def _candidates(graph: GraphModule, plan: Plan, inputs: Mapping[int, Sequence[GraphLayer]], data: Trajectories,
                config: QuantizeConfig) -> Candidates:  # fmt: skip
    found: Candidates = {}
    for index, layers in inputs.items():
        node = layers[0].node.args[0]
        assert isinstance(node, Node)
        made = candidate(plan, layers, str(index), None, graph, data)
        if not config.rounds_by_gptq:
            _round_weights(made, layers, config)
        found.setdefault(node.name, []).append(made)
    return found


def _round_weights(made: Candidate, layers: Sequence[GraphLayer], config: QuantizeConfig) -> None:
    for layer in layers:
        if layer.weight_format.kind is not Kind.CODEBOOK:
            clip = clips_weights(config.initial_range, layer.weight_format)
            made.rounded[layer.name] = _nearest(made.weights[layer.name], layer.weight_format, clip=clip)


def _nearest(weight: torch.Tensor, fmt: NumberFormat, *, clip: bool) -> torch.Tensor:
    scale = (numerics.clipped_weight_scale if clip else numerics.weight_scale)(weight, fmt)
    return numerics.quantize_weight(weight, scale, fmt) * numerics.per_channel(scale, weight, 0)


def _choice(layers: Sequence[GraphLayer], snr: Mapping[int, float]) -> RotatedInput:
    """From no rotation on, every larger block must be worth what it costs."""
    x = layers[0].node.args[0]
    assert isinstance(x, Node)
    best = 0
    for block in sorted(snr)[1:]:
        lead = FOLDED_LEAD_DB if source_of(x, [layer.node for layer in layers], block) else LEAD_DB
        best = block if snr[block] >= snr[best] + lead else best
    return RotatedInput(layers=_names(layers), block=best, snr_db={str(block or Rotation.NONE): value for block, value in snr.items()})


def _names(layers: Sequence[GraphLayer]) -> list[str]:
    return [layer.name for layer in layers]
