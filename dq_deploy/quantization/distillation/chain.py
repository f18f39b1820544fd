"""A graph run block by block, the values between the blocks on disk."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...errors import ArtifactError
from ..graph.blocks import Block
from .cache import Values


class Chain:
    """Blocks of one graph and the values that they have left behind for S samples at ``timestep`` [S]."""

    def __init__(self, blocks: Sequence[Block], values: Values, timestep: torch.Tensor, batch_size: int,
                 device: torch.device | str = "cpu") -> None:  # fmt: skip
        self.blocks, self.values = list(blocks), values
        self.timestep, self.batch_size, self.device = timestep, batch_size, torch.device(device)

    def inputs(self, block: Block, index: torch.Tensor) -> list[torch.Tensor]:
        """The block's arguments for the samples ``index``, on the chain's device."""
        return [self.timestep[index].to(self.device), *(self.read(name, index) for name in block.inputs)]

    def read(self, name: str, index: torch.Tensor) -> torch.Tensor:
        """A value of the samples ``index``, on the chain's device."""
        return self.values.read(name, index).to(self.device)

    @torch.no_grad()
    def run(self, block: Block, *, check: str = "") -> None:
        """Run one block over all samples and store its outputs.

        ``check`` names the model in the ArtifactError that NaN or Inf in an output raises; empty means no check.
        """
        for index in torch.arange(len(self.timestep)).split(self.batch_size):
            for name, value in zip(block.outputs, block.module(*self.inputs(block, index)), strict=True):
                if check:
                    self._check(check, block, name, value, index)
                self.values.write(name, int(index[0]), value)

    def _check(self, model: str, block: Block, name: str, value: torch.Tensor, index: torch.Tensor) -> None:
        if value.is_floating_point() and not torch.isfinite(value).all():
            bad = (~torch.isfinite(value.flatten(1))).any(dim=1).nonzero()[:, 0].cpu()
            timestep = float(self.timestep[index[bad[0]]])
            raise ArtifactError(f"{model}'s value '{name}' in block {block.name} has NaN or Inf at timestep {timestep:g}")

    def forget(self, block: Block) -> None:
        """Drop the values that no later block reads."""
        needed = {name for later in self.blocks[block.index + 1 :] for name in later.inputs}
        for name in {*block.inputs, *block.outputs}:
            if name not in needed and name in self.values:
                self.values.drop(name)
