"""First values of every dilation vector, from a few seeds at all timesteps at once, and of every scale table, from all samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from statistics import fmean
from typing import Any

import torch
from pydantic import BaseModel
from torch.fx import GraphModule, Node

from ...artifacts.details import DilatedInput
from ...decibels import floored, ratio_db
from ...progress import Progress, silent
from ..calibration.trajectories import Trajectories
from ..choices import Dilation
from ..config import QuantizeConfig
from ..graph.calls import arguments, device_of
from ..graph.insertion import decode, float_name
from ..graph.modules import named_weights, quantizer_calls
from ..quantizers.ranges import clips_weights
from ..weights import QuantizedWeight
from .dilation import symmetric_bound
from .group_setter import Fitted, Group, GroupSetter, own, set_weights
from .tables import fit_tables, passes, samples_in_a_pass
from .watcher import Watcher

_FIT_SEEDS, _JUDGE_SEEDS = 8, 4  # of dilations; all timesteps of so many trajectories are in memory at once
AUTO_RULES = (Dilation.NONE, Dilation.ASYMMETRIC, Dilation.SYMMETRIC, Dilation.LAYERWISE, Dilation.SMOOTHQUANT)
"""What AUTO chooses from. A layer's own error is a poor judge alone: noise that later layers average out counts there like a bias that they
hand on (docs/decisions/dilation-default.md)."""
ERROR_KEPT_BY_GPTQ = 0.5
"""Of the nearest codes' error in the weights, where GPTQ will round them later: rules are judged with so much of it. With all of it a rule
that serves the activations looks bad at 4 bits, with none of it every rule that stretches weights looks good (docs/decisions)."""
SMOOTHQUANT_LEAD_DB = 0.75
"""SmoothQuant's factors leave the weights' range, and must lead by so much: a smaller lead was gone, or the other way, after training."""


class Initialization(BaseModel):
    """What dilation did to each tensor, the rule used, and for each rule that was tried the network's held-out SNR in dB (mean over t)."""

    records: list[DilatedInput]
    rule: str
    tried: dict[str, float]


@torch.no_grad()
def initialize(float_graph: GraphModule, quantized: GraphModule, data: Trajectories, config: QuantizeConfig,
               progress: Progress = silent) -> Initialization:  # fmt: skip
    """Set every quantizer's dilation and tables, the latter from all the samples of ``data``, of every size.

    With AUTO the rules of ``AUTO_RULES`` are tried one after the other, and ``best_rule`` stays, by the network's SNR on seeds that
    nothing was fitted on. Raises ArtifactError naming value, timestep and seed where an activation is NaN or Inf.
    """
    _initialize_weight_only(quantized, config)
    groups = quantizer_groups(quantized, float_graph)
    if not groups:
        return Initialization(records=[], rule=Dilation.NONE.value, tried={})
    rules = AUTO_RULES if config.dilation is Dilation.AUTO else (config.dilation,)
    over_all = sum(len(passes(float_graph, sized, None, config)) for sized in data.by_size)
    count = _passes(float_graph, data, rules, config) + over_all
    with progress("initial scales", count * sum(map(len, groups.values()))) as advance:
        dilated = _dilate(float_graph, quantized, groups, data, rules, config, advance)
        fit_tables(float_graph, groups, data, None, config, advance)
    return dilated


def _dilate(float_graph: GraphModule, quantized: GraphModule, groups: Mapping[str, list[Group]], data: Trajectories,
            rules: Sequence[Dilation], config: QuantizeConfig, advance: Any) -> Initialization:  # fmt: skip
    """Dilations and weights by the best of ``rules``, each with tables of its own to be judged with."""
    if list(rules) == [Dilation.NONE]:
        return Initialization(records=undilated(groups, config), rule=Dilation.NONE.value, tried={})
    fit, judge = fit_and_judge(data)
    fitted = fit_rules(float_graph, groups, data, fit, rules, config, advance)
    tried: dict[Dilation, float] = {}
    for rule in rules if len(rules) > 1 else ():
        take_rule(groups, fitted[rule], config)
        with _weights_as_rounded_later(groups, config):
            tried[rule] = mean_snr(quantized, data, judge, config.batch_size)
    best = best_rule(tried) if tried else rules[0]
    if best is not rules[-1]:  # which is how the groups were left
        take_rule(groups, fitted[best], config)
    records = [found.record for found in fitted[best].values() if found.record]
    return Initialization(records=records, rule=best.value, tried={rule.value: snr for rule, snr in tried.items()})


@contextmanager
def _weights_as_rounded_later(groups: Mapping[str, list[Group]], config: QuantizeConfig) -> Iterator[None]:
    """Let the layers' weights be as far from the float ones as their final rounding will leave them, about."""
    layers = [layer for group in chain.from_iterable(groups.values()) for layer in group.layers.values()]
    for layer in layers:
        layer.error_kept = ERROR_KEPT_BY_GPTQ if config.rounds_by_gptq else 1.0
    try:
        yield
    finally:
        for layer in layers:
            layer.error_kept = 1.0


def _passes(float_graph: GraphModule, data: Trajectories, rules: Sequence[Dilation], config: QuantizeConfig) -> int:
    """Passes of the float model that ``_dilate`` makes."""
    if list(rules) == [Dilation.NONE]:
        return 0
    others = set(rules) != {Dilation.NONE}
    return others + (len(passes(float_graph, data, fit_and_judge(data)[0], config)) if Dilation.NONE in rules else 0)


