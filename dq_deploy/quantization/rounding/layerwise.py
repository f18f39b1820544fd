"""Rounds the weights of a quantized graph by GPTQ, one group of layers after the other, on the values of the quantized chain.

The graph is cut in front of each group, and what passes the cuts lies on disk: memory holds one group's H and a few samples. Each group
sees what the layers before it leave behind when they are rounded.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch.fx import GraphModule

from ...artifacts.details import RoundedLayer
from ...errors import ArtifactError
from ...formats import NumberFormat
from ...formats.tables import CODES, WEIGHT_SCALE
from ...progress import Progress, silent
from ..calibration.trajectories import Trajectories
from ..config import QuantizeConfig
from ..config.option_types import MOST_SIGNIFICANT
from ..distillation.cache import ValueCache
from ..distillation.chain import Chain
from ..graph.blocks import Block, split_before
from ..running.work_folder import Stage, Stages
from ..weights import QuantizedWeight
from .codebooks import fit_codebooks, fitting_operations
from .columns import AT_ONCE, Rounder
from .groups import Group, groups_of
from .moments import BLOCK, Moments, some_positions
from .nested import CHOSEN, TRIED, NestedRounder, Slices

SEEDS = 16
"""Calibration seeds that H is made of, all timesteps of each (docs/decisions/rounding.md)."""
SCALES = (1.0, 1.2, 1.1, 0.9, 0.8)
"""Times a row's scale as it is: the one of least output error is taken (docs/decisions/rounding.md)."""
NESTED_SCALES = (1.0, 1.35, 1.18, 0.85, 0.7)
"""Likewise where codes are sliced: of 3 bits the largest code is 96 of 127 steps, and fewer bits are often served by a smaller range
(docs/decisions/widths.md)."""
_POWER_SAMPLES = 8  # of a timestep, as the loss of distillation takes them
_CHUNK_BYTES = 256 << 20  # of unfolded inputs at one time


@torch.no_grad()
def round_weights(quantized: GraphModule, data: Trajectories, config: QuantizeConfig, *, work: Stages | None = None,
                  scales: Sequence[float] | None = None, progress: Progress = silent) -> list[RoundedLayer]:  # fmt: skip
    """Round the weights of ``quantized`` that ``config`` wants rounded by GPTQ, in place.

    Scales become those of least error among ``scales`` times what they are (None: ``SCALES``), float weights move to where they have their
    codes, and tables stay as they are. Groups that ``work`` holds are not rounded again, and each is saved there when it is finished.
    Raises ArtifactError where the quantized chain has NaN or Inf.
    """
    groups = groups_of(quantized, config)
    if not groups:
        return []
    folder = Path(tempfile.mkdtemp(prefix="dq-deploy-rounding-", dir=work.scratch if work else None))
    try:
        data_of_sizes = [some_seeds(sized) for sized in data.by_size]
        return _Rounding(quantized, groups, data_of_sizes, config, ValueCache(folder), scales).run(work, progress)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _rounder(moments: torch.Tensor, fmt: NumberFormat, slices: Slices | None) -> Rounder:
    return NestedRounder(moments, slices) if slices else Rounder(moments, fmt=fmt)


