"""One model, one calibration, one initialization; then distilled in either way, in a process of its own each time."""

from __future__ import annotations

import ctypes
import gc
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.fx import GraphModule

from dq_deploy.progress import silent
from dq_deploy.quantization.calibration.choice import choose
from dq_deploy.quantization.calibration.source import Request
from dq_deploy.quantization.calibration.trajectories import Model, Trajectories
from dq_deploy.quantization.calibration.walk import Walk
from dq_deploy.quantization.checkpoint import freeze
from dq_deploy.quantization.config import QuantizeConfig
from dq_deploy.quantization.distillation.distill import distill
from dq_deploy.quantization.graph.calls import as_model
from dq_deploy.quantization.initial.initialize import initialize
from dq_deploy.quantization.pipeline import copy_with_quantizers, per_timestep_snr
from dq_deploy.quantization.prepare import Prepared, prepare
from dq_deploy.quantization.running.stages import load_state, pack_trajectories, unpack_trajectories
from dq_deploy.quantization.running.work_folder import WorkFolder

KINDS = ("block", "end-to-end")
_REFERENCE_SEED = 1_000_000  # never calibrated on


@dataclass(frozen=True)
class Setting:
    """What both kinds of distillation share."""

    source: str
    preset: str
    batch_size: int
    calibration_samples: int
    pictures: int

    def config(self, kind: str, iterations: int) -> QuantizeConfig:
        """The options of one run."""
        return QuantizeConfig.build(
            self.preset, distillation=kind, iterations=iterations, batch_size=self.batch_size, calibration_samples=self.calibration_samples
        )


@dataclass
class Study:
    """The initialized network and its data; the long part is kept in ``folder`` and read by later processes."""

    prepared: Prepared
    data: Trajectories
    reference: Trajectories
    quantized: GraphModule

    @classmethod
    def load(cls, setting: Setting, kind: str, iterations: int, folder: Path) -> Study:
        """Ready to be distilled."""
        prepared = prepare(setting.source, setting.config(kind, iterations), Request())
        work = WorkFolder(folder)
        data = cls._trajectories(work, "calibration", prepared, range(setting.calibration_samples))
        reference = cls._trajectories(work, "reference", prepared, range(_REFERENCE_SEED, _REFERENCE_SEED + setting.pictures))
        quantized = copy_with_quantizers(prepared.float_graph, prepared.plan, data.timesteps)
        if stage := work.load("initial"):
            load_state(quantized, stage.tensors)
        else:
            done = initialize(prepared.float_graph, quantized, data, prepared.config)
            work.save("initial", quantized.state_dict(), done.model_dump())
        return cls(prepared, data, reference, quantized)

    @staticmethod
    def _trajectories(work: WorkFolder, name: str, prepared: Prepared, seeds: range) -> Trajectories:
        if stage := work.load(name):
            return unpack_trajectories(stage)
        data = prepared.calibration.collect(as_model(prepared.float_graph), seeds, silent)
        work.save(name, *pack_trajectories(data))
        return data

    def distill(self) -> list[dict[str, Any]]:
        """Distil in place; records of the blocks."""
        return [r.model_dump() for r in distill(self.prepared.float_graph, self.quantized, self.data, self.prepared.config)]

    def quality(self) -> dict[str, Any]:
        """SNR at each timestep and PSNR of final pictures against the float network's, from noises that were never calibrated on."""
        model = as_model(self.quantized)
        snr = per_timestep_snr(model, self.reference)
        seeds = range(_REFERENCE_SEED, _REFERENCE_SEED + self.reference.samples.shape[1])
        expected, got = (self._pictures(m, seeds) for m in (as_model(self.prepared.float_graph), model))
        error = (got - expected).flatten(1).double().pow(2).mean(dim=1)
        psnr = 10 * torch.log10(4 / error)  # pictures are −1 … 1
        return {"snr_db": snr, "snr_mean_db": sum(snr) / len(snr), "psnr_db": psnr.tolist(), "psnr_mean_db": float(psnr.mean())}

    @torch.no_grad()
    def _pictures(self, model: Model, seeds: range) -> torch.Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        walk = Walk(choose(self.prepared.scheduler).scheduler, self.prepared.config.steps, generators)
        x = walk.noise(self.prepared.shape)
        for position, t in enumerate(walk.timesteps):
            parts = walk.input(position, x).split(self.prepared.config.batch_size)
            x = walk.step(position, torch.cat([model(part, torch.full((len(part),), t)) for part in parts]), x)
        return x.clamp(-1, 1)


def quality_run(setting: Setting, kind: str, iterations: int, folder: Path) -> dict[str, Any]:
    """Distil with ``iterations`` (0: not at all) and judge; ``cpu_s`` and ``wall_s`` are of the distillation alone."""
    study = Study.load(setting, kind, iterations, folder)
    torch.nn.functional.conv2d(torch.randn(2, 8, 8, 8), torch.randn(8, 8, 3, 3))  # what the library sets up on first use
    cpu, wall = time.process_time(), time.perf_counter()
    records = study.distill() if iterations else []
    spent = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}
    freeze(study.quantized)
    return {"kind": kind, "iterations": iterations, **spent, **study.quality(), "blocks": records}


def memory_run(setting: Setting, kind: str, iterations: int, folder: Path) -> dict[str, Any]:
    """Peak resident memory of the distillation above what is resident when model, graph and calibration data are loaded, in bytes."""
    study = Study.load(setting, kind, iterations, folder)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # so that memory which loading left behind does not hide what distilling takes
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    loaded = resident("VmRSS")
    study.distill()
    return {"kind": kind, "iterations": iterations, "loaded_bytes": loaded, "peak_bytes": resident("VmHWM") - loaded}


def resident(field: str) -> int:
    """``VmRSS``, resident memory now, or ``VmHWM``, its peak, in bytes."""
    match = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) * 1024


RUNS: dict[str, Callable[[Setting, str, int, Path], dict[str, Any]]] = {"quality": quality_run, "memory": memory_run}
