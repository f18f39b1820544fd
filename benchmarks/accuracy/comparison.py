"""Figures of one model put beside each other: each with its interval, and each difference to DilateQuant with the paired one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from statistics import mean
from typing import Any

import numpy as np

from benchmarks.accuracy.bootstrap import Interval, interval, mean_interval, paired_difference, replicated_difference, resamples
from benchmarks.accuracy.kernel_distance import subset_interval
from benchmarks.accuracy.sample_metrics import snr_by_timestep
from dq_deploy.decibels import ratio_db

from .identity import Identity
from .methods import BY_NAME, DILATEQUANT, representative
from .results import CellResult
from .settings import FLOAT, Family, Settings, model_name

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Row:
    """A method at a preset; what was not measured is None. PSNR and SNR in dB; ``final`` is the SNR of where the noises end.

    ``dearest``: the timestep whose error costs the final sample most, and its share of what all steps cost it alone.
    ``recognised``: the share of pictures in which the classifier sees what the prompt asks for.
    """

    result: CellResult
    psnr: Interval | None = None
    psnr_difference: Interval | None = None
    snr_median: Interval | None = None
    snr: list[float] | None = None
    final: Interval | None = None
    final_difference: Interval | None = None
    feature: Interval | None = None
    frechet: Interval | None = None
    frechet_difference: Interval | None = None
    fid: Interval | None = None
    fid_difference: Interval | None = None
    kid: Interval | None = None
    dearest: str | None = None
    recognised: Interval | None = None

    @property
    def name(self) -> str:
        """The method's name."""
        return self.result.cell.method


class ModelResults:
    """All cells of one model and one seed."""

    def __init__(self, model: str, results: Iterable[CellResult], seed: int = 0) -> None:
        self.model = model
        own = [r for r in results if model_name(r.cell.model) == model]
        self.float = next((r for r in own if r.cell.method == FLOAT), None)
        self.cells = {(r.cell.preset, r.cell.method): r for r in own if r.cell.seed == seed and r.cell.method != FLOAT}

    @cached_property
    def settings(self) -> Settings:
        """The settings of most cells."""
        every = [r.settings for r in self.cells.values()] or ([self.float.settings] if self.float else [])
        return max(every, key=every.count) if every else Settings()

    @property
    def family(self) -> Family:
        """Which layers the model has, as its float cell says."""
        return self.float.family if self.float else "unet"

    @property
    def prompted(self) -> bool:
        """Whether the model is a text pipeline."""
        return bool(self.float and self.float.grid and self.float.grid.recognised)

    def representative(self, preset: str, method: str) -> str:
        """The method whose cell stands for a method."""
        return representative(method, preset, self.settings, family=self.family)

    def cell(self, preset: str, method: str) -> CellResult | None:
        """The cell that stands for a method: its own, or that of the method with the same configuration."""
        if method in BY_NAME and (preset, method) not in self.cells:
            method = self.representative(preset, method)
        return self.cells.get((preset, method))

    def row(self, preset: str, method: str) -> Row | None:
        """A method's figures, differences against DilateQuant at the same preset."""
        result = self.cell(preset, method)
        if result is None:
            return None
        ours = self.cell(preset, DILATEQUANT)
        return Row(result, **self._grid(result, ours), **_frechet(result, self.float), **_headline(result, self.float))

    def float_row(self) -> Row | None:
        """The float model's own distances to real pictures."""
        if self.float is None:
            return None
        return Row(self.float, **_recognised(self.float), **_frechet(self.float, None), **_headline(self.float, None))

    def _grid(self, result: CellResult, ours: CellResult | None) -> dict[str, Any]:
        grid = result.grid
        if grid is None or grid.psnr_db is None:
            return {}
        found: dict[str, Any] = {"psnr": mean_interval(grid.psnr_db), **_recognised(result)}
        if ours and ours is not result and ours.grid and ours.grid.psnr_db and len(ours.grid.psnr_db) == len(grid.psnr_db):
            found["psnr_difference"] = paired_difference(grid.psnr_db, ours.grid.psnr_db)
        if grid.feature_distance:
            found["feature"] = mean_interval(grid.feature_distance)
        if grid.cost_of_steps and (worst := grid.cost_of_steps.worst):
            found["dearest"] = f"t = {worst.span}: {worst.share or 0:.0%}"
        power = self.float.grid.power if self.float and self.float.grid else None
        if grid.error and power and np.shape(power) == np.shape(grid.error):
            found |= _snr(np.array(power), np.array(grid.error))
        found |= self.final(result, ours)
        return found

    def final(self, result: CellResult, other: CellResult | None) -> dict[str, Any]:
        """SNR of where the noises end, over all of them, and its paired difference to another cell's."""
        base = self.float.grid if self.float else None
        errors = [cell.grid.final_error if cell and cell.grid else None for cell in (result, other)]
        if base is None or base.final_power is None or errors[0] is None or len(errors[0]) != len(base.final_power):
            return {}
        value, replicates = _final_snr(base.final_power, errors[0])
        found: dict[str, Any] = {"final": interval(value, replicates)}
        if other is not None and other is not result and errors[1] is not None and len(errors[1]) == len(errors[0]):
            found["final_difference"] = replicated_difference(value, replicates, *_final_snr(base.final_power, errors[1]))
        return found


