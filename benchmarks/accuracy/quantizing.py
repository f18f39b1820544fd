"""Making a cell's quantized model, and what that cost."""

from __future__ import annotations

import itertools
import resource
import sys
import time
from pathlib import Path
from typing import Any

from dq_deploy.progress import Progress
from dq_deploy.quantization import quantize

from .denoisers import CHECKPOINT
from .drawing import Drawing
from .methods import Method
from .models import Reference
from .peers import FLOAT_ONNX, export_float, feeds, quantize_nncf, quantize_onnxruntime, torchao_denoiser
from .results import Cost, write_text
from .settings import Cell, Settings

COST = "cost.json"
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes there, KiB on Linux


def quantize_cell(
    cell: Cell, method: Method, reference: Reference, settings: Settings, folder: Path, device: str, progress: Progress
) -> Cost:
    """The cell's quantized model in ``folder``, made now unless it is there; returns what making it took.

    Call it first in a process of its own: the peak of memory is the process's.
    """
    file = folder / COST
    if file.is_file():
        return Cost.model_validate_json(file.read_bytes())
    folder.mkdir(parents=True, exist_ok=True)
    loaded, wall, cpu = resident_mib(), time.perf_counter(), time.process_time()
    if method.tool == "dq-deploy":
        details = _with_us(cell, method, reference, settings, folder, device, progress)
    else:
        details = _with_peer(cell, method, reference, settings, folder)
    cost = Cost(
        wall_s=round(time.perf_counter() - wall, 2),
        cpu_s=round(time.process_time() - cpu, 2),
        loaded_mib=round(loaded, 1),
        # The kernel counts resident pages in batches, so that the peak may seem to lie a little below what was seen.
        peak_mib=round(max(loaded, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT / 2**20), 1),
        gpu_peak_mib=_gpu_peak_mib(device),
        calibration_samples=settings.calibration_samples,
        calibration_inputs=settings.calibration_samples * settings.steps,
        **details,
    )
    write_text(file, cost.model_dump_json())
    return cost


def resident_mib() -> float:
    """Memory of this process now, MiB; its peak where the system does not say."""
    statm = Path("/proc/self/statm")
    if statm.is_file():
        return int(statm.read_text().split()[1]) * resource.getpagesize() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT / 2**20


def _gpu_peak_mib(device: str) -> float | None:
    if device == "cpu":
        return None
    import torch

    return round(torch.cuda.max_memory_allocated() / 2**20, 1)


def _with_us(cell: Cell, method: Method, reference: Reference, settings: Settings, folder: Path, device: str,
             progress: Progress) -> dict[str, Any]:  # fmt: skip
    config = method.config(cell.preset, settings, seed=cell.seed)
    options = config.model_dump(exclude={"weight_bits", "activation_bits"})
    if device != "cpu":
        options["device"] = device
    arguments = reference.quantize_arguments()
    preset, bits = method.made_at(cell.preset)
    given = {**options, **arguments, **bits}
    artifact = quantize(output=folder / CHECKPOINT, preset=preset, force=True, progress=progress, **given)
    records = artifact.details.distillation
    return {
        "iterations": config.iterations,
        "blocks": len(records),
        "stopped_blocks": [f"{r.block}: {r.note}" for r in records if r.note],
        "dilated_tensors": sum(r.dilated_share > 0 for r in artifact.details.dilation),
    }


def _with_peer(cell: Cell, method: Method, reference: Reference, settings: Settings, folder: Path) -> dict[str, Any]:
    if method.tool == "torchao":  # made anew by each process: it takes a moment
        torchao_denoiser(reference)
        return {"iterations": 0}
    drawing = Drawing(reference.source.scheduler, reference.source.sample_shape, settings.steps, reference.conditions, first_seed=cell.seed)
    numbers = range(settings.calibration_samples)
    trace, given = drawing.trace(reference.guided(reference), numbers), reference.conditions(numbers)
    halves = [given, *([reference.prompted.without(given)] if reference.prompted else [])]
    batches = itertools.chain.from_iterable(feeds(trace, half, reference.input_names, settings.batch_size) for half in halves)
    export_float(reference, reference.source.sample_shape, folder / FLOAT_ONNX)
    if method.tool == "onnxruntime":
        quantize_onnxruntime(folder, reference.input_names, batches)
    else:
        quantize_nncf(folder, reference.input_names, batches, transformer=reference.family == "transformer")
    return {"iterations": 0}
