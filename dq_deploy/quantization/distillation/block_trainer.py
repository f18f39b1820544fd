"""Training of one block, which may be the whole network: its loss, the loop, held-out judgement, and when to stop."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean

import torch

from ...artifacts.details import BlockLoss
from ...errors import ArtifactError
from ...progress import Advance
from .. import numerics
from ..config import QuantizeConfig
from ..graph.blocks import Block
from ..running.processes import Processes, reduce_gradients
from ..widths import at_width
from .chain import Chain, by_sample
from .optimizers import cosine
from .trained import TrainedParts

EVALUATE_EVERY = 50
_DIVERGED = 10.0  # held-out loss against the start: beyond this the block is stopped


@dataclass(frozen=True)
class HeldSamples:
    """Which of S samples at ``timestep`` [S] this process holds: of each batch it computes what it holds."""

    timestep: torch.Tensor
    processes: Processes = field(default_factory=Processes)

    @property
    def held(self) -> torch.Tensor:
        """The samples held, in order: int64 [held]."""
        return torch.arange(self.processes.rank, len(self.timestep), self.processes.count)

    def own(self, index: torch.Tensor) -> torch.Tensor:
        """Those of the samples ``index`` [n] that are held."""
        return index[index % self.processes.count == self.processes.rank]

    def place(self, own: torch.Tensor) -> torch.Tensor:
        """Positions of held samples ``own`` [n] among those held: [n]."""
        return own // self.processes.count


class BlockTrainer:
    """Trains ``parts`` of a block of ``student`` on the values of ``teacher``; all chains have the samples of ``held_samples``.

    ``narrower`` are the student's chains with its weights sliced to fewer bits, by these: the block is trained for all widths.
    """

    def __init__(self, block: Block, student: Chain, teacher: Chain, parts: TrainedParts, config: QuantizeConfig,
                 held_samples: HeldSamples | None = None, narrower: Mapping[int | None, Chain] | None = None) -> None:  # fmt: skip
        self.block, self.student, self.teacher, self.parts, self.config = block, student, teacher, parts, config
        self.students: dict[int | None, Chain] = {None: student, **(narrower or {})}
        self.shares = dict.fromkeys(self.students, 1.0)
        self.held_samples = held_samples or HeldSamples(student.timestep)
        self.timesteps = self._of_size(0).unique_consecutive()
        self.table_row = numerics.select_table_rows(self.held_samples.timestep, numerics.midpoints(self.timesteps))
        self.weights = [self._loss_weight(name) for name in block.outputs]

    @torch.no_grad()
    def _loss_weight(self, name: str) -> torch.Tensor:
        """1 / mean square of an output, for each sample that of its timestep: [S]. Each step counts alike, however loud it is."""
        return torch.cat([self._loss_weight_of(name, size) for size in range(len(self.student.ends))])

    def _of_size(self, size: int) -> torch.Tensor:
        """Timesteps of the samples of one size."""
        if len(self.student.ends) == 1:  # of several processes a chain has a part of them
            return self.held_samples.timestep
        return self.held_samples.timestep[([0, *self.student.ends])[size] : self.student.ends[size]]

    def _loss_weight_of(self, name: str, size: int) -> torch.Tensor:
        """The same of the samples of one size."""
        timestep, first = self._of_size(size), ([0, *self.student.ends])[size]
        table_rows = len(timestep.unique_consecutive())
        every = torch.arange(first, first + len(timestep)).reshape(table_rows, -1)
        sums = torch.zeros(table_rows, 2)  # of squares, and of samples
        for row, index in enumerate(every[:, :8]):
            own = self.held_samples.own(index)
            if len(own):
                squares = self.teacher.read(name, self.held_samples.place(own)).pow(2).flatten(1).mean(dim=1)
                sums[row] = torch.tensor([float(squares.sum()), len(own)])
        sums = self.held_samples.processes.sum(sums)
        return (sums[:, 1] / sums[:, 0].clamp(min=1e-12)).repeat_interleave(every.shape[1])

    def touched(self, index: torch.Tensor) -> torch.Tensor:
        """Rows of the tables that the samples ``index`` select: bool [T]."""
        found = torch.zeros(len(self.timesteps), dtype=torch.bool)
        found[self.table_row[index]] = True
        return found.to(self.student.device)

    def loss(self, index: torch.Tensor, width: int | None = None) -> torch.Tensor:
        """Squared error of the samples ``index`` [B] of one size, each relative to its target's power, averaged; of processes, one's part.

        ``width``: bits that weights are sliced to, by what those of all bits lost before training over what these did.
        """
        own = self.held_samples.own(index)
        total = torch.zeros((), device=self.student.device)
        if not len(own):
            return total
        place = self.held_samples.place(own)
        with at_width(self.block.module, width):
            outputs = self.block.module(*self.students[width].inputs(self.block, place))
        for name, weight, output in zip(self.block.outputs, self.weights, outputs, strict=True):
            error = (by_sample(output.float(), len(own)) - self.teacher.read(name, place)).pow(2).flatten(1).mean(dim=1)  # [B]
            total = total + (error * weight[own].to(total.device)).sum()
        return total * (self.shares[width] / (len(index) * len(self.block.outputs)))

    @torch.no_grad()
    def evaluate(self, index: torch.Tensor) -> float:
        """Mean loss of all widths of the samples ``index`` [n], of all processes together, in fp32 whatever the training's precision."""
        return fmean(self._evaluate(index, width) for width in self.students)

    def _evaluate(self, index: torch.Tensor, width: int | None) -> float:
        parts = self.student.batches(index) if len(self.student.ends) > 1 else index.split(self.config.batch_size)
        total = sum(float(self.loss(part, width)) * len(part) for part in parts) / len(index)
        return float(self.held_samples.processes.sum(torch.tensor(total, dtype=torch.float64)))

    @torch.no_grad()
    def _balance(self, index: torch.Tensor) -> float:
        """Let every width's loss over the samples ``index`` count like that of all bits; what that is."""
        whole = self._evaluate(index, None)
        for width in self.students:
            lost = self._evaluate(index, width)
            self.shares[width] = whole / lost if lost > 0 else 0.0
        return whole

    def train(self, train: torch.Tensor, held_out: torch.Tensor, advance: Advance) -> BlockLoss:
        """Train on the samples ``train`` [n] and end in the state that had the least loss over ``held_out`` [m].

        NaN or Inf in the loss, a held-out loss ten times the first one, or ``patience`` evaluations without a better one end the training
        early. Raises ArtifactError where the loss is NaN or Inf before any training.
        """
        before = self._balance(held_out)
        if not math.isfinite(before):
            raise ArtifactError(f"block {self.block.name}: the loss is {before} before any training")
        judge = _Judge(before, self.parts, self.config.patience)
        done, last = 0, self.config.iterations if before > 0 else 0
        with self.parts.training():
            steps = Steps(self, train)
            while done < last and not judge.note:
                loss = steps.take()
                done += 1
                if not math.isfinite(loss):
                    judge.note = f"the loss was {loss} at iteration {done}; kept the best state"
                elif done % EVALUATE_EVERY == 0 or done == last:
                    judge.judge(self.evaluate(held_out), done)
                advance(1, self.block.name)
        self.parts.restore(judge.state)
        advance(self.config.iterations - done, self.block.name)
        return BlockLoss(block=self.block.name, before=before, after=judge.best, iterations=done, note=judge.note)