def _recognised(result: CellResult) -> dict[str, Any]:
    flags = result.grid.recognised if result.grid else None
    return {"recognised": mean_interval(flags)} if flags else {}


def _snr(power: Array, error: Array) -> dict[str, Any]:
    """Network SNR at each timestep, and its median over them with an interval over the samples."""
    drawn = resamples(power.shape[1], 500, 0)
    medians = [float(np.median(snr_by_timestep(power[:, index], error[:, index]))) for index in drawn]
    snr = snr_by_timestep(power, error)
    return {"snr": snr.tolist(), "snr_median": interval(float(np.median(snr)), medians)}


def _final_snr(power: list[float], error: list[float]) -> tuple[float, list[float]]:
    """In dB, of all samples and of each resample of them; the same resamples for whoever has as many."""
    signal, noise = np.array(power), np.array(error)
    drawn = resamples(len(signal), 2000, 0)
    return ratio_db(signal.sum(), noise.sum()), [ratio_db(signal[index].sum(), noise[index].sum()) for index in drawn]


def _frechet(result: CellResult, base: CellResult | None) -> dict[str, Any]:
    """The distance with its replicates' spread, and its difference to the float model's own."""
    rival = result.rival
    if rival is None:
        return {}
    # Replicates are biased upwards, alike for all: they give the spread, not the place.
    shift = rival.frechet - mean(rival.replicates)
    found: dict[str, Any] = {"frechet": interval(rival.frechet, [v + shift for v in rival.replicates])}
    if base and base.rival and len(base.rival.replicates) == len(rival.replicates):
        found["frechet_difference"] = replicated_difference(rival.frechet, rival.replicates, base.rival.frechet, base.rival.replicates)
    return found


def _headline(result: CellResult, base: CellResult | None) -> dict[str, Any]:
    head = result.headline
    if head is None:
        return {}
    shift = head.fid - mean(head.fid_replicates)
    found: dict[str, Any] = {
        "fid": interval(head.fid, [v + shift for v in head.fid_replicates]),
        "kid": subset_interval(np.array(head.kid), size=head.kid_size, count=head.samples),
    }
    if base and base.headline and len(base.headline.fid_replicates) == len(head.fid_replicates):
        found["fid_difference"] = replicated_difference(head.fid, head.fid_replicates, base.headline.fid, base.headline.fid_replicates)
    return found


def identity_of(result: CellResult) -> Identity:
    """The identity that a cell was measured with."""
    return Identity(result.config, result.model_sha256, result.code_sha256)
