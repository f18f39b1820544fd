"""Several processes that quantize one model together, started by ``accelerate launch`` or torchrun; one alone needs nothing of this.

Every process takes the same steps. What they compute in parallel is summed or joined, so all of them hold the same network at all times,
and only the main one reads and writes the work folder and the output.
"""

from __future__ import annotations

import atexit
import json
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch

from ...errors import DqDeployError, EnvironmentProblem
from ...launched import launched_processes
from .work_folder import Stage, WorkFolder

_T = TypeVar("_T")
_TIMEOUT = timedelta(days=7)  # the others wait for the main process, however long its part takes


class Processes:
    """One process alone, and what several have in common: ``rank`` of ``count``; rank 0 is the main one."""

    rank, count = 0, 1
    device: torch.device | None = None  # of this process, where a launcher chose it

    @property
    def is_main(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def part(self, size: int) -> slice:
        """This process's part of ``size`` things that stay together, such as seeds."""
        return slice(self.rank * size // self.count, (self.rank + 1) * size // self.count)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of every process's tensor of any shape, the same on all."""
        return tensor

    def spread(self, tensor: torch.Tensor, source: int = 0) -> torch.Tensor:  # noqa: ARG002  one process has it already
        """The tensor, of any shape, that process ``source`` has, on all; the others give one that is alike."""
        return tensor

    def spread_json(self, value: Any) -> Any:
        """The main process's JSON value, on all."""
        return value

    def joined(self, tensor: torch.Tensor, dim: int, total: int, each: int = 1) -> torch.Tensor:
        """Every process's ``part`` [..., n·each, ...] of ``total`` things along dimension ``dim``, joined in order, on all."""
        shape, parts = list(tensor.shape), []
        for rank in range(self.count):
            shape[dim] = ((rank + 1) * total // self.count - rank * total // self.count) * each
            own = rank == self.rank
            parts.append(self.spread(tensor.contiguous() if own else torch.empty(shape, dtype=tensor.dtype), rank))
        return torch.cat(parts, dim)

    def on_main(self, action: Callable[[], _T]) -> _T | None:
        """Let the main process do something; None on the others. What it raises for the user to fix, all raise."""
        result, problem = None, None
        if self.is_main:
            try:
                result = action()
            except DqDeployError as error:
                if self.count == 1:
                    raise
                problem = {"kind": type(error).__name__, "message": error.message, "hint": error.hint}
        problem = self.spread_json(problem)
        if problem:
            kinds = {kind.__name__: kind for kind in DqDeployError.__subclasses__()}
            raise kinds[problem["kind"]](problem["message"], problem["hint"])
        return result


class LaunchedProcesses(Processes):
    """One of the processes that ``accelerate launch`` has started."""

    def __init__(self, *, cpu: bool) -> None:
        try:
            from accelerate import PartialState
        except ModuleNotFoundError as error:
            raise EnvironmentProblem("several processes need the package 'accelerate'", "pip install accelerate") from error
        found = torch.distributed.is_initialized()  # by the program that calls us, which may need it after us
        state = PartialState(cpu=cpu, timeout=_TIMEOUT)
        if not found:
            atexit.register(_leave_group)
        self.rank, self.count, self.device = state.process_index, state.num_processes, state.device

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """See ``Processes``."""
        from accelerate.utils import reduce

        result: torch.Tensor = reduce(tensor.to(self.device), "sum")
        return result.to(tensor.device)

    def spread(self, tensor: torch.Tensor, source: int = 0) -> torch.Tensor:
        """See ``Processes``."""
        from accelerate.utils import broadcast

        result: torch.Tensor = broadcast(tensor.to(self.device), from_process=source)
        return result.to(tensor.device)

    def spread_json(self, value: Any) -> Any:
        """See ``Processes``."""
        text = torch.tensor(list(json.dumps(value).encode()) if self.is_main else [], dtype=torch.uint8)
        size = self.spread(torch.tensor(len(text)))
        text = self.spread(text if self.is_main else torch.empty(int(size), dtype=torch.uint8))
        return json.loads(bytes(text.tolist()))


def _leave_group() -> None:
    """Stop the group's threads: a process that ends while they run is sometimes aborted, and its exit code with it."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def started_processes(*, cpu: bool) -> Processes:
    """The processes that this one belongs to."""
    return LaunchedProcesses(cpu=cpu) if launched_processes() > 1 else Processes()


class SharedWork:
    """The main process's work folder as every process sees it."""

    def __init__(self, work: WorkFolder | None, processes: Processes) -> None:
        self.work, self.processes = work, processes

    @property
    def scratch(self) -> Path | None:
        """The main process's scratch folder; the others may be on other machines."""
        return self.work.scratch if self.work else None

    def load(self, name: str) -> Stage | None:
        """A finished stage, on every process; None if it is not finished."""
        stage = self.processes.on_main(lambda: self.work.load(name) if self.work else None)
        return self._spread(stage)

    def save(self, name: str, tensors: dict[str, torch.Tensor], record: Any) -> None:
        """Record a stage, with tensors of any shape, as finished; the main process does."""
        if self.work:
            self.work.save(name, tensors, record)

    def made(self, name: str, make: Callable[[], Stage]) -> Stage:
        """A stage, from the folder or else made by the main process alone, on every process."""
        stage = self.load(name)
        if stage is None:
            made = self.processes.on_main(make)
            if made is not None:
                self.save(name, made.tensors, made.record)
            stage = self._spread(made)
        assert stage is not None
        return stage

    def _spread(self, stage: Stage | None) -> Stage | None:
        if self.processes.count == 1:
            return stage
        kinds = {k: (list(t.shape), str(t.dtype).removeprefix("torch.")) for k, t in stage.tensors.items()} if stage else None
        kinds, record = self.processes.spread_json([kinds, stage.record if stage else None])
        if kinds is None:
            return None
        own = stage.tensors if stage else {k: torch.empty(shape, dtype=getattr(torch, dtype)) for k, (shape, dtype) in kinds.items()}
        return Stage({k: self.processes.spread(own[k].contiguous()) for k in kinds}, record)


def reduce_gradients(processes: Processes, parameters: Sequence[torch.nn.Parameter], loss: torch.Tensor) -> torch.Tensor:
    """Sum the processes' gradients, in place, and their losses []; every process gives its part of one batch's mean.

    One message for everything: a block has dozens of small parameters.
    """
    if processes.count == 1:
        return loss
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    flat = processes.sum(torch.cat([loss.reshape(1), *(g.reshape(-1) for g in gradients)]))
    for parameter, part in zip(parameters, flat[1:].split([g.numel() for g in gradients]), strict=True):
        parameter.grad = part.reshape(parameter.shape).clone()
    return flat[0]