class Steps:
    """Optimizer steps of a block, one after the other."""

    def __init__(self, trainer: BlockTrainer, train: torch.Tensor) -> None:
        self.trainer, config = trainer, trainer.config
        ends = trainer.student.ends
        self.train = [train] if len(ends) == 1 else [
            train[(train >= start) & (train < end)] for start, end in zip([0, *ends], ends, strict=False)
        ]  # fmt: skip
        self.adam, self.tables = trainer.parts.adam(config), trainer.parts.table_adam(config)
        self.rates = [group["lr"] for group in self.adam.param_groups] if self.adam else []
        self.done = 0
        # A generator of the block's own: a run that resumes here draws the batches of one that never stopped.
        self.generator = torch.Generator().manual_seed(config.seed * 1_000_003 + trainer.block.index)
        self.batch = min(config.batch_size, len(train))

    def take(self) -> float:
        """One step; returns the loss before it. Where that is NaN or Inf, nothing is moved."""
        train = self.train[0] if len(self.train) == 1 else self._train_of_a_size()
        index = train[torch.randint(len(train), (min(self.batch, len(train)),), generator=self.generator)]
        device = self.trainer.student.device
        total = torch.zeros((), device=device)
        for width in self.trainer.students:
            with torch.enable_grad(), torch.autocast(device.type, torch.bfloat16, enabled=self.trainer.config.precision == "bf16"):
                loss = self.trainer.loss(index, width)
            if loss.requires_grad:  # not where this process holds none of the batch
                loss.backward()
            total += loss.detach()
        value = reduce_gradients(self.trainer.held_samples.processes, self.trainer.parts.parameters(), total).item()
        if math.isfinite(value):
            self._move(index)
        return value

    def _train_of_a_size(self) -> torch.Tensor:
        """The samples of a size, each size as often as its share of them."""
        sizes = torch.tensor([len(train) for train in self.train], dtype=torch.float32)
        return self.train[int(torch.multinomial(sizes, 1, generator=self.generator))]

    def _move(self, index: torch.Tensor) -> None:
        """Take the optimizers' step with the gradients of the samples ``index``."""
        factor = cosine(self.done, self.trainer.config.iterations)
        self.done += 1
        if self.adam:
            for group, rate in zip(self.adam.param_groups, self.rates, strict=True):
                group["lr"] = rate * factor
            self.adam.step()
            self.adam.zero_grad()
        self.tables.step(self.trainer.touched(index), factor)
        self.tables.zero_grad()


class _Judge:
    """Remembers the best state by held-out loss, and says when to stop."""

    def __init__(self, before: float, parts: TrainedParts, patience: int) -> None:
        self.before, self.parts, self.patience = before, parts, patience
        self.best, self.state = before, parts.state()
        self.idle, self.note = 0, ""

    def judge(self, loss: float, step: int) -> None:
        """Take note of the held-out loss after ``step`` iterations; ``note`` is set when the training should end."""
        state = self.parts.state() if loss < self.best else {}
        if not math.isfinite(loss) or any(not torch.isfinite(tensor).all() for tensor in state.values()):
            self.note = f"NaN or Inf at iteration {step}; kept the best state"
        elif state:
            self.best, self.state, self.idle = loss, state, 0
        elif loss >= _DIVERGED * self.before:
            self.note = f"diverged at iteration {step} (loss {loss:.3g}); kept the best state"
        else:
            self.idle += 1
            if self.patience and self.idle >= self.patience:
                self.note = f"stopped at iteration {step}: no better held-out loss in {self.idle} evaluation(s)"
