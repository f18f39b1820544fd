"""What each layer's rounding alone costs at the network's output: measured by running the float model with one layer rounded at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch.fx import GraphModule, Node, map_arg

from ...formats import NumberFormat, of_bits
from ...progress import Progress, silent
from ..calibration.trajectories import Trajectories
from ..choices import InitialRange
from ..config import QuantizeConfig
from ..graph.calls import as_model
from ..graph.products import GraphLayer
from ..numerics import clipped_weight_scale, per_channel, per_sample, quantize, quantize_weight, weight_scale
from ..prepare import Prepared
from ..quantizers import QUANTIZERS, BlockQuantizer
from ..quantizers.observation import Observation
from ..quantizers.ranges import clips_weights, search_tables
from ..weights import Fp4Linear
from .aspects import PREDICTION, Aspect

MOST_TIMESTEPS = 8
"""Of the calibrated timesteps, spread evenly with the first and the last among them."""
SEEDS = 2

BitPair = tuple[int, int]
"""Bits of a layer's weights and of its activations; 16 leaves activations in float."""

Key = TypeVar("Key")
Judged = TypeVar("Judged")

Settings = Callable[[GraphLayer], Sequence[BitPair]]
"""Which bits to try in a layer."""


@dataclass(frozen=True)
class Sensitivity:
    """What a layer costs at each of some settings of its bits.

    ``noise[bits]`` [n] is ‖output with only this layer rounded − float output‖² / ‖float output‖² of each of the n samples that were run,
    and ``aspects`` has by its name the same of each further aspect [m]. ``weights`` and ``channels`` are the layer's numbers of weights and
    of output channels; 0 for a product of two activations.
    """

    layer: str
    weights: int
    channels: int
    noise: dict[BitPair, torch.Tensor]
    aspects: dict[str, dict[BitPair, torch.Tensor]] = field(default_factory=dict)


def few_trajectories(prepared: Prepared, progress: Progress = silent) -> Trajectories:
    """The float model's own, from as many seeds as sensitivities are measured on."""
    seeds = range(prepared.config.seed, prepared.config.seed + SEEDS)
    return prepared.calibration.collect(as_model(prepared.float_graph), seeds, progress)


def sensitivities_on(prepared: Prepared, data: Trajectories, layers: Sequence[GraphLayer], settings: Settings,
                     progress: Progress = silent, *, aspects: Sequence[Aspect] = ()) -> list[Sensitivity]:  # fmt: skip
    """The sensitivity of ``layers`` on some timesteps and the first seeds of ``data``; ``settings`` says which bits to try in a layer."""
    values = [value.to(prepared.device) for value in some_inputs(data, prepared.names).values()]
    together = data.per_seed if aspects else 1
    return sensitivities(prepared.float_graph, values, layers, settings, prepared.config, progress, aspects=aspects, together=together)


