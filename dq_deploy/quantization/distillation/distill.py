"""Block-wise knowledge distillation: each block of the quantized chain learns the output of the float chain's block.

DilateQuant (arXiv 2409.14307) §4.3: for block k, minimise ‖float chain's output − quantized chain's output‖², the quantized block being
fed by the quantized chain, over all timesteps mixed; activation tables, weight scales and weights are trained together. End-to-end
distillation, the paper's QAT row, is the same with one block that spans the network.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path

import torch
from torch.fx import GraphModule

from ...artifacts.details import BlockLoss
from ...progress import Progress, silent
from ..calibration.trajectories import Trajectories
from ..choices import Distillation
from ..config import QuantizeConfig
from ..graph.blocks import Block, split_blocks, whole_network
from ..running.processes import Processes
from ..running.work_folder import Stages
from ..widths import at_width
from .block_trainer import BlockTrainer, HeldSamples
from .cache import ValueCache
from .chain import Chain
from .trained import TrainedParts, selected


def distill(float_graph: GraphModule, quantized: GraphModule, data: Trajectories, config: QuantizeConfig, *,
            work: Stages | None = None, scratch: Path | None = None, processes: Processes | None = None,
            progress: Progress = silent) -> list[BlockLoss]:  # fmt: skip
    """Train every block of ``quantized`` in place, one after the other.

    The last eighth of the seeds (at least one) is held out: a block keeps the state with the least held-out loss, so it never ends worse
    than it began. Blocks without a layer that ``config.train`` matches are run and not trained, and have no record.
    Blocks that ``work`` holds are not trained again, and each is saved there when it is finished. Values between blocks lie in ``work``
    too, or else in ``scratch`` (by default the system's folder for temporary files).
    With several ``processes`` each has the values of its share of the samples, and computes its share of every batch.
    Raises ArtifactError where the float chain has NaN or Inf, UsageError where a pattern of ``config.train`` matches nothing.
    """
    folder = Path(tempfile.mkdtemp(prefix="dq-deploy-blocks-", dir=work.scratch if work else scratch))
    try:
        return list(_distill(float_graph, quantized, data, config, folder, work, processes or Processes(), progress))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _distill(float_graph: GraphModule, quantized: GraphModule, data: Trajectories, config: QuantizeConfig, folder: Path,
             work: Stages | None, processes: Processes, progress: Progress) -> Iterator[BlockLoss]:  # fmt: skip
    layers, quantizers = selected(quantized, config.train)
    quantized.requires_grad_(False)  # a block turns on what it trains
    flat = [sized.flat(slice(None)) for sized in data.by_size]
    timestep = torch.cat([of_size for _, of_size, _ in flat])
    whole, held_samples = config.distillation is Distillation.END_TO_END, HeldSamples(timestep, processes)
    device = next(quantized.buffers()).device
    held = timestep[held_samples.held]
    ends = list(accumulate(len(of_size) for _, of_size, _ in flat)) if data.others else []  # then one process has all of them

    def chain_of(blocks: Sequence[Block], name: str) -> Chain:
        return Chain(blocks, ValueCache(folder / name), held, config.batch_size, device, ends)

    teacher, student = (
        chain_of([whole_network(graph)] if whole else split_blocks(graph), name)
        for graph, name in ((float_graph, "float"), (quantized, "quantized"))
    )
    narrower: dict[int | None, Chain] = {bits: chain_of(student.blocks, f"quantized-{bits}") for bits in config.matryoshka[1:]}
    students: dict[int | None, Chain] = {None: student, **narrower}
    first = next(str(n.target) for n in float_graph.graph.nodes if n.op == "placeholder")
    given = [{first: samples, **conditions} for samples, _, conditions in flat]
    for chain in (teacher, *students.values()):
        for name in given[0]:
            chain.fill(name, [values[name] if ends else values[name][held_samples.held] for values in given])
    train, held_out = _split(data)
    parts = {}
    for block in student.blocks:
        parts[block] = TrainedParts.of(block, layers, quantizers)
        # A quantizer that an earlier block reads too is settled there: what that block learned depends on it.
        quantizers -= set(block.quantizers)
    with progress("distillation", sum(map(bool, parts.values())) * max(config.iterations, 1)) as advance:
        for float_block, block in zip(teacher.blocks, student.blocks, strict=True):
            teacher.run(float_block, check="the float model")
            if parts[block]:
                saved = work.load(_stage(block)) if work else None
                if saved:
                    parts[block].restore(saved.tensors)
                    record = BlockLoss.model_validate(saved.record)
                    advance(config.iterations, block.name)
                else:
                    trainer = BlockTrainer(block, student, teacher, parts[block], config, held_samples, narrower)
                    record = trainer.train(train, held_out, advance)
                    if work:
                        work.save(_stage(block), parts[block].state(), record.model_dump())
                yield record
            for width, chain in students.items():
                if not whole:
                    with at_width(block.module, width):
                        chain.run(block)
                chain.forget(block)
            teacher.forget(float_block)


def _stage(block: Block) -> str:
    """Name of a block's stage in the work folder."""
    return f"block-{block.index:04d}"


def _split(data: Trajectories) -> tuple[torch.Tensor, torch.Tensor]:
    """``split_samples`` of every size, one after the other."""
    parts, first = [], 0
    for sized in data.by_size:
        rows, samples = sized.samples.shape[:2]
        parts.append([first + index for index in split_samples(rows, samples, sized.per_seed)])
        first += rows * samples
    train, held_out = (torch.cat(of_sizes) for of_sizes in zip(*parts, strict=True))
    return train, held_out


def split_samples(rows: int, samples: int, per_seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices [n] into the flat samples (timesteps slowest, a seed's ``per_seed`` together) of the training and the held-out seeds."""
    index = torch.arange(rows * samples).reshape(rows, samples)
    held = max(1, samples // per_seed // 8) * per_seed
    return index[:, :-held].flatten(), index[:, -held:].flatten()
