"""One task in a process of its own, so that wall time and peak memory are the task's. The task comes on stdin as JSON."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from dq_deploy.artifacts.manifest import tool_versions
from dq_deploy.console import Output
from dq_deploy.engines.devices.machine import machine_info
from dq_deploy.errors import DqDeployError
from dq_deploy.progress import Progress

from . import measuring, quantizing
from .confirmed import same_code
from .denoisers import OUTSIDE_RUNTIMES, denoiser, integer_denoiser
from .identity import Identity, differences, identity
from .measuring import Bench
from .methods import WIDTHS, method
from .models import Reference, load_reference
from .results import CellResult, Cost, read_result, write_result
from .settings import FLOAT, Cell, DrawnBy, Family, Settings, Tier
from .workspace import Workspace

INTERRUPTED = 130
SHARED = "widths"
"""In the place of a preset: what is made once for several of them."""


class Task(BaseModel):
    """A cell and a tier to measure, and where everything lies."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cell: Cell
    tier: Tier
    settings: Settings
    results: Path
    work: Path
    data: Path
    device: str = "cpu"
    threads: int = 1
    drawn_by: DrawnBy = "torch"

    @property
    def label(self) -> str:
        """For progress and errors."""
        return f"{self.cell.label} ({self.tier})"


def run(task: Task, progress: Progress) -> CellResult:
    """Measure a task and write its figures. Raises what loading, quantizing and measuring raise."""
    reference = load_reference(task.cell.model)
    now = identity(task.cell, task.settings, model_sha256=reference.source.sha256, family=reference.family)
    workspace = Workspace(task.work, task.cell.model, reference.source.sha256)
    found = read_result(task.cell.result_file(task.results))
    kept = found if found and not differences(found, now, same_code(task.results)) else None
    result = kept or _new(task, now, reference.family)
    if task.cell.method == FLOAT:
        result = _float(task, reference, workspace, result, progress)
    else:
        result = _method(task, reference, workspace, now, result, progress)
    write_result(task.cell.result_file(task.results), result)
    return result


def _new(task: Task, now: Identity, family: Family) -> CellResult:
    return CellResult(
        cell=task.cell,
        family=family,
        measured=datetime.now(UTC).strftime("%Y-%m-%d"),
        model_sha256=now.model_sha256,
        code_sha256=now.code_sha256,
        config=now.config,
        settings=task.settings,
        environment=environment(task.device, task.threads),
    )


def environment(device: str, threads: int) -> dict[str, Any]:
    """Hardware and versions that the figures were measured with."""
    machine = machine_info()
    hardware: dict[str, Any] = {
        "cpu": machine["cpu"],
        "instructions": machine["instructions"],
        "cores": machine["cores"],
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "threads": threads,
        "device": device,
    }
    if device != "cpu":
        import torch

        hardware["gpu"] = torch.cuda.get_device_name()
    return {"hardware": hardware, "python": machine["python"], "versions": {**tool_versions(), **machine["versions"]}}


def _float(task: Task, reference: Reference, workspace: Workspace, result: CellResult, progress: Progress) -> CellResult:
    reference.source.model.to(task.device)
    bench = Bench(reference, task.settings, workspace, task.data, task.device)
    if task.tier == "grid":
        return result.model_copy(update={"grid": measuring.measure_float(bench, progress), "settings": task.settings})
    measure = measuring.measure_rival if task.tier == "rival" else measuring.measure_headline
    figures = measure(bench, bench.float_denoiser, bench.float_folder, progress)
    return result.model_copy(update={task.tier: figures, "settings": task.settings})


def _method(task: Task, reference: Reference, workspace: Workspace, now: Identity, result: CellResult,
            progress: Progress) -> CellResult:  # fmt: skip
    chosen = method(task.cell.method)
    folder = workspace.cell_folder(task.cell, now.sha256)
    made = workspace.cell_folder(task.cell.model_copy(update={"preset": SHARED}), now.sha256) if chosen.widths else folder
    bits = WIDTHS[task.cell.preset] if chosen.widths else None
    cost: Cost = quantizing.quantize_cell(task.cell, chosen, reference, task.settings, made, task.device, progress)
    bench = Bench(reference, task.settings, workspace, task.data, task.device)
    quantized = denoiser(chosen, reference, made, task.device, bits)
    # A cost that was measured with the figures stays with them: another machine that makes the checkpoint again only needs the checkpoint.
    update: dict[str, Any] = {"cost": result.cost or cost, "settings": task.settings}
    if task.tier == "grid":
        update["grid"] = measuring.measure_grid(bench, reference.guided(quantized), folder, progress)
    else:
        pictures, drawn_by = folder, OUTSIDE_RUNTIMES.get(chosen.tool, task.drawn_by)
        if chosen.tool == "dq-deploy" and drawn_by == "openvino":
            pictures = folder / "openvino"
            quantized = integer_denoiser(made, folder, threads=task.threads, bits=bits)
        measure = measuring.measure_rival if task.tier == "rival" else measuring.measure_headline
        figures = measure(bench, reference.guided(quantized), pictures, progress)
        update[task.tier] = figures.model_copy(update={"drawn_by": drawn_by})
    return result.model_copy(update=update)


def main() -> int:
    """Run the task on stdin; progress and errors on stderr, the exit code of the error."""
    import torch

    out = Output()
    try:
        task = Task.model_validate_json(sys.stdin.read())
        torch.set_num_threads(task.threads)
        run(task, out.progress)
    except DqDeployError as error:
        out.error(error)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
