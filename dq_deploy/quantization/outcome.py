"""Distillation, and what is kept of it: what the network draws decides, which it was not trained for.

Each block ends no worse than it began on held-out inputs, and the samples may still end further from the float network's: errors of some
steps are dear and of others harmless, and an error that all pixels share costs more than its size. So further seeds are sampled to the end
by the network as it was before distillation and as it is after it, with the output's mean error taken off and without.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import torch
from torch.fx import GraphModule

from ..artifacts.details import BlockLoss, KeptState
from ..decibels import FLOOR_DB, floored, snr_db
from ..errors import DqDeployError
from ..formats import Activations
from .calibration.trajectories import Conditions, Model, Trajectories, batched
from .calling.output import OutputForm
from .config import QuantizeConfig
from .distillation.distill import distill
from .graph.calls import as_model
from .output_bias import OutputBias, channel_axis, mean_error
from .run import Run
from .running.processes import SharedWork
from .running.work_folder import Stage

_JUDGED_SEED = 2_000_000  # far from the seeds of the calibration and of the reference
_PARAMETERS = "before-distillation"
BEFORE, DISTILLED, CORRECTED = "before distillation", "distilled", "distilled, output bias"


@dataclass(frozen=True)
class Outcome:
    """What is kept: the trained blocks' losses (none: nothing is), the output bias [T, C] (None: none), what it was judged by."""

    losses: list[BlockLoss]
    bias: torch.Tensor | None
    judged: KeptState | None = None


def train(run: Run, quantized: GraphModule) -> Outcome:
    """Distil ``quantized`` in place, and go back to what it was where that draws nearer to the float network."""
    config, work = run.config, run.work

    def distilled() -> list[BlockLoss]:
        return distill(
            run.prepared.float_graph, quantized, run.data, config, work=work, processes=work.processes, progress=run.progress
        )  # fmt: skip

    if not config.judges_distillation:
        losses = distilled()
        return Outcome(losses, output_bias_table(run, quantized) if config.corrects_output else None)
    judge = _Judge(run, quantized)
    if judge.expected is not None:
        work.save(_PARAMETERS, dict(quantized.named_parameters()), {})
        judge.before()
    losses = distilled()
    if judge.expected is None:
        return Outcome(losses, judge.table("output-bias") if config.corrects_output else None)
    found = judge.after()
    if found.kept == BEFORE:
        _restore(quantized, work)
        losses = []
    return Outcome(losses, judge.tables.get(found.kept), found)


@torch.no_grad()
def _restore(quantized: GraphModule, work: SharedWork) -> None:
    """Go back to what it was before distillation."""
    stage = work.load(_PARAMETERS)
    assert stage is not None
    for name, parameter in quantized.named_parameters():
        parameter.copy_(stage.tensors[name])


def output_bias_table(run: Run, quantized: GraphModule, name: str = "output-bias") -> torch.Tensor | None:
    """Mean error of the output at each timestep [T, C], a stage of that name, which the main process measures; None for several outputs."""
    if run.prepared.float_graph.meta["output"].several:  # side by side they have no channels
        return None
    config = run.config

    def make() -> Stage:
        model, static = as_model(quantized), config.activations is Activations.STATIC
        return Stage({"table": mean_error(model, run.data, batch_size=config.batch_size, static=static, progress=run.progress)}, {})

    return run.work.made(name, make).tensors["table"]


