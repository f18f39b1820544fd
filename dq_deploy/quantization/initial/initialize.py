"""First values of every scale table and dilation vector, from one pass of the float model over all timesteps at once if memory allows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain
from statistics import fmean
from typing import Any

import torch
from torch.fx import GraphModule, Interpreter, Node

from ...decibels import FLOOR_DB, ratio_db
from ...errors import ArtifactError
from ...progress import Progress, silent
from ..calibration.trajectories import Trajectories
from ..config import Dilation, InitialRange, QuantizeConfig
from ..graph.insertion import decode, float_name
from ..graph.shapes import live_bytes
from ..layers import ActivationQuantizer, QuantizedWeight
from ..numerics import code_range
from ..weight_only import WeightOnly
from .group_setter import DilationRecord, Group, GroupSetter
from .ranges import resolve

_FIT_SEEDS, _JUDGE_SEEDS = 8, 4  # all timesteps of so many trajectories: more changed no choice, and this is all in memory at once
_SPREAD, _LEAST_RANGE = 1 / 8, 2.0**-20  # of attention probabilities: the peak that leaves [0, 1] as it is, and the narrowest range
_PASS_BYTES = 4 << 30  # of a pass's values: a Stable Diffusion has a gigabyte of attention scores and probabilities for each sample
AUTO_RULES = (Dilation.NONE, Dilation.ASYMMETRIC, Dilation.SYMMETRIC, Dilation.LAYERWISE, Dilation.SMOOTHQUANT)
"""What AUTO chooses from. A layer's own error is a poor judge alone: noise that later layers average out counts there like a bias that they
hand on (docs/decisions/dilation-default.md)."""
SMOOTHQUANT_LEAD_DB = 1.0
"""SmoothQuant's factors leave the weights' range, and must lead by so much: a smaller lead was gone, or the other way, after training."""


@dataclass(frozen=True)
class Initialization:
    """What dilation did to each tensor, the rule used, and for each rule that was tried the network's held-out SNR in dB (mean over t)."""

    records: list[DilationRecord]
    rule: str
    tried: dict[str, float]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Initialization:
        """The inverse of ``dataclasses.asdict``."""
        return cls(**{**values, "records": [DilationRecord(**record) for record in values["records"]]})


@torch.no_grad()
def initialize(float_graph: GraphModule, quantized: GraphModule, data: Trajectories, config: QuantizeConfig,
               progress: Progress = silent) -> Initialization:  # fmt: skip
    """Set every quantizer's dilation and tables.

    With AUTO the rules of ``AUTO_RULES`` are tried one after the other, and ``best_rule`` stays, by the network's SNR on seeds that
    nothing was fitted on. Raises ArtifactError naming value, timestep and seed where an activation is NaN or Inf.
    """
    _initialize_weight_only(quantized, config)
    groups = quantizer_groups(quantized, float_graph)
    if not groups:
        return Initialization([], Dilation.NONE.value, {})
    fit, judge = fit_and_judge(data)
    rules = AUTO_RULES if config.dilation is Dilation.AUTO else (config.dilation,)
    tried: dict[Dilation, float] = {}
    best: tuple[Dilation, list[DilationRecord], dict[str, torch.Tensor]] | None = None
    passes = sum(len(_passes(float_graph, data, fit, config.model_copy(update={"dilation": rule}))) for rule in rules)
    with progress("initial scales", passes * sum(map(len, groups.values()))) as advance:
        for rule in rules:
            records = apply_rule(float_graph, groups, data, fit, config.model_copy(update={"dilation": rule}), advance)
            tried[rule] = mean_snr(quantized, data, judge, config.batch_size) if len(rules) > 1 else float("nan")
            if best_rule(tried) is rule:
                state = {} if rule is rules[-1] else {k: v.clone() for k, v in quantized.state_dict().items()}
                best = rule, records, state
    assert best is not None
    if best[0] is not rules[-1]:
        quantized.load_state_dict(best[2])
    return Initialization(best[1], best[0].value, {rule.value: snr for rule, snr in tried.items()} if len(rules) > 1 else {})


