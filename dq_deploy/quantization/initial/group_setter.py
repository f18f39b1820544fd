"""Dilation and first tables of one activation, chosen by the output error of the layers that read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import torch

from ...artifacts.details import DilatedInput
from ..choices import Dilation
from ..config import QuantizeConfig
from ..quantizers import ActivationQuantizer
from ..quantizers.ranges import clips_weights
from ..weights import QuantizedWeight
from .dilation import LayerStatistics, asymmetric_bound, candidates, dilate, smoothquant, symmetric_bound

_WORTHWHILE = 0.99  # a dilation must lower the measured error to this, or rounding's luck decides


_ALIGNMENT = 64  # bytes; of every tensor that torch allocates on a CPU


@dataclass
class Group:
    """A quantizer and the layers that read it, with their weights before any dilation."""

    name: str
    quantizer: ActivationQuantizer
    layers: dict[str, QuantizedWeight] = field(default_factory=dict)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Fitted:
    """What a rule makes of a group: the quantizer's ``state``, its dilation [C] with it, and a record if there are weights to dilate."""

    state: dict[str, torch.Tensor]
    record: DilatedInput | None

    @classmethod
    def of(cls, group: Group, record: DilatedInput | None) -> Self:
        """How a group is now."""
        state = {name: value.clone() for name, value in group.quantizer.state_dict().items()}
        return cls(state, record)

    def take(self, group: Group, config: QuantizeConfig) -> None:
        """Set the group so."""
        set_weights(group, {name: own(weight) for name, weight in group.weights.items()}, self.state["dilation"], config)
        group.quantizer.load_state_dict(self.state)


