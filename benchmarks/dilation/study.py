"""One preset and calibration seed: the network's SNR by every rule, on seeds that no rule has seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import BaseModel, ConfigDict

from dq_deploy.progress import Advance, silent
from dq_deploy.quantization.calibration.source import Request
from dq_deploy.quantization.calibration.trajectories import Trajectories
from dq_deploy.quantization.choices import Dilation
from dq_deploy.quantization.config import QuantizeConfig
from dq_deploy.quantization.graph.calls import as_model
from dq_deploy.quantization.initial.initialize import AUTO_RULES, best_rule, fit_and_judge, fit_rules, mean_snr, quantizer_groups, take_rule
from dq_deploy.quantization.pipeline import copy_with_quantizers, per_timestep_snr
from dq_deploy.quantization.prepare import Prepared, prepare

REFERENCE_SEEDS = range(2_000_000, 2_000_008)


class RuleFigures(BaseModel):
    """``snr_db`` [T] on the reference seeds; ``judged_db`` is what auto chooses by. ``dilated`` are the layers with s ≠ 1."""

    model_config = ConfigDict(extra="forbid")

    snr_db: list[float]
    judged_db: float
    dilated: list[str]
    range_ratio: float
    unsaturated_share: float


class Figures(BaseModel):
    """One preset and seed: rule → figures."""

    model_config = ConfigDict(extra="forbid")

    preset: str
    seed: int
    rules: dict[str, RuleFigures]

    def auto(self) -> str:
        """The rule that auto takes."""
        return best_rule({rule: self.rules[rule].judged_db for rule in AUTO_RULES}).value


@dataclass(frozen=True)
class Study:
    """A source, and the relaxations r of the layerwise rule to try beside the rules."""

    source: str
    steps: int
    relaxations: Sequence[float]

    def variants(self) -> dict[str, dict[str, object]]:
        """Name → configuration."""
        found: dict[str, dict[str, object]] = {rule.value: {"dilation": rule} for rule in AUTO_RULES}
        for r in self.relaxations:
            found[f"layerwise, r = {r:g}"] = {"dilation": Dilation.LAYERWISE, "dilation_relaxation": r}
        return found

    @torch.no_grad()
    def measure(self, preset: str, seed: int, advance: Advance) -> Figures:
        """Every variant, on the same calibration data."""
        prepared = self._prepared(preset, seed)
        data = self._collect(prepared, range(seed, seed + prepared.config.calibration_samples))
        reference = self._collect(prepared, REFERENCE_SEEDS)
        quantized = copy_with_quantizers(prepared.float_graph, prepared.plan, data.timesteps)
        fit, judge = fit_and_judge(data)
        groups = quantizer_groups(quantized)
        rules = {}
        for name, change in self.variants().items():
            config = prepared.config.model_copy(update=change)
            fitted = fit_rules(prepared.float_graph, groups, data, fit, [config.dilation], config)[config.dilation]
            take_rule(groups, fitted, config)
            records = [found.record for found in fitted.values() if found.record]
            rules[name] = RuleFigures(
                snr_db=per_timestep_snr(as_model(quantized), reference),
                judged_db=mean_snr(quantized, data, judge, config.batch_size),
                dilated=[r.quantizer for r in records if r.dilated_share > 0],
                range_ratio=sum(r.range_ratio for r in records) / len(records),
                unsaturated_share=sum(r.unsaturated_share for r in records) / len(records),
            )
            advance(1, f"{preset}, seed {seed}: {name}")
        return Figures(preset=preset, seed=seed, rules=rules)

    def _prepared(self, preset: str, seed: int) -> Prepared:
        config = QuantizeConfig.build(preset, steps=self.steps, seed=seed, calibration_samples=12, iterations=0)
        return prepare(self.source, config, Request())

    @staticmethod
    def _collect(prepared: Prepared, seeds: range) -> Trajectories:
        return prepared.calibration.collect(as_model(prepared.float_graph), seeds, silent)
