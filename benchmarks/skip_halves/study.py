"""One preset and calibration seed: the network's SNR with joint and with split skips, before any training."""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict

from dq_deploy.progress import silent
from dq_deploy.quantization.calibration.source import Request
from dq_deploy.quantization.calibration.trajectories import Trajectories
from dq_deploy.quantization.choices import SkipHalves
from dq_deploy.quantization.config import QuantizeConfig
from dq_deploy.quantization.graph.calls import as_model
from dq_deploy.quantization.graph.plan import make_plan
from dq_deploy.quantization.initial.initialize import initialize
from dq_deploy.quantization.pipeline import copy_with_quantizers, per_timestep_snr
from dq_deploy.quantization.prepare import prepare

REFERENCE_SEEDS = range(2_000_000, 2_000_004)
SAMPLES = 16


class Figures(BaseModel):
    """Mode → ``snr_db`` [T] on the reference seeds."""

    model_config = ConfigDict(extra="forbid")

    preset: str
    seed: int
    snr_db: dict[str, list[float]]


class Study:
    """A source, captured once for each mode. ``dilation`` is the rule of both."""

    def __init__(self, source: str, steps: int, dilation: str) -> None:
        self.source, self.steps, self.dilation = source, steps, dilation
        self._prepared = {mode: prepare(source, self._config("w8a8", 0, mode), Request()) for mode in SkipHalves}
        self._data: dict[int, Trajectories] = {}

    @property
    def split(self) -> list[str]:
        """The layers that are split."""
        return [row["layer"] for row in self._prepared[SkipHalves.SPLIT].skip_halves["split"]]

    def measure(self, preset: str, seed: int) -> Figures:
        """Both modes on the same calibration data."""
        data, reference = self._collect(range(seed, seed + SAMPLES)), self._collect(REFERENCE_SEEDS)
        found = {}
        for mode, prepared in self._prepared.items():
            config = self._config(preset, seed, mode)
            plan = make_plan(prepared.float_graph, config)
            quantized = copy_with_quantizers(prepared.float_graph, plan, data.timesteps)
            initialize(prepared.float_graph, quantized, data, config, silent)
            found[mode.value] = per_timestep_snr(as_model(quantized), reference)
        return Figures(preset=preset, seed=seed, snr_db=found)

    def _config(self, preset: str, seed: int, mode: SkipHalves) -> QuantizeConfig:
        return QuantizeConfig.build(
            preset, steps=self.steps, seed=seed, calibration_samples=SAMPLES, iterations=0, skip_halves=mode, dilation=self.dilation
        )

    @torch.no_grad()
    def _collect(self, seeds: range) -> Trajectories:
        if seeds.start not in self._data:
            joint = self._prepared[SkipHalves.JOINT]
            self._data[seeds.start] = joint.calibration.collect(as_model(joint.float_graph), seeds, silent)
        return self._data[seeds.start]
