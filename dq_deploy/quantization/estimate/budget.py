"""What a run will take before it starts: blocks, trained parameters, disk, memory and time. Nothing is written."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.fx import GraphModule

from ..bits.format_choice import passes_of_choice
from ..calibration.pipeline_source import PipelineSource
from ..calibration.source import Request
from ..choices import Distillation
from ..config import QuantizeConfig
from ..distillation.trained import TrainedParts, selected
from ..final_error import calls
from ..graph.blocks import Block, split_before, split_blocks, whole_network
from ..graph.plan import make_plan, too_much_float
from ..graph.shapes import value_bytes
from ..initial.initialize import initialization_bytes
from ..outcome import samples_drawn, tables_of_bias
from ..pipeline import copy_with_quantizers
from ..prepare import Prepared, prepare
from ..rounding.groups import Group, groups_of
from ..rounding.layerwise import memory_bytes, seeds_used
from ..running.ambient import default_torch
from ..running.device import find_device, move
from .probe import Probe
from .rounding import Rates

_FLOAT_BYTES = 4


@dataclass(frozen=True)
class BlockBudget:
    """One block: its layers, how many parameters are trained in it, and the estimated seconds of its distillation."""

    name: str
    layers: list[str]
    trained_parameters: int
    macs: int
    seconds: float


@dataclass(frozen=True)
class Budget:
    """What a run is made of and will take. Times are extrapolated from a few measured passes on this machine as it is now."""

    model: str
    blocks: list[BlockBudget]
    float_layers: list[dict[str, Any]]
    float_mac_share: float
    trained_parameters: int
    samples: int
    """Calibration samples: timesteps × seeds × guidance halves."""
    disk_bytes: dict[str, int]
    memory_bytes: dict[str, int]
    """Above the loaded model: parts, and ``peak``, the most at one time."""
    seconds: dict[str, float]
    refused: str | None = None
    """Why ``quantize`` would not begin, and what to do, where too much would stay in float."""


@default_torch()
def estimate(source: Any, *, preset: str = "w8a8", device: str = "cpu", **arguments: Any) -> Budget:
    """Plan what ``quantize`` would do with these arguments, all of which it takes, and measure a few passes to say what it would take.

    Raises what ``quantize`` raises before its first long step; that too much would stay in float is in ``refused``.
    """
    request, options = Request.split(arguments)
    config, where = QuantizeConfig.build(preset, **options), find_device(device)
    prepared = prepare(source, config.model_copy(update={"max_float_share": 1.0}), request)
    prepared.to(where)
    refused = too_much_float(prepared.plan, config)
    return replace(budget(prepared), refused=None if refused is None else str(refused))


def budget(prepared: Prepared) -> Budget:
    """The budget of a prepared run."""
    config, plan = prepared.config, prepared.plan
    per_seed = _per_seed(prepared)
    samples = config.steps * config.calibration_samples * per_seed
    probe = Probe(prepared, per_seed)
    quantized = copy_with_quantizers(prepared.float_graph, make_plan(prepared.float_graph, config), torch.linspace(1, 999, config.steps))
    move(quantized, prepared.device)
    quantized.requires_grad_(False)
    blocks = _blocks(quantized, config)
    parts = _parts(quantized, blocks, config) if config.iterations else [TrainedParts({}, {})] * len(blocks)
    macs = {layer.name: layer.macs for layer in plan.layers}
    sizes = [sum(macs[name] for name in block.layers) for block in blocks]
    costs = probe.blocks(blocks, parts, sizes) if config.iterations else []
    held_out = config.steps * max(1, config.calibration_samples // 8) * per_seed
    spent, widths = [0.0] * len(blocks), max(1, len(config.matryoshka))  # each has a chain and a part of every step
    if costs:
        spent = [widths * cost.seconds(config, samples, held_out, trained=bool(part)) for cost, part in zip(costs, parts, strict=True)]
    estimates = [
        BlockBudget(block.name, block.layers, _count(part), size, round(seconds, 1))
        for block, part, size, seconds in zip(blocks, parts, sizes, spent, strict=True)
    ]
    groups = groups_of(quantized, config)
    rounded_on = config.steps * seeds_used(config.calibration_samples) * per_seed if groups else 0
    memory = {
        "calibration data": (samples + config.steps * config.reference_samples * per_seed) * probe.sample_bytes,
        "initialization": initialization_bytes(probe.live_bytes, probe.fit_seeds * per_seed, config),
        "rounding": max((memory_bytes(group.shape, len(group.widths)) for group in groups), default=0),
        "training step": max((cost.bytes for cost in costs), default=0),
    }
    memory["peak"] = memory["calibration data"] + max(memory["initialization"], memory["rounding"], memory["training step"])
    weights = sum(p.numel() * p.element_size() for p in quantized.state_dict().values())
    disk = {
        "values between blocks": _value_bytes(blocks, prepared.float_graph) * samples * (1 + widths) if costs else 0,
        "values between rounded layers": _rounding_values(quantized, prepared.float_graph, groups) * rounded_on,
        "finished stages": memory["calibration data"] + weights * (1 + config.judges_distillation) + sum(map(_count, parts)) * _FLOAT_BYTES,
    }
    disk["peak"] = max(disk["values between blocks"], disk["values between rounded layers"]) + disk["finished stages"]
    times = {
        "calibration": probe.forward_s * (samples + config.steps * config.reference_samples * per_seed),
        "formats": probe.forward_s * passes_of_choice(plan) * per_seed,
        "initialization": probe.initialization_s,
        "rounding": Rates.measured(prepared.device).seconds(groups) + probe.forward_s * rounded_on if groups else 0.0,
        "distillation": sum(spent),
        "output bias": probe.forward_s * samples * tables_of_bias(config),
        "judging distillation": probe.forward_s * config.steps * per_seed * samples_drawn(config),
        "cost of each step": probe.forward_s * calls(config.steps) * config.sampled_to_the_end * per_seed,
    }
    times["total"] = sum(times.values())
    return Budget(
        model=prepared.details["model"],
        blocks=estimates,
        float_layers=[layer.record() for layer in plan.left_float],
        float_mac_share=plan.float_fraction,
        trained_parameters=sum(map(_count, parts)),
        samples=samples,
        disk_bytes=disk,
        memory_bytes=memory,
        seconds={name: round(value, 1) for name, value in times.items()},
    )


def _per_seed(prepared: Prepared) -> int:
    """Samples that the denoiser sees for each seed: two under classifier-free guidance."""
    if isinstance(prepared.first_source, PipelineSource):
        return prepared.first_source.halves
    scale = prepared.config.guidance_scale
    return 2 if scale is not None and scale > 1 else 1


def _blocks(quantized: GraphModule, config: QuantizeConfig) -> list[Block]:
    return [whole_network(quantized)] if config.distillation is Distillation.END_TO_END else split_blocks(quantized)


def _parts(quantized: GraphModule, blocks: list[Block], config: QuantizeConfig) -> list[TrainedParts]:
    layers, quantizers = selected(quantized, config.train)
    parts = []
    for block in blocks:
        parts.append(TrainedParts.of(block, layers, quantizers))
        quantizers -= set(block.quantizers)
    return parts


def _count(parts: TrainedParts) -> int:
    return sum(p.numel() for p in (parts.dense() | parts.tables()).values())


def _rounding_values(quantized: GraphModule, float_graph: GraphModule, groups: list[Group]) -> int:
    """Largest sum of one sample's values that pass from layer to layer while weights are rounded."""
    return _value_bytes(split_before(quantized, {group.first for group in groups}), float_graph) if groups else 0


def _value_bytes(blocks: list[Block], float_graph: GraphModule) -> int:
    """Largest sum, over the blocks, of one sample's values that are still to be read."""
    sizes = {node.name: value_bytes(node.meta.get("val")) for node in float_graph.graph.nodes}
    alive = {name for block in blocks for name in block.inputs} - {name for block in blocks for name in block.outputs}
    peak = 0
    for index, block in enumerate(blocks):
        alive |= set(block.outputs)
        peak = max(peak, sum(sizes.get(name, 0) for name in alive))
        alive &= {name for later in blocks[index + 1 :] for name in later.inputs}
    return peak
