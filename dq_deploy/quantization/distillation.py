"""Block-wise knowledge distillation: each block of the quantized chain learns the output of the float chain's block.

DilateQuant (arXiv 2409.14307) §4.3: for block k, minimise ‖float chain's output − quantized chain's output‖², the quantized block being
fed by the quantized chain, over all timesteps mixed; activation tables, weight scales and weights are trained together.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.fx import GraphModule

from ..errors import ArtifactError
from ..progress import Progress, silent
from .blocks import Block, split_blocks
from .cache import ValueCache
from .calibration import Trajectories
from .config import QuantizeConfig
from .layers import ActivationQuantizer, QuantizedWeight

_EVALUATE_EVERY = 50
_LR_ZERO_POINT = 50.0  # zero-points move in units of codes, log-scales in units of e: their step is this much longer
_DIVERGED = 10.0  # held-out loss against the start: beyond this the block is stopped


@dataclass(frozen=True)
class BlockRecord:
    """Held-out loss of a block (relative to its target's power, averaged over timesteps) before and after distillation."""

    block: str
    before: float
    after: float
    iterations: int
    note: str = ""


class Chain:
    """A graph run block by block, the values between the blocks on disk."""

    def __init__(self, graph: GraphModule, folder: Path, timestep: torch.Tensor, batch_size: int) -> None:
        self.blocks = split_blocks(graph)
        self.values = ValueCache(folder)
        self.timestep, self.batch_size = timestep, batch_size

    def inputs(self, block: Block, index: torch.Tensor) -> list[torch.Tensor]:
        """The block's arguments for the samples ``index``."""
        return [self.timestep[index], *(self.values.read(name, index) for name in block.inputs)]

    @torch.no_grad()
    def run(self, block: Block) -> None:
        """Run one block over all samples and store its outputs."""
        total = len(self.timestep)
        for start in range(0, total, self.batch_size):
            index = torch.arange(start, min(start + self.batch_size, total))
            for name, value in zip(block.outputs, block.module(*self.inputs(block, index)), strict=True):
                self.values.write(name, start, value, total)

    def forget(self, block: Block) -> None:
        """Drop the values that no later block reads."""
        needed = {name for later in self.blocks[block.index + 1 :] for name in later.inputs}
        for name in {*block.inputs, *block.outputs}:
            if name not in needed and name in self.values:
                self.values.drop(name)


def distill(float_graph: GraphModule, quantized: GraphModule, data: Trajectories, config: QuantizeConfig, *,
            scratch: Path | None = None, progress: Progress = silent) -> list[BlockRecord]:  # fmt: skip
    """Train every block of ``quantized`` in place, one after the other.

    The last eighth of the seeds (at least one) is held out: a block keeps the state with the least held-out loss, so it never ends worse
    than it began. Raises ArtifactError where the float chain has NaN or Inf.
    """
    folder = Path(tempfile.mkdtemp(prefix="dq-deploy-blocks-", dir=scratch))
    try:
        return list(_distill(float_graph, quantized, data, config, folder, progress))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _distill(float_graph: GraphModule, quantized: GraphModule, data: Trajectories, config: QuantizeConfig, folder: Path,
             progress: Progress) -> Iterator[BlockRecord]:  # fmt: skip
    samples, timestep, conditions = data.flat(slice(None))
    teacher = Chain(float_graph, folder / "float", timestep, config.batch_size)
    student = Chain(quantized, folder / "quantized", timestep, config.batch_size)
    first = next(str(n.target) for n in float_graph.graph.nodes if n.op == "placeholder")
    for chain in (teacher, student):
        for name, value in {first: samples, **conditions}.items():
            chain.values.write(name, 0, value, len(value))
    train, held_out = split_samples(len(data.timesteps), data.samples.shape[1])
    trained: set[str] = set()
    trainable = sum(bool(block.layers) for block in student.blocks)
    with progress("distillation", trainable * max(config.iterations, 1)) as advance:
        for float_block, block in zip(teacher.blocks, student.blocks, strict=True):
            teacher.run(float_block)
            if block.layers:
                trainer = _BlockTrainer(block, student, teacher, trained, config)
                yield trainer.train(train, held_out, advance)
                trained.update(block.quantizers)
            student.run(block)
            teacher.forget(float_block)
            student.forget(block)


def split_samples(rows: int, seeds: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices into the flat samples (timesteps slowest) of the training seeds and of the held-out ones."""
    index = torch.arange(rows * seeds).reshape(rows, seeds)
    held = max(1, seeds // 8)
    return index[:, :-held].flatten(), index[:, -held:].flatten()


class _BlockTrainer:
    """One block's parameters, loss and optimizers."""

    def __init__(self, block: Block, student: Chain, teacher: Chain, trained: set[str], config: QuantizeConfig) -> None:
        self.block, self.student, self.teacher, self.config = block, student, teacher, config
        modules = dict(block.module.named_modules())
        self.layers = [m for m in modules.values() if isinstance(m, QuantizedWeight)]
        called = {"quantizers." + name.replace(".", "/"): name for name in block.quantizers}
        # A quantizer shared with an earlier block was trained there, and what that block learned depends on it.
        self.quantizers = [modules[t] for t, name in called.items() if name not in trained and not modules[t].fixed]
        self.weights = self._loss_weights()

    def _loss_weights(self) -> list[torch.Tensor]:
        """1 / mean square of each output per timestep: each step counts alike, however loud its activations are."""
        rows = len(self.student.timestep.unique_consecutive())
        weights = []
        for name in self.block.outputs:
            every = torch.arange(len(self.student.timestep)).reshape(rows, -1)
            power = torch.stack([self.teacher.values.read(name, r[:8]).pow(2).mean() for r in every])
            weights.append((1 / power.clamp(min=1e-12)).repeat_interleave(every.shape[1]))
        return weights

    def loss(self, index: torch.Tensor) -> torch.Tensor:
        """Squared error of the samples ``index`` [B], each relative to its target's power, averaged."""
        outputs = self.block.module(*self.student.inputs(self.block, index))
        total = torch.zeros(())
        for name, weight, output in zip(self.block.outputs, self.weights, outputs, strict=True):
            target = self.teacher.values.read(name, index)
            if not torch.isfinite(target).all():
                raise ArtifactError(f"the float model's '{name}' in block {self.block.name} has NaN or Inf")
            total = total + ((output - target).pow(2).flatten(1).mean(dim=1) * weight[index]).mean()
        return total / len(self.block.outputs)

    @torch.no_grad()
    def evaluate(self, index: torch.Tensor) -> float:
        """Held-out loss."""
        parts = index.split(self.config.batch_size)
        return sum(float(self.loss(part)) * len(part) for part in parts) / len(index)

    def train(self, train: torch.Tensor, held_out: torch.Tensor, advance: Any) -> BlockRecord:
        """Train and keep the best state seen."""
        config, note = self.config, ""
        before = best = self.evaluate(held_out)
        if not math.isfinite(before):
            raise ArtifactError(f"block {self.block.name}: the loss is {before} before any training")
        state = self._snapshot()
        optimizers, schedulers = self._optimizers()
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + self.block.index)
        for step in range(1, config.iterations + 1):
            index = train[torch.randint(len(train), (min(config.batch_size, len(train)),), generator=generator)]
            with torch.enable_grad():
                loss = self.loss(index)
                loss.backward()
            for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
                optimizer.step()
                optimizer.zero_grad()
                scheduler.step()
            advance(1, self.block.name)
            if step % _EVALUATE_EVERY == 0 or step == config.iterations:
                now = self.evaluate(held_out)
                if now < best:
                    best, state = now, self._snapshot()
                elif not now < _DIVERGED * before:
                    note = f"diverged at iteration {step} (loss {now:.3g}); kept the best state"
                    advance(config.iterations - step, self.block.name)
                    break
        self._restore(state)
        return BlockRecord(self.block.name, before, best, step if config.iterations else 0, note)

    def _optimizers(self) -> tuple[list[torch.optim.Optimizer], list[Any]]:
        """Adam for dense parameters; SparseAdam for the tables, which leaves the rows that a batch does not touch alone."""
        config = self.config
        dense: list[dict[str, Any]] = []
        for layer in self.layers:
            # In units of the layer's quantization step, so that one rate fits every layer and every bit-width.
            step = float(layer.log_scale.detach().exp().mean())
            dense.append({"params": [layer.weight], "lr": config.lr_weight * step})
            dense.append({"params": [layer.log_scale], "lr": config.lr_scale})
            if layer.bias is not None:
                dense.append({"params": [layer.bias], "lr": config.lr_weight * float(layer.bias.detach().abs().mean() + step)})
        sparse = [{"params": [q.log_scale], "lr": config.lr_scale} for q in self.quantizers]
        sparse += [{"params": [q.zero_point], "lr": config.lr_scale * _LR_ZERO_POINT} for q in self.quantizers if not q.symmetric]
        optimizers: list[torch.optim.Optimizer] = [torch.optim.Adam(dense)] if dense else []
        optimizers += [torch.optim.SparseAdam(sparse)] if sparse else []
        steps = max(config.iterations, 1)
        return optimizers, [torch.optim.lr_scheduler.CosineAnnealingLR(o, steps) for o in optimizers]

    def _modules(self) -> list[QuantizedWeight | ActivationQuantizer]:
        return [*self.layers, *self.quantizers]

    def _snapshot(self) -> list[dict[str, torch.Tensor]]:
        return [{k: v.detach().clone() for k, v in m.named_parameters()} for m in self._modules()]

    @torch.no_grad()
    def _restore(self, state: list[dict[str, torch.Tensor]]) -> None:
        for module, saved in zip(self._modules(), state, strict=True):
            for name, parameter in module.named_parameters():
                parameter.copy_(saved[name])