def seeds_used(seeds: int) -> int:
    """Of so many calibration seeds, how many H is made of: none of those that distillation is judged on."""
    return min(SEEDS, max(1, seeds - max(1, seeds // 8)))


def some_seeds(data: Trajectories) -> Trajectories:
    """What H is made of: evenly spaced seeds among those that distillation trains on."""
    seeds = data.samples.shape[1] // data.per_seed
    return data.first(max(1, seeds - max(1, seeds // 8))).spread(seeds_used(seeds))


class _Rounding:
    """The chain of one quantized graph, cut in front of ``groups``, and the samples that run through it, timesteps slowest."""

    def __init__(self, quantized: GraphModule, groups: Sequence[Group], data: Sequence[Trajectories], config: QuantizeConfig,
                 values: ValueCache, scales: Sequence[float] | None = None) -> None:  # fmt: skip
        self.groups, self.config, self.scales = groups, config, scales
        flat = [sized.flat(slice(None)) for sized in data]
        self.ends = list(accumulate(len(timestep) for _, timestep, _ in flat))
        self.steps = [len(sized.timesteps) for sized in data]  # of each size
        blocks = split_before(quantized, {group.first for group in groups})
        timestep = torch.cat([of_size for _, of_size, _ in flat])
        self.chain = Chain(blocks, values, timestep, config.batch_size, next(quantized.buffers()).device, self.ends)
        first = next(str(n.target) for n in quantized.graph.nodes if n.op == "placeholder")
        given = [{first: samples, **conditions} for samples, _, conditions in flat]
        for name in given[0]:
            self.chain.fill(name, [values[name] for values in given])

    def run(self, work: Stages | None, progress: Progress) -> list[RoundedLayer]:
        """Round every group, and run what follows it."""
        found: list[RoundedLayer] = []
        costs = [max(1, round((moments_operations(group.shape) + _operations(group)) / 1e7)) for group in self.groups]
        ahead = len(self.chain.blocks) - len(self.groups)  # what comes before the first group, if anything does
        with progress("rounding weights", sum(costs)) as advance:
            for block in self.chain.blocks[:ahead]:
                self._pass(block)
            for index, (group, cost) in enumerate(zip(self.groups, costs, strict=True)):
                stage = work.load(_stage(index)) if work else None
                if stage is None:
                    stage = self._round(group, torch.Generator().manual_seed(self.config.seed * 1_000_003 + index))
                    if work:
                        work.save(_stage(index), stage.tensors, stage.record)
                take_rounded(group.layers, stage.tensors)
                found += [RoundedLayer(**entry) for entry in stage.record]
                self._pass(self.chain.blocks[ahead + index])
                advance(cost, group.name)
        return found

    def _pass(self, block: Block) -> None:
        self.chain.run(block, check="the quantized model")
        self.chain.forget(block)

    def _round(self, group: Group, generator: torch.Generator) -> Stage:
        """Codes and scales of a group's layers, and what they cost."""
        moments = self._moments(group, generator)
        if group.codebook:
            return fit_codebooks(group, moments, generator)
        weight, scale = (group.stacked(of).double() for of in (QuantizedWeight.matrix, QuantizedWeight.steps_by_weight))
        limit = group.stacked(_limit)[:, :, 0].double()
        slices = Slices(group.widths, moments.device) if group.widths else None
        factors = self.scales or (NESTED_SCALES if slices else SCALES)
        scales = torch.stack([group.settled(scale * factor) for factor in factors], dim=1)  # [G, C, R, K]
        found = [
            _rounder(h, group.format, slices).candidates(w, s, most) for w, s, h, most in zip(weight, scales, moments, limit, strict=True)
        ]
        codes, errors = (torch.stack(values) for values in zip(*found, strict=True))  # [G, 1 + C, R, K], [G, 1 + C, R]
        # Parts of a row have one scale: it is chosen by what they lose together. Of equals the first is taken: the nearest codes.
        whole = errors.unflatten(0, (-1, group.parts)).sum(dim=1)  # [g, 1 + C, R]
        error, which = whole.min(dim=1)  # [g, R]
        which = which.repeat_interleave(group.parts, dim=0)[:, None, :, None].expand(-1, 1, -1, codes.shape[3])
        chosen, taken = codes.gather(1, which)[:, 0], scales.gather(1, (which - 1).clamp(min=0))[:, 0]
        if slices:
            made = zip(moments, weight, taken, chosen, strict=True)
            chosen = torch.stack([slices.refined(*of_a_part, CHOSEN) for of_a_part in made])
            judged = zip(moments, weight, taken, chosen, strict=True)
            error = torch.stack([slices.error(*of_a_part) for of_a_part in judged]).unflatten(0, (-1, group.parts)).sum(dim=1)
        record = _records(group, error.clamp(min=0), whole[:, 0])
        tensors = {f"{name}.{CODES}": own for name, own in group.unstacked(chosen).items()}
        outputs = group.unstacked(taken)
        return Stage(tensors | {f"{name}.{WEIGHT_SCALE}": group.layers[name].by_output(own) for name, own in outputs.items()}, record)

    def _moments(self, group: Group, generator: torch.Generator) -> torch.Tensor:
        """H [G, K, K] of a group's inputs, each timestep in units of its outputs' power."""
        every = [torch.arange(start, end) for start, end in zip([0, *self.ends], self.ends, strict=False)]
        power = [
            torch.tensor([group.power(self._value(group, index)) for index in of_size.reshape(steps, -1)[:, :_POWER_SAMPLES]])
            for of_size, steps in zip(every, self.steps, strict=True)
        ]
        weights = [1 / of_size.clamp(min=1e-12) for of_size in power]
        mean_weight = torch.cat(weights).mean()
        moments = None
        for of_size, weight in zip(every, weights, strict=True):
            one = group.columns(self._value(group, of_size[:1]))
            parts, _, positions, inputs = one.shape
            moments = moments or Moments(parts, inputs, one.device)
            drawn = min(positions, -(-positions_needed(inputs) // self.ends[-1]))
            at_once = max(1, min(self.config.batch_size, _CHUNK_BYTES // (one.numel() * one.element_size())))
            for index in of_size.split(at_once):
                columns = group.columns(self._value(group, index))
                own = (weight / mean_weight).repeat_interleave(len(of_size) // len(weight))[index - of_size[0]]
                moments.add(some_positions(columns, drawn, generator), own.to(columns.device))
        assert moments is not None
        mean = moments.mean()
        if not bool(torch.isfinite(mean).all()):
            raise ArtifactError(
                f"layer {group.name}: what it reads or gives on the calibration samples has NaN or Inf, or is too large for its square",
                "look at its activations, or round weights to nearest: --rounding nearest",
            )
        return mean

    def _value(self, group: Group, index: torch.Tensor) -> torch.Tensor:
        """What a group multiplies with, of the samples ``index``."""
        return group.value(self.chain.together(group.source, index), self.chain.timestep[index].to(self.chain.device))


def positions_needed(inputs: int) -> int:
    """Patches or tokens that H of K inputs is made of, where there are so many."""
    return min(8 * inputs, max(2 * inputs, 16_384))


def moments_operations(shape: tuple[int, int, int]) -> float:
    """Multiply-accumulates in fp32 of H, of a group of G parts [R, K]; a little over half of them where H is computed in blocks."""
    parts, _, inputs = shape
    blocks = -(-inputs // BLOCK)
    return float(parts) * positions_needed(inputs) * inputs**2 * (blocks + 1) / (2 * blocks)


def rounding_operations(shape: tuple[int, int, int], widths: int = 0) -> float:
    """Multiply-accumulates in fp64 of the factor, the codes for every scale, and the error of the nearest; ``widths``: of nested codes."""
    parts, outputs, inputs = shape
    of_outputs = descent_operations(outputs, inputs, widths) if widths else (len(SCALES) / 2 + 1) * outputs * inputs**2
    return float(parts) * (inputs**3 / 6 + of_outputs)


def _operations(group: Group) -> float:
    codebook = group.codebook
    return fitting_operations(group.shape, codebook) if codebook else rounding_operations(group.shape, len(group.widths))


def descent_operations(outputs: int, inputs: int, widths: int) -> float:
    """Multiply-accumulates of nested codes for every scale, their descent, their errors, and the judgement of every code."""
    passes = 2 * (2 + TRIED) * len(NESTED_SCALES) + CHOSEN + 2
    judged = (1 + 2 * TRIED) * len(NESTED_SCALES) + CHOSEN
    return float(outputs * widths) * (passes * inputs**2 + judged * inputs * (1 << MOST_SIGNIFICANT))


def memory_bytes(shape: tuple[int, int, int], widths: int = 0) -> int:
    """Most bytes at one time of a group: H of all parts, a sorted copy and the factor of one, columns, weights, and those in work."""
    parts, outputs, inputs = shape
    scales = len(NESTED_SCALES if widths else SCALES)
    moments, weights = 8 * inputs**2 * (parts + 2), 8 * outputs * inputs
    return moments + 3 * _CHUNK_BYTES + weights * parts * (3 + scales) + 6 * min(8 * AT_ONCE, weights * scales)


def _records(group: Group, error: torch.Tensor, nearest: torch.Tensor) -> list[dict[str, Any]]:
    """The manifest's entries of a group's layers, from the squared errors of their outputs [g, R]."""
    made, most = ({name: float(own.sum()) for name, own in group.of_outputs(values).items()} for values in (error, nearest))
    ratios = {name: made[name] / most[name] if most[name] > 0 else 1.0 for name in group.layers}
    return [{"layer": name, "error_ratio": ratio, "parts": group.parts} for name, ratio in ratios.items()]


def _limit(layer: QuantizedWeight) -> torch.Tensor:
    """The largest code of each weight."""
    return torch.full_like(layer.weight, layer.format.code_range(narrow=True)[1])


def _stage(index: int) -> str:
    """Name of a group's stage in the work folder."""
    return f"rounding-{index:04d}"


def take_rounded(layers: Mapping[str, QuantizedWeight], tensors: Mapping[str, torch.Tensor]) -> None:
    """Let ``layers`` have what was rounded: ``<layer>.<part>`` among ``tensors``, codes [O, ...] and scales [O] for instance."""
    for name, layer in layers.items():
        layer.take_rounded({key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")})


def rounded(layers: Mapping[str, QuantizedWeight]) -> dict[str, torch.Tensor]:
    """What ``take_rounded`` takes, of layers that have been rounded: codes [O, ...] and scales [O] for instance."""
    return {f"{name}.{part}": value for name, layer in layers.items() for part, value in layer.rounded().items()}