class GroupSetter:
    """Chooses dilation and tables for one activation x [T·m·frames, ...], timesteps slowest, by rules that are not AUTO or NONE.

    Candidates for s are fitted on the first half of the seeds and judged on the other; the tables that stay are fitted on all of them.
    What the rules compare with, the activation and the weights as they are, is computed once for all.
    """

    def __init__(self, group: Group, x: torch.Tensor, timestep: torch.Tensor, table_rows: int, config: QuantizeConfig) -> None:
        self.group, self.quantizer, self.config = group, group.quantizer, config
        self.x, self.timestep, self.table_rows = x, timestep, table_rows
        self.weights = {name: own(weight) for name, weight in group.weights.items()}

    def run(self, rules: Sequence[Dilation]) -> dict[Dilation, Fitted]:
        """What each rule makes of the group. The last to be tried is how the group is left."""
        ones = torch.ones_like(self.quantizer.dilation)
        self.apply(ones, self.x)
        if not self.weights:
            return dict.fromkeys(rules, Fitted.of(self.group, None))
        before, statistics = self.quantizer.scale_table().clone(), self._statistics()
        self._split()
        error = self._error(ones)
        return {rule: self._fitted(rule, statistics, before, error) for rule in rules}

    def _fitted(self, rule: Dilation, statistics: LayerStatistics, before: torch.Tensor, error: float) -> Fitted:
        """``before`` [T] are the scales without a dilation, ``error`` that of the output."""
        bound, choices = self._choices(rule, statistics)
        errors = {"none": error, **{name: self._error(s) for name, s in choices.items() if name != "none"}}
        best = self._best(rule, errors)
        self.apply(choices[best], self.x)
        record = DilatedInput(
            quantizer=self.group.name,
            choice=best,
            unsaturated_share=float((bound > 1).float().mean()),
            dilated_share=float((choices[best] != 1).float().mean()),
            range_ratio=float((self.quantizer.scale_table() / before).mean()),
            error_ratio=errors[best] / max(error, 1e-30),
            folded_into=[],
        )
        return Fitted.of(self.group, record)

    @staticmethod
    def _best(rule: Dilation, errors: dict[str, float]) -> str:
        if rule is not Dilation.LAYERWISE:
            return list(errors)[-1]
        best = min(errors, key=lambda name: errors[name])
        return best if errors[best] <= _WORTHWHILE * errors["none"] else "none"

    def _choices(self, rule: Dilation, statistics: LayerStatistics) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The rule's bound [C] and the vectors to try; a fixed rule has itself, last, and "none" to compare with."""
        weights = list(self.weights.values())
        ones = torch.ones_like(self.quantizer.dilation)
        bound = (asymmetric_bound if rule is Dilation.ASYMMETRIC else symmetric_bound)(weights, len(ones))
        if rule is Dilation.LAYERWISE:
            return bound, candidates(bound, statistics, self.config.dilation_relaxation)
        if rule is Dilation.SMOOTHQUANT:
            s = smoothquant(statistics.channel_range.amax(dim=0), weights, self.config.smoothquant_alpha)
            return bound, {"none": ones, "smoothquant": s}
        return bound, {"none": ones, "full": bound}

    def _statistics(self) -> LayerStatistics:
        channels = self.x.movedim(self.quantizer.axis, 1).flatten(2) if self.x.dim() > 2 else self.x[:, :, None]  # [T·m, C, positions]
        per_timestep = channels.unflatten(0, (self.table_rows, -1)).transpose(1, 2).flatten(2)  # [T, C, m·positions]
        layers = list(self.group.layers.values())
        uniform = not any(fmt.floating for fmt in (self.quantizer.format, *(layer.format for layer in layers)))
        return LayerStatistics(
            channel_range=per_timestep.abs().amax(dim=2),
            channel_power=per_timestep.pow(2).mean(dim=2),
            step=self.quantizer.scale_table() if uniform else None,
            weights=list(self.weights.values()),
            weight_steps=[layer.steps() for layer in layers],
        )

    def _split(self) -> None:
        """Seeds to fit on, and seeds to judge on with the float layers' outputs for them."""
        timestep = self.timestep.unflatten(0, (self.table_rows, -1))  # [T, m]
        x = self.x.unflatten(0, (*timestep.shape, -1))  # [T, m, frames, ...]
        middle = max(1, x.shape[1] // 2)
        held = slice(middle, None) if x.shape[1] > 1 else slice(0, 1)
        self.fit = x[:, :middle].flatten(0, 2)
        self.judge, self.judge_timestep = x[:, held].flatten(0, 2), timestep[:, held].flatten()
        self.exact = {name: layer.float_product(self.judge, self.weights[name]) for name, layer in self.group.layers.items()}

    def apply(self, s: torch.Tensor, x: torch.Tensor) -> None:
        """Set dilation, weights and tables for ``s`` [C], the tables from ``x``."""
        set_weights(self.group, self.weights, s, self.config)
        self.quantizer.calibrate(self.quantizer.observation().after(self.quantizer.divided(x)), self.config)

    def _error(self, s: torch.Tensor) -> float:
        """Relative squared output error of the group's layers with real rounding, averaged over timesteps."""
        self.apply(s, self.fit)
        quantized = self.quantizer(self.judge, self.judge_timestep)
        error = 0.0
        for name, layer in self.group.layers.items():
            exact = self.exact[name]
            difference = (layer(quantized) - exact).unflatten(0, (self.table_rows, -1)).flatten(1).double().pow(2).sum(1)
            error += float(
                (difference / exact.unflatten(0, (self.table_rows, -1)).flatten(1).double().pow(2).sum(1).clamp(min=1e-30)).mean()
            )
        return error


def set_weights(group: Group, weights: Mapping[str, torch.Tensor], s: torch.Tensor, config: QuantizeConfig) -> None:
    """Set the dilation ``s`` [C] and the layers' weights, which were ``weights`` before any dilation."""
    group.quantizer.dilation.copy_(s)
    dilated = bool((s != 1).any())
    for name, layer in group.layers.items():
        clip = clips_weights(config.initial_range, layer.format)
        layer.set_weight(dilate(weights[name], s) if dilated else weights[name], clip=clip)


def own(weight: torch.Tensor) -> torch.Tensor:
    """The weight [O, ...] as torch itself would lay it out, copied only if it is not: BLAS sums in another order at another alignment."""
    weight = weight.detach()
    return weight if weight.dtype == torch.float32 and weight.data_ptr() % _ALIGNMENT == 0 else weight.clone().float()
