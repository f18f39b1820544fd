"""A graph run block by block, the values between the blocks on disk."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence

import torch

from ...errors import ArtifactError, UsageError
from .. import numerics
from ..graph.blocks import Block
from .cache import Values


def by_sample(value: torch.Tensor, samples: int) -> torch.Tensor:
    """A value [samples · k, ...] of k frames or windows a sample as [samples, k, ...]; with k = 1 it stays as it is."""
    return value if len(value) == samples else value.unflatten(0, (samples, -1))


class Chain:
    """Blocks of one graph and the values that they have left behind for S samples at ``timestep`` [S].

    ``ends`` are where the samples of each size end; samples of one size lie together, and are read and run together.
    """

    def __init__(self, blocks: Sequence[Block], values: Values, timestep: torch.Tensor, batch_size: int,
                 device: torch.device | str = "cpu", ends: Sequence[int] = ()) -> None:  # fmt: skip
        self.blocks, self.values = list(blocks), values
        self.timestep, self.batch_size, self.device = timestep, batch_size, torch.device(device)
        self.ends = list(ends) or [len(timestep)]
        self.grouped: set[str] = set()  # values that have several entries a sample

    def fill(self, name: str, values: Sequence[torch.Tensor]) -> None:
        """Store an input of the graph: its samples of each size [n, ...]."""
        for size, value in enumerate(values):
            self.values.write(_of_size(name, size), 0, value)

    def batches(self, index: torch.Tensor) -> Iterator[torch.Tensor]:
        """The samples ``index`` [n] in batches, each of one size."""
        for start, end in zip([0, *self.ends], self.ends, strict=False):
            yield from (
                index[(index >= start) & (index < end)].split(self.batch_size) if len(self.ends) > 1 else index.split(self.batch_size)
            )

    def inputs(self, block: Block, index: torch.Tensor) -> list[torch.Tensor]:
        """The block's arguments [n, ...] for the samples ``index`` [n], on the chain's device."""
        return [self.timestep[index].to(self.device), *(self.together(name, index) for name in block.inputs)]

    def together(self, name: str, index: torch.Tensor) -> torch.Tensor:
        """A value [n, ...] of the samples ``index`` [n], on the chain's device, or [n·k, ...] of k frames or windows a sample."""
        value = self.read(name, index)
        return value.flatten(0, 1) if name in self.grouped else value

    def read(self, name: str, index: torch.Tensor) -> torch.Tensor:
        """A value [n, ...] of the samples ``index`` [n] of one size, on the chain's device, as ``by_sample`` gives it."""
        size, start = self._size(index)
        return self.values.read(_of_size(name, size), index - start).to(self.device)

    def _size(self, index: torch.Tensor) -> tuple[int, int]:
        """Which size the samples have, and the first of those that have it."""
        size = bisect_right(self.ends[:-1], int(index[0])) if len(index) else 0
        return size, ([0, *self.ends])[size]

    @torch.no_grad()
    def run(self, block: Block, *, check: str = "") -> None:
        """Run one block over all samples and store its outputs.

        ``check`` names the model in the ArtifactError that NaN or Inf in an output raises; empty means no check.
        Raises UsageError where an output has several entries a sample, and they do not lie together.
        """
        for index in self.batches(torch.arange(len(self.timestep))):
            outputs = dict(zip(block.outputs, block.module(*self.inputs(block, index)), strict=True))
            if not index[0]:
                self._group(block, outputs, len(index))
            size, start = self._size(index)
            for name, value in outputs.items():
                if check:
                    self._check(check, block, name, value, index)
                self.values.write(_of_size(name, size), int(index[0]) - start, by_sample(value, len(index)))

    def _group(self, block: Block, outputs: dict[str, torch.Tensor], samples: int) -> None:
        """Remember which outputs of the first ``samples`` have several entries a sample.

        They are stored by sample, so those of one must lie together: alone it gives the first of them, but for a code that fell otherwise.
        """
        grouped = {name: value.float() for name, value in outputs.items() if len(value) != samples}
        self.grouped |= grouped.keys()
        if not grouped or samples == 1:
            return
        alone = dict(zip(block.outputs, block.module(*self.inputs(block, torch.zeros(1, dtype=torch.int64))), strict=True))
        for name, value in grouped.items():
            one = alone[name].float()
            if len(value) != samples * len(one) or (value[: len(one)] - one).abs().max() > 0.1 * one.abs().max():
                raise UsageError(
                    f"block {block.name} leaves '{name}' behind, in which {samples} samples have {len(value)} entries, and those of one "
                    "sample do not lie together: the next block cannot be given some of the samples",
                    'train the network as one block ({"distillation": "end-to-end"}), or do not train it ({"iterations": 0})',
                )

    def _check(self, model: str, block: Block, name: str, value: torch.Tensor, index: torch.Tensor) -> None:
        if value.is_floating_point() and (bad := numerics.not_finite(value)):
            timestep = float(self.timestep[index[bad[0]]])
            raise ArtifactError(f"{model}'s value '{name}' in block {block.name} has NaN or Inf at timestep {timestep:g}")

    def forget(self, block: Block) -> None:
        """Drop the values that no later block reads."""
        needed = {name for later in self.blocks[block.index + 1 :] for name in later.inputs}
        for name in {*block.inputs, *block.outputs} - needed:
            for stored in (_of_size(name, size) for size in range(len(self.ends))):
                if stored in self.values:
                    self.values.drop(stored)


def _of_size(name: str, size: int) -> str:
    """What a value is stored as: of the first size under its own name."""
    return f"{name}.{size}" if size else name