def best_rule(tried: Mapping[Dilation, float]) -> Dilation:
    """The rule to take of those that were tried, by the network's mean SNR in dB: the highest, SmoothQuant's only with a clear lead."""
    return max(tried, key=lambda rule: tried[rule] - (SMOOTHQUANT_LEAD_DB if rule is Dilation.SMOOTHQUANT else 0))


def _initialize_weight_only(quantized: GraphModule, config: QuantizeConfig) -> None:
    """Scales of the weights whose activations stay float: no activation has a say in them."""
    for layer in named_weights(quantized).values():
        if layer.weight_only:
            clip = clips_weights(config.initial_range, layer.format)
            layer.set_weight(layer.weight.detach().clone(), clip=clip)


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
    table_rows = len(data.timesteps)
    power = expected.flatten(1).double().pow(2).sum(dim=1)
    noises = torch.cat(noise).reshape(table_rows, -1).sum(dim=1).tolist()
    found = [ratio_db(signal, error) for signal, error in zip(power.reshape(table_rows, -1).sum(dim=1).tolist(), noises, strict=True)]
    return round(fmean(map(floored, found)), 4)


def fit_rules(float_graph: GraphModule, groups: Mapping[str, list[Group]], data: Trajectories, fit: slice, rules: Sequence[Dilation],
              config: QuantizeConfig, advance: Any = lambda *_: None) -> dict[Dilation, dict[str, Fitted]]:  # fmt: skip
    """What each of ``rules``, none of them AUTO, makes of each group by its name, with tables fitted to the samples ``fit``."""
    found: dict[Dilation, dict[str, Fitted]] = {}
    if Dilation.NONE in rules:
        records = {record.quantizer: record for record in undilated(groups, config)}
        fit_tables(float_graph, groups, data, fit, config, advance)
        found[Dilation.NONE] = {group.name: Fitted.of(group, records.get(group.name)) for group in chain.from_iterable(groups.values())}
    if others := [rule for rule in rules if rule is not Dilation.NONE]:
        samples, timestep, conditions = data.flat(fit)
        runner = _Initializer(float_graph, groups, len(data.timesteps), timestep.to(device_of(float_graph)), others, config, advance)
        runner.run(*arguments(float_graph, samples, timestep, conditions))
        found |= runner.found
    return found


def take_rule(groups: Mapping[str, list[Group]], fitted: Mapping[str, Fitted], config: QuantizeConfig) -> None:
    """Set every group as a rule made it."""
    for group in chain.from_iterable(groups.values()):
        fitted[group.name].take(group, config)


def undilated(groups: Mapping[str, list[Group]], config: QuantizeConfig) -> list[DilatedInput]:
    """Set every group's weights as they are, and say what a dilation could have done."""
    records = []
    for group in chain.from_iterable(groups.values()):
        ones = torch.ones_like(group.quantizer.dilation)
        weights = {name: own(weight) for name, weight in group.weights.items()}
        set_weights(group, weights, ones, config)
        if weights:
            bound = symmetric_bound(list(weights.values()), len(ones))
            unsaturated = float((bound > 1).float().mean())
            figures = {"unsaturated_share": unsaturated, "dilated_share": 0.0, "range_ratio": 1.0, "error_ratio": 1.0}
            records.append(DilatedInput(quantizer=group.name, choice="none", folded_into=[], **figures))
    return records


def initialization_bytes(sample_bytes: int, fitted: int, config: QuantizeConfig) -> int:
    """Most bytes of values that are alive at one time: a sample has ``sample_bytes``, and dilations are fitted to ``fitted`` samples."""
    at_once = samples_in_a_pass(sample_bytes, config)
    return sample_bytes * (at_once if config.dilation is Dilation.NONE else max(at_once, fitted * config.steps))


def undilated_weights(quantized: GraphModule) -> set[str]:
    """Weights of an initialized graph, by their names in its state, that are still the float model's."""
    read = (node for node, quantizer in quantizer_calls(quantized) if not quantizer.divides)
    return {f"{user.target}.weight" for node in read for user in node.users if "weight" in user.meta}


def quantizer_groups(graph_module: GraphModule, float_graph: GraphModule | None = None) -> dict[str, list[Group]]:
    """Float-graph value name → groups that quantize it.

    Their weights before any dilation are those of ``float_graph``; without it, copies of what the layers have now.
    """
    found: dict[str, list[Group]] = {}
    for node, quantizer in quantizer_calls(graph_module):
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


class _Initializer(Watcher):
    """Fits each group by every rule, from all timesteps at once."""

    def __init__(self, module: GraphModule, groups: Mapping[str, list[Group]], table_rows: int, timestep: torch.Tensor,
                 rules: Sequence[Dilation], config: QuantizeConfig, advance: Any) -> None:  # fmt: skip
        super().__init__(module, groups, advance)
        self.table_rows, self.timestep, self.config = table_rows, timestep, config
        self.found: dict[Dilation, dict[str, Fitted]] = {rule: {} for rule in rules}

    def watch(self, group: Group, value: torch.Tensor) -> None:
        made = GroupSetter(group, value, self.timestep, self.table_rows, self.config).run(list(self.found))
        for rule, fitted in made.items():
            self.found[rule][group.name] = fitted

    def where(self, sample: int) -> tuple[float, int]:
        return float(self.timestep[sample]), sample % (len(self.timestep) // self.table_rows)
