"""Training of one block, which may be the whole network: its loss, the loop, held-out judgement, and when to stop."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..errors import ArtifactError
from ..progress import Advance
from .blocks import Block
from .chain import Chain
from .config import QuantizeConfig
from .optimizers import cosine
from .trained import TrainedParts

EVALUATE_EVERY = 50
_DIVERGED = 10.0  # held-out loss against the start: beyond this the block is stopped


@dataclass(frozen=True)
class BlockRecord:
    """Held-out loss of a block (relative to its target's power, averaged over timesteps) before and after distillation."""

    block: str
    before: float
    after: float
    iterations: int
    note: str = ""


class BlockTrainer:
    """Trains ``parts`` of one block of ``student`` on the values that ``teacher``'s block gives."""

    def __init__(self, block: Block, student: Chain, teacher: Chain, parts: TrainedParts, config: QuantizeConfig) -> None:
        self.block, self.student, self.teacher, self.parts, self.config = block, student, teacher, parts, config
        self.weights = self._loss_weights()

    def _loss_weights(self) -> list[torch.Tensor]:
        """1 / mean square of each output per timestep: each step counts alike, however loud its activations are."""
        rows = len(self.student.timestep.unique_consecutive())
        weights = []
        for name in self.block.outputs:
            every = torch.arange(len(self.student.timestep)).reshape(rows, -1)
            power = torch.stack([self.teacher.read(name, r[:8]).pow(2).mean() for r in every])
            weights.append((1 / power.clamp(min=1e-12)).repeat_interleave(every.shape[1]))
        return weights

    def touched(self, index: torch.Tensor) -> torch.Tensor:
        """Rows of the tables that the samples ``index`` select: bool [T]."""
        timesteps = self.student.timestep.unique_consecutive()
        return torch.isin(timesteps, self.student.timestep[index]).to(self.student.device)

    def loss(self, index: torch.Tensor) -> torch.Tensor:
        """Squared error of the samples ``index`` [B], each relative to its target's power, averaged."""
        outputs = self.block.module(*self.student.inputs(self.block, index))
        total = torch.zeros((), device=self.student.device)
        for name, weight, output in zip(self.block.outputs, self.weights, outputs, strict=True):
            error = (output.float() - self.teacher.read(name, index)).pow(2).flatten(1).mean(dim=1)  # [B]
            total = total + (error * weight[index.to(weight.device)]).mean()
        return total / len(self.block.outputs)

    @torch.no_grad()
    def evaluate(self, index: torch.Tensor) -> float:
        """Loss of the samples ``index``, in fp32 whatever the training's precision."""
        parts = index.split(self.config.batch_size)
        return sum(float(self.loss(part)) * len(part) for part in parts) / len(index)

    def train(self, train: torch.Tensor, held_out: torch.Tensor, advance: Advance) -> BlockRecord:
        """Train on the samples ``train`` and end in the state that had the least loss over ``held_out``.

        NaN or Inf in the loss, a held-out loss ten times the first one, or ``patience`` evaluations without a better one end the training
        early. Raises ArtifactError where the loss is NaN or Inf before any training.
        """
        before = self.evaluate(held_out)
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
        return BlockRecord(self.block.name, before, judge.best, done, judge.note)


class Steps:
    """Optimizer steps of a block, one after the other."""

    def __init__(self, trainer: BlockTrainer, train: torch.Tensor) -> None:
        self.trainer, self.train, config = trainer, train, trainer.config
        self.adam, self.tables = trainer.parts.adam(config), trainer.parts.table_adam(config)
        self.rates = [group["lr"] for group in self.adam.param_groups] if self.adam else []
        self.done = 0
        # A generator of the block's own: a run that resumes here draws the batches of one that never stopped.
        self.generator = torch.Generator().manual_seed(config.seed * 1_000_003 + trainer.block.index)
        self.batch = min(config.batch_size, len(train))

    def take(self) -> float:
        """One step; returns the loss before it. Where that is NaN or Inf, nothing is moved."""
        index = self.train[torch.randint(len(self.train), (self.batch,), generator=self.generator)]
        device = self.trainer.student.device
        with torch.enable_grad(), torch.autocast(device.type, torch.bfloat16, enabled=self.trainer.config.precision == "bf16"):
            loss = self.trainer.loss(index)
        value = loss.item()
        if not math.isfinite(value):
            return value
        loss.backward()
        self._move(index)
        return value

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