class _Judge:
    """Samples to the end with the states of one network, and says which ends nearest to the float one.

    ``expected`` are the float network's final samples [n, ...]; None for a network that predicts no step of a sample.
    """

    def __init__(self, run: Run, quantized: GraphModule) -> None:
        self.run, self.quantized, self.config = run, quantized, run.config
        self.tables: dict[str, torch.Tensor] = {}
        self.found: dict[str, list[float]] = {}
        self.expected = run.work.made("judged-float", self._float_ends).tensors.get("ends")

    def before(self) -> None:
        """Sample with the network as it is before distillation, corrected as it is where nothing is trained."""
        self._sample(BEFORE, self.table("output-bias-before"))

    def after(self) -> KeptState:
        """Sample with the trained network, and choose."""
        table = self.table("output-bias")
        if table is not None:
            self._sample(CORRECTED, table)
        if table is None or not self.config.output_bias:
            self._sample(DISTILLED, None)
        rule = CORRECTED if table is not None and self.config.corrects_output else DISTILLED
        means = {name: round(fmean(values), 3) for name, values in self.found.items()}
        return KeptState(kept=nearest(self.found, rule), final_snr_db=means, seeds=self.config.drawn_to_judge)

    def table(self, stage: str) -> torch.Tensor | None:
        """The output bias [T, C] of the network as it is; None where it is to have none."""
        if not self.config.may_correct_output:
            return None
        return output_bias_table(self.run, self.quantized, stage)

    def _sample(self, name: str, table: torch.Tensor | None) -> None:
        if table is not None:
            self.tables[name] = table
        stage = "judged-" + "-".join(name.replace(",", "").split())
        self.found[name] = self.run.work.made(stage, lambda: Stage({}, self._distances(name, table))).record

    def _float_ends(self) -> Stage:
        try:
            return Stage({"ends": self._ends(as_model(self.run.prepared.float_graph), "float")}, {})
        except DqDeployError:  # nothing is sampled
            return Stage({}, {})

    def _distances(self, name: str, table: torch.Tensor | None) -> list[float]:
        """SNR in dB of each seed's final sample."""
        model = as_model(self.quantized)
        if table is not None:
            model = _corrected(model, table, self.run.data)
        assert self.expected is not None
        found = [snr_db(expected, end) for expected, end in zip(self.expected, self._ends(model, name), strict=True)]
        return list(map(floored, found))  # what draws nothing finite

    @torch.no_grad()
    def _ends(self, model: Model, name: str) -> torch.Tensor:
        """Final samples [n, ...]."""
        config, count = self.config, self.config.drawn_to_judge
        seeds = range(_JUDGED_SEED + config.seed, _JUDGED_SEED + config.seed + count)
        seen: set[float] = set()
        with self.run.progress(f"sampling to the end: {name}", config.steps) as advance:

            def answer(samples: torch.Tensor, timestep: float, conditions: Conditions) -> torch.Tensor:
                of_one_run = {key: value.flatten(0, 1) for key, value in conditions.items()}
                output = batched(model, samples.flatten(0, 1), timestep, of_one_run, config.batch_size)
                advance(timestep not in seen)  # some schedulers call twice at one
                seen.add(timestep)
                return output.unsqueeze(0)

            form: OutputForm = self.run.prepared.float_graph.meta["output"]
            ends: torch.Tensor = self.run.prepared.calibration.final_samples(answer, seeds, slice(0, count), 1, form)[0]
            return ends


def _corrected(model: Model, table: torch.Tensor, data: Trajectories) -> Model:
    """A model with an output bias [T, C] at its end."""
    correction = OutputBias(table, data.timesteps, channel_axis(data.outputs[0].dim()))

    def corrected(sample: torch.Tensor, timestep: torch.Tensor, **conditions: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = correction(model(sample, timestep, **conditions), timestep)
        return output

    return corrected


def tables_of_bias(config: QuantizeConfig) -> int:
    """How many times the output's mean error is measured."""
    return 2 * config.may_correct_output if config.judges_distillation else int(config.corrects_output)


def samples_drawn(config: QuantizeConfig) -> int:
    """Samples that are drawn to the end to judge distillation: the float network's, and each state's."""
    states = 2 + (config.may_correct_output and config.output_bias is None)
    return config.drawn_to_judge * (1 + states) if config.judges_distillation else 0


def nearest(found: Mapping[str, Sequence[float]], rule: str) -> str:
    """The state of the greatest mean SNR in dB if its lead over ``rule`` on the same seeds exceeds the lead's standard error; else that."""
    best = max(found, key=lambda name: fmean(found[name]))
    if FLOOR_DB in found[rule]:
        return best
    leads = [a - b for a, b in zip(found[best], found[rule], strict=True)]
    error = stdev(leads) / math.sqrt(len(leads)) if len(leads) > 1 else 0.0
    return best if fmean(leads) > error else rule