def some_inputs(data: Trajectories, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """The inputs [n, ...] of a graph by their ``names``, the sample's first: of some timesteps of ``data`` and its first seeds."""
    data = data.first(min(SEEDS, data.samples.shape[1] // data.per_seed))
    table_rows = torch.linspace(0, len(data.timesteps) - 1, min(MOST_TIMESTEPS, len(data.timesteps))).round().long()
    found = {
        names[0]: data.samples[table_rows].flatten(0, 1),
        "timestep": data.timesteps[table_rows].repeat_interleave(data.samples.shape[1]),
        **data.at(data.timesteps[table_rows].tolist()).flat(slice(None))[2],
    }
    return {name: found[name] for name in names}


@torch.no_grad()
def sensitivities(graph: GraphModule, inputs: Sequence[torch.Tensor], layers: Sequence[GraphLayer], settings: Settings,
                  config: QuantizeConfig, progress: Progress = silent, *, aspects: Sequence[Aspect] = (),
                  together: int = 1) -> list[Sensitivity]:  # fmt: skip
    """The sensitivity of ``layers`` of a captured float graph, in their order, on ``inputs`` [n, ...] of the graph.

    Weights are rounded to one scale for each output channel, activations to one for each sample, by the initial range of the configuration:
    before dilation, distillation and shared tables. ``aspects`` are judged beside the prediction; ``together`` samples are in one batch.
    """
    step = max(1, config.batch_size // together) * together
    parts = [slice(start, start + step) for start in range(0, len(inputs[0]), step)]
    found: dict[str, dict[BitPair, list[dict[str, torch.Tensor]]]] = {x.name: {bits: [] for bits in settings(x)} for x in layers}

    def judge(expected: torch.Tensor, output: torch.Tensor) -> dict[str, torch.Tensor]:
        return {aspect.name: aspect.noise(expected, output) for aspect in (PREDICTION, *aspects)}

    names = {layer.node.name: layer.name for layer in layers}
    instead = {layer.node.name: {bits: _with_bits(layer, bits, config) for bits in settings(layer)} for layer in layers}
    with progress("sensitivity of each layer", len(layers) * len(parts)) as advance:
        for part in parts:
            for node, noise in one_at_a_time(graph, [value[part] for value in inputs], instead, judge):
                for bits, value in noise.items():
                    found[names[node]][bits].append(value)
                advance(1, names[node])

    def noise_of(layer: GraphLayer, aspect: Aspect) -> dict[BitPair, torch.Tensor]:
        return {bits: torch.cat([value[aspect.name] for value in values]) for bits, values in found[layer.name].items()}

    return [
        Sensitivity(x.name, *_size(graph, x), noise_of(x, PREDICTION), {aspect.name: noise_of(x, aspect) for aspect in aspects})
        for x in layers
    ]


def _size(graph: GraphModule, layer: GraphLayer) -> tuple[int, int]:
    if layer.op == "matmul":
        return 0, 0
    weight = graph.get_buffer(str(layer.node.args[1].target))  # type: ignore[union-attr]
    return weight.numel(), len(weight)


def one_at_a_time(graph: GraphModule, inputs: Sequence[torch.Tensor], instead: Mapping[str, Mapping[Key, Callable[..., Any]]],
                  judge: Callable[[torch.Tensor, torch.Tensor], Judged]) -> Iterator[tuple[str, dict[Key, Judged]]]:  # fmt: skip
    """Walk through a graph; at each node of ``instead`` compute these in its place, and run what comes after it from what is there.

    Gives the node's name and by key what ``judge`` says of the graph's own output [n, ...] and of that [n, ...].
    """
    nodes = list(graph.graph.nodes)
    last = {source: index for index, node in enumerate(nodes) for source in node.all_input_nodes}
    expected = _run(graph, nodes, last, dict(zip(_placeholders(nodes), inputs, strict=True)), 0)
    alive = dict(zip(_placeholders(nodes), inputs, strict=True))
    for index, node in enumerate(nodes):
        if others := instead.get(node.name):
            arguments = _arguments(node, alive)
            noise = {}
            for key, compute in others.items():
                output = _run(graph, nodes, last, {**alive, node: compute(*arguments)}, index + 1)
                noise[key] = judge(expected, output)
            yield node.name, noise
        _step(graph, nodes, last, alive, index)


def _with_bits(layer: GraphLayer, bits: BitPair, config: QuantizeConfig) -> Callable[..., Any]:
    """What the layer computes from its arguments, rounded to so many bits."""
    return lambda *arguments: layer.node.target(*_rounded(layer, arguments, bits, config), **layer.node.kwargs)  # type: ignore[operator]


def _placeholders(nodes: Sequence[Node]) -> list[Node]:
    return [node for node in nodes if node.op == "placeholder"]


def _run(graph: GraphModule, nodes: Sequence[Node], last: dict[Node, int], alive: dict[Node, Any], start: int) -> torch.Tensor:
    """The graph's output from the values that are ``alive`` before node ``start``; they are used up."""
    for index in range(start, len(nodes)):
        if nodes[index].op == "output":
            result = nodes[index].args[0]
            output: torch.Tensor = alive[result[0] if isinstance(result, tuple | list) else result]  # type: ignore[index]
            return output
        _step(graph, nodes, last, alive, index)
    raise AssertionError("a graph ends with its output")


def _step(graph: GraphModule, nodes: Sequence[Node], last: dict[Node, int], alive: dict[Node, Any], index: int) -> None:
    """Compute one node, and forget what nobody reads after it."""
    node = nodes[index]
    if node.op == "get_attr":
        alive[node] = graph.get_buffer(str(node.target))
    elif node.op == "call_module":
        alive[node] = graph.get_submodule(str(node.target))(*_arguments(node, alive))
    elif node.op == "call_function":
        alive[node] = node.target(*_arguments(node, alive), **map_arg(node.kwargs, lambda n: alive[n]))  # type: ignore[operator]
    for source in node.all_input_nodes:
        if last[source] == index and node.op != "output":
            alive.pop(source, None)


def _arguments(node: Node, alive: dict[Node, Any]) -> tuple[Any, ...]:
    return map_arg(node.args, lambda n: alive[n])


def _rounded(layer: GraphLayer, arguments: tuple[Any, ...], bits: BitPair, config: QuantizeConfig) -> list[Any]:
    """A product's arguments as so many bits would have them."""
    weight, activation = (of_bits(each, config.products) for each in bits)
    rounded = list(arguments)
    if activation.scaled:
        operands = range(2 if layer.op == "matmul" else 1)
        for position in operands:
            own = of_bits(config.softmax_bits) if layer.probabilities and position == 0 else activation
            symmetric = (layer.op == "matmul" and not (layer.probabilities and position == 0)) or not config.zero_points
            symmetric = symmetric or not activation.integer
            kind = _kind(layer, activation)
            if kind is None:
                rounded[position] = _activation(rounded[position], own, symmetric=symmetric, rule=config.initial_range)
            else:
                rounded[position] = _by_kind(rounded[position], kind, own, symmetric=symmetric, config=config)
    if layer.op != "matmul":
        rounded[1] = _weight(rounded[1], weight, layer.weight_block)
    return rounded


def _kind(layer: GraphLayer, fmt: NumberFormat) -> str | None:
    """Which kind of quantizer has a layer's input in a format; None: a scale for each sample."""
    if fmt.block:
        return BlockQuantizer.kind
    return None if layer.quantizer == BlockQuantizer.kind else layer.quantizer


def _activation(x: torch.Tensor, fmt: NumberFormat, *, symmetric: bool, rule: InitialRange) -> torch.Tensor:
    scale, zero_point = search_tables(Observation.of(x, len(x)), fmt, symmetric=symmetric, rule=rule)
    return quantize(x, per_sample(1 / scale, x), per_sample(zero_point, x), fmt) * per_sample(scale, x)


def _by_kind(x: torch.Tensor, kind: str, fmt: NumberFormat, *, symmetric: bool, config: QuantizeConfig) -> torch.Tensor:
    """A linear layer's input as another kind of quantizer than the plan's has it, fitted to each sample by itself."""
    symmetric, each = symmetric or not QUANTIZERS[kind].zero_points, torch.arange(len(x), device=x.device)
    quantizer = QUANTIZERS[kind](each.float(), fmt, symmetric=symmetric, axis=-1, channels=x.shape[-1]).to(x.device)
    quantizer.calibrate(quantizer.observation().after(x), config)
    codes, scale = quantizer(x, each)
    rounded: torch.Tensor = codes * per_sample(scale, codes)
    return rounded


def _weight(weight: torch.Tensor, fmt: NumberFormat, block: int) -> torch.Tensor:
    if fmt.block:
        layer = Fp4Linear(weight, None, fmt)
        layer.set_weight(weight, clip=True)
        return layer.unpacked()
    blocks = weight.reshape(-1, block) if block else weight  # input channels that share a scale
    scale = (clipped_weight_scale if clips_weights(InitialRange.AUTO, fmt) else weight_scale)(blocks, fmt)
    return (quantize_weight(blocks, scale, fmt) * per_channel(scale, blocks, 0)).reshape(weight.shape)
