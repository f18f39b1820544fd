"""Measured passes that a run's time and memory are extrapolated from: everything in memory, on a handful of samples of noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from ..calibration.recording import varying_names
from ..calibration.trajectories import Trajectories
from ..config import QuantizeConfig
from ..distillation.block_trainer import EVALUATE_EVERY, BlockTrainer, Steps
from ..distillation.chain import Chain
from ..distillation.trained import TrainedParts
from ..graph.blocks import Block, split_blocks, whole_network
from ..graph.calls import as_model
from ..graph.plan import make_plan
from ..graph.shapes import live_bytes
from ..initial.initialize import fit_and_judge, initialize, quantizer_groups
from ..initial.tables import fit_tables
from ..pipeline import copy_with_quantizers
from ..prepare import Prepared
from ..running.device import move
from .timing import timed

_MEASURED_BLOCKS = 6  # the others are interpolated by their multiply-accumulates
_SLOW_S = 0.1  # a forward pass of one sample: beyond this fewer samples must do
_PATIENCE_S = 20.0  # about as much as all timed training steps may take


class MemoryValues:
    """Named tensors in memory, as ``ValueCache`` has them on disk."""

    def __init__(self) -> None:
        self._values: dict[str, torch.Tensor] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def write(self, name: str, start: int, values: torch.Tensor) -> None:
        """Store samples [n, ...]; they come in order."""
        values = values.detach().cpu()
        self._values[name] = values if start == 0 else torch.cat([self._values[name][:start], values])

    def read(self, name: str, index: torch.Tensor) -> torch.Tensor:
        """Samples ``index`` [n] of a tensor: [n, ...]."""
        return self._values[name][index]

    def drop(self, name: str) -> None:
        """Forget a tensor."""
        del self._values[name]


@dataclass(frozen=True)
class StepCost:
    """Cost of one block at a batch size: seconds of a training step and of a pass without gradients, and bytes that a step holds."""

    step_s: float
    forward_s: float
    batch: int
    bytes: int

    def seconds(self, config: QuantizeConfig, samples: int, held_out: int, *, trained: bool) -> float:
        """Of the block's distillation: the passes of both chains over all samples, training steps and judgements."""
        sample_s = self.forward_s / self.batch
        passes = 2 * samples * sample_s
        if not trained:
            return passes
        judgements = 1 + -(-config.iterations // EVALUATE_EVERY)
        return passes + config.iterations * self.step_s * config.batch_size / self.batch + judgements * held_out * sample_s


class Probe:
    """Measures a prepared run. ``forward_s`` and ``initialization_s`` are seconds, the former of one sample."""

    def __init__(self, prepared: Prepared, per_seed: int) -> None:
        self.prepared, self.config, self.per_seed = prepared, prepared.config, per_seed
        graph = prepared.float_graph
        call = as_model(graph)
        sample, conditions = self._inputs(2)
        with torch.no_grad():
            self.output = call(sample, torch.full((2,), 500.0), **conditions)
            self.forward_s = timed(lambda: call(sample, torch.full((2,), 500.0), **conditions)) / 2
        self.batch = min(self.config.batch_size, max(2, int(_PATIENCE_S / (6 * self.forward_s))))
        form = prepared.calibration.form
        varying = [conditions[name] for name in varying_names(form, list(conditions))] if form else []
        self.sample_bytes = sum(t[0].numel() * t.element_size() for t in (sample, self.output, *varying))
        self.live_bytes = live_bytes(list(graph.graph.nodes))
        seeds = self.config.calibration_samples
        fit, judge = fit_and_judge(self._trajectories(1, seeds))
        self.fit_seeds = fit.stop // per_seed
        dilated = (fit.stop + judge.stop - judge.start) * self.config.steps
        self.initialization_s = self._initialization(dilated, seeds * per_seed * self.config.steps)

    def _inputs(self, count: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Noise and conditions for ``count`` samples."""
        noise = torch.randn(count, *self.prepared.shape, generator=torch.Generator().manual_seed(0))
        examples = self.prepared.calibration.examples
        return noise, {name: value[torch.arange(count) % len(value)] for name, value in examples.items()}

    def _trajectories(self, table_rows: int, seeds: int) -> Trajectories:
        """Trajectories of noise, with an output that is right in shape alone."""
        noise, conditions = self._inputs(seeds * self.per_seed)
        output = self.output[:1].expand(table_rows, len(noise), *self.output.shape[1:])
        return Trajectories(torch.linspace(1, 999, table_rows), noise.expand(table_rows, *noise.shape), output, conditions, self.per_seed)

    def _initialization(self, dilated: int, samples: int) -> float:
        """Seconds of the initialization: what does not depend on samples, what the ``dilated`` take, and the pass over all ``samples``."""
        slow = self.forward_s > _SLOW_S
        points: list[tuple[int, float, float]] = []
        for seeds in (2, 4 if slow else 8):
            data = self._trajectories(1, seeds)
            plan = make_plan(self.prepared.float_graph, self.config)
            quantized = move(copy_with_quantizers(self.prepared.float_graph, plan, data.timesteps), self.prepared.device)
            fit, judge = fit_and_judge(data)
            whole = timed(partial(initialize, self.prepared.float_graph, quantized, data, self.config))
            groups, everything = quantizer_groups(quantized, self.prepared.float_graph), slice(0, data.samples.shape[1])
            tables = timed(partial(fit_tables, self.prepared.float_graph, groups, data, everything, self.config)) if groups else 0.0
            points.append((fit.stop + judge.stop - judge.start, whole - tables, tables / everything.stop))
        (few, short, _), (many, long, observed) = points
        slope = max(0.0, (long - short) / (many - few))
        return short + slope * max(0, dilated - few) + observed * samples

    def blocks(self, blocks: Sequence[Block], parts: Sequence[TrainedParts], sizes: Sequence[int]) -> list[StepCost]:
        """Cost of every block of the quantized graph; the largest and a few others are measured."""
        trained = [i for i, part in enumerate(parts) if part] or list(range(len(blocks)))
        order = sorted(trained, key=lambda i: sizes[i])
        chosen = {order[round(x)] for x in np.linspace(0, len(order) - 1, min(_MEASURED_BLOCKS, len(order)))}
        graph = self.prepared.float_graph
        float_blocks = split_blocks(graph) if len(blocks) > 1 else [whole_network(graph)]
        values = MemoryValues()
        sample, conditions = self._inputs(self.batch)
        for name, value in {self.prepared.names[0]: sample, **conditions}.items():
            values.write(name, 0, value)
        timestep = torch.full((self.batch,), 500.0)
        teacher, student = (Chain(b, values, timestep, self.batch, self.prepared.device) for b in (float_blocks, blocks))
        student.grouped = teacher.grouped  # one set of values for both
        measured: dict[int, StepCost] = {}
        for index, (float_block, block) in enumerate(zip(float_blocks, blocks, strict=True)):
            teacher.run(float_block)
            if index in chosen:
                measured[index] = self._step(BlockTrainer(block, student, teacher, parts[index], self.config))
            teacher.forget(float_block)
        return [measured.get(i) or _between(measured, sizes, i) for i in range(len(blocks))]

    def _step(self, trainer: BlockTrainer) -> StepCost:
        index = torch.arange(self.batch)
        forward = timed(lambda: trainer.evaluate(index))
        with trainer.parts.training():
            held = saved_bytes(lambda: trainer.loss(index))
            steps = Steps(trainer, index)
            steps.take()
            step = timed(steps.take)
        parameters = sum(p.numel() * p.element_size() for p in (trainer.parts.dense() | trainer.parts.tables()).values())
        # Gradients, Adam's two moments and the best state, beside what autograd keeps of the batch.
        return StepCost(step, forward, self.batch, held * self.config.batch_size // self.batch + 4 * parameters)


def _between(measured: dict[int, StepCost], sizes: Sequence[int], index: int) -> StepCost:
    """The cost of a block that was not measured, between those of the blocks next in size."""
    known = sorted(measured, key=lambda i: sizes[i])
    at = [sizes[i] for i in known]

    def between(values: list[float]) -> float:
        return float(np.interp(sizes[index], at, values))

    some = measured[known[0]]
    return StepCost(
        between([measured[i].step_s for i in known]),
        between([measured[i].forward_s for i in known]),
        some.batch,
        int(between([measured[i].bytes for i in known])),
    )


def saved_bytes(action: Callable[[], Any]) -> int:
    """Bytes of memory that autograd keeps for the backward pass of what ``action`` computes."""
    found: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = action()
        del result
    return sum(found.values())