def best_rule(tried: Mapping[Dilation, float]) -> Dilation:
    """The rule to take of those that were tried, by the network's mean SNR in dB: the highest, SmoothQuant's only with a clear lead."""
    return max(tried, key=lambda rule: tried[rule] - (SMOOTHQUANT_LEAD_DB if rule is Dilation.SMOOTHQUANT else 0))


def _initialize_weight_only(quantized: GraphModule, config: QuantizeConfig) -> None:
    """Scales of the weights whose activations stay float: no activation has a say in them."""
    for module in quantized.modules():
        if isinstance(module, WeightOnly):
            clip = resolve(config.initial_range, module.bits) is InitialRange.MSE
            module.set_weight(module.weight.detach().clone(), clip=clip)


def fit_and_judge(data: Trajectories) -> tuple[slice, slice]:
    """Samples to fit on and samples to judge a rule on; the halves of a guided seed stay together."""
    seeds = data.samples.shape[1] // data.per_seed
    fit = min(_FIT_SEEDS, max(1, seeds * 3 // 4))
    judge = slice(fit, min(seeds, fit + _JUDGE_SEEDS)) if seeds > fit else slice(0, fit)
    return slice(0, fit * data.per_seed), slice(judge.start * data.per_seed, judge.stop * data.per_seed)


def mean_snr(quantized: GraphModule, data: Trajectories, judge: slice, batch_size: int) -> float:
    """Mean over timesteps of the network's SNR in dB."""
    samples, timestep, conditions = data.flat(judge)
    expected = data.outputs[:, judge].flatten(0, 1)
    noise = []
    for part in torch.arange(len(samples)).split(batch_size):
        values = {k: v[part] for k, v in conditions.items()}
        got = quantized(*arguments(quantized, samples[part], timestep[part], values)).cpu()
        noise.append((got - expected[part]).flatten(1).double().pow(2).sum(dim=1))
    rows = len(data.timesteps)
    power = expected.flatten(1).double().pow(2).sum(dim=1)
    noises = torch.cat(noise).reshape(rows, -1).sum(dim=1).tolist()
    found = [ratio_db(signal, error) for signal, error in zip(power.reshape(rows, -1).sum(dim=1).tolist(), noises, strict=True)]
    return round(fmean(FLOOR_DB if math.isnan(snr) else snr for snr in found), 4)


def arguments(
    graph: GraphModule, sample: torch.Tensor, timestep: torch.Tensor, conditions: Mapping[str, torch.Tensor]
) -> list[torch.Tensor]:
    """The inputs of a captured graph, whose first is the sample, in its order and on its device."""
    names = [str(n.target) for n in graph.graph.nodes if n.op == "placeholder"]
    values = {names[0]: sample, "timestep": timestep, **conditions}
    return [values[name].to(_device(graph)) for name in names]


def _device(graph: GraphModule) -> torch.device:
    return next(graph.buffers()).device


def apply_rule(float_graph: GraphModule, groups: Mapping[str, list[Group]], data: Trajectories, fit: slice, config: QuantizeConfig,
                advance: Any) -> list[DilationRecord]:  # fmt: skip
    """One rule, in one pass or several."""
    records: list[DilationRecord] = []
    peaks: dict[str, float] = {}
    for rows in _passes(float_graph, data, fit, config):
        part = replace(data, timesteps=data.timesteps[rows], samples=data.samples[rows], outputs=data.outputs[rows])
        samples, timestep, conditions = part.flat(fit)
        runner = _Initializer(float_graph, groups, rows, timestep.to(_device(float_graph)), config, advance, peaks)
        runner.run(*arguments(float_graph, samples, timestep, conditions))
        records += runner.records
    for group in chain.from_iterable(groups.values()):
        if group.quantizer.fixed:
            set_probability_range(group.quantizer, peaks[group.name])
    return records


def set_probability_range(quantizer: ActivationQuantizer, peak: float) -> None:
    """Quantize attention probabilities over [0, 2⁻ᵏ] where none that was seen exceeds ``peak``, far below 1.

    Spread over thousands of tokens, all of them are less than half a step of [0, 1] and would become 0. Peaks of 1/8 and more leave
    [0, 1] as it is; else a third of the range is left for what was not seen (docs/attention.md has figures).
    """
    halvings = 0 if peak >= _SPREAD else math.floor(-math.log2(max(1.5 * peak, _LEAST_RANGE)))
    qmin, qmax = code_range(quantizer.bits)
    rows = quantizer.table_rows
    quantizer.set_tables(torch.full((rows,), 2.0**-halvings / (qmax - qmin)), torch.full((rows,), float(qmin)))


def _passes(float_graph: GraphModule, data: Trajectories, fit: slice, config: QuantizeConfig) -> list[slice]:
    """The timesteps, as rows of the tables, that go through the network together."""
    rows = len(data.timesteps)
    count = rows_in_a_pass(rows, (fit.stop - fit.start) * live_bytes(list(float_graph.graph.nodes)), config)
    return [slice(start, min(rows, start + count)) for start in range(0, rows, count)]


def rows_in_a_pass(rows: int, row_bytes: int, config: QuantizeConfig) -> int:
    """How many of ``rows`` timesteps go through the network together, where one of them takes ``row_bytes``.

    All of them, unless memory is short and a row depends on its own timestep alone: a static scale does not, nor a dilation.
    """
    if rows * row_bytes <= _PASS_BYTES or config.dilation is not Dilation.NONE or not config.temporal:
        return rows
    return max(1, _PASS_BYTES // row_bytes)


def undilated_weights(quantized: GraphModule) -> set[str]:
    """Weights of an initialized graph, by their names in its state, that are still the float model's."""
    found = set()
    for node in quantized.graph.nodes:
        if "quantizer" not in node.meta:
            continue
        quantizer = quantized.get_submodule(str(node.target))
        assert isinstance(quantizer, ActivationQuantizer)
        if bool((quantizer.dilation == 1).all()):
            found |= {f"{user.target}.weight" for user in node.users if "weight" in user.meta}
    return found


def quantizer_groups(graph_module: GraphModule, float_graph: GraphModule | None = None) -> dict[str, list[Group]]:
    """Float-graph value name → groups that quantize it.

    Their weights before any dilation are those of ``float_graph``; without it, copies of what the layers have now.
    """
    found: dict[str, list[Group]] = {}
    for node in graph_module.graph.nodes:
        if "quantizer" not in node.meta:
            continue
        quantizer = graph_module.get_submodule(str(node.target))
        assert isinstance(quantizer, ActivationQuantizer)
        group = Group(decode(str(node.target)), quantizer)
        for user in node.users:
            module = graph_module.get_submodule(str(user.target))
            if isinstance(module, QuantizedWeight):
                name = decode(str(user.target))
                group.layers[name] = module
                weight = float_graph.get_buffer(user.meta["weight"]) if float_graph else module.weight.detach().clone()
                group.weights[name] = weight
        source = node.args[0]
        assert isinstance(source, Node)
        found.setdefault(float_name(source), []).append(group)
    return found


class _Initializer(Interpreter):
    """Runs the float graph, and sets the quantizers of each value when the value has been computed."""

    def __init__(self, module: GraphModule, groups: Mapping[str, list[Group]], rows: slice, timestep: torch.Tensor,
                 config: QuantizeConfig, advance: Any, peaks: dict[str, float]) -> None:  # fmt: skip
        super().__init__(module)
        self.peaks = peaks
        self.groups, self.rows, self.timestep, self.config, self.advance = groups, rows, timestep, config, advance
        self.records: list[DilationRecord] = []

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        for group in self.groups.get(n.name, []):
            self._check(n.name, value)
            if group.quantizer.fixed:
                self.peaks[group.name] = max(self.peaks.get(group.name, 0.0), float(value.max()))
            else:
                record = GroupSetter(group, value, self.timestep, self.rows, self.config).run()
                self.records += [record] if record else []
            self.advance(1, group.name)
        return value

    def _check(self, name: str, value: torch.Tensor) -> None:
        bad = (~torch.isfinite(value.flatten(1))).any(dim=1).nonzero()[:, 0]
        if len(bad):
            seed = int(bad[0]) % (len(value) // (self.rows.stop - self.rows.start))
            raise ArtifactError(f"activation '{name}' has NaN or Inf at timestep {float(self.timestep[bad[0]]):g}, seed {seed}")
