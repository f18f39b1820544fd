"""The mean error of the network's output at each timestep, taken off it.

Rounding moves means: a value that many pixels share (the floor of SiLU, a background) falls between two codes, and all of them move the
same way. Layers would take the mean error of their outputs into their biases (bias correction, Nagel et al., arXiv 1906.04721 §4.2), but
with a scale for each timestep it differs from timestep to timestep, and a bias does not. So the last thing that the quantized network
does is to subtract one number for each timestep and output channel, measured on the calibration trajectories (He et al., PTQD,
arXiv 2305.10657, correct each step of the sampler so). What it buys: docs/decisions/output-bias.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

from ..progress import Progress, silent
from . import numerics
from .calibration.trajectories import Model, Trajectories

TARGET = "corrections.output_bias"
"""The module's name in a quantized graph."""


class OutputBias(nn.Module):
    """Subtracts from an output [N, ..., C, ...] the row of ``table`` [T, C] that each sample's timestep selects."""

    table: torch.Tensor
    boundaries: torch.Tensor

    def __init__(self, table: torch.Tensor, timesteps: torch.Tensor, axis: int) -> None:
        super().__init__()
        self.axis = axis
        self.narrower: dict[int, torch.Tensor] = {}  # by bits to which weights can be sliced: the table then
        self.parts: dict[int, float] = {}  # by bits, the part of the weights that has them now; none: all have all their bits
        self.register_buffer("table", table.float())
        self.register_buffer("boundaries", numerics.midpoints(timesteps))

    def config(self) -> dict[str, Any]:
        """What, beside its table, makes this module."""
        return {"axis": self.axis}

    def forward(self, y: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """Output [N, ...] and timestep [N] → output, in fp32."""
        return y - self.shaped(y.dim())[numerics.select_table_rows(timestep, self.boundaries)]

    def shaped(self, rank: int) -> torch.Tensor:
        """The table, its rows shaped to broadcast over an output of this rank: [T, 1, ..., C, ..., 1]."""
        shape = [len(self.table), *[1] * (rank - 1)]
        shape[self.axis] = -1
        return self.present().reshape(shape)

    def present(self) -> torch.Tensor:
        """The table [T, C] of the weights as they are now; of several widths, their tables' mean, weighted by their parts."""
        tables = [part * self.narrower.get(bits, self.table) for bits, part in self.parts.items()]
        return torch.stack(tables).sum(dim=0) if tables else self.table

    def take(self, parts: Mapping[int, float]) -> None:
        """Be the correction of weights that have these bits, and of no others."""
        self.parts = dict(parts)
        self.table, self.narrower, self.parts = self.present(), {}, {}


def channel_axis(rank: int) -> int:
    """Of an output of this rank: the second dimension of images and videos, the last of tokens [N, L, C] and vectors."""
    return 1 if rank >= 4 else rank - 1


@torch.no_grad()
def mean_error(model: Model, data: Trajectories, *, batch_size: int, static: bool = False, progress: Progress = silent) -> torch.Tensor:
    """Mean of ``model``'s output minus the float model's [T, C], over the samples of ``data`` at each timestep and all of a channel.

    ``static``: over all timesteps, in every row.
    """
    rank = data.outputs[0].dim()
    axis = channel_axis(rank)
    others = [dim for dim in range(1, rank) if dim != axis]
    total = torch.zeros(len(data.timesteps), data.outputs[0].shape[axis], dtype=torch.float64)
    counts = torch.zeros(len(data.timesteps), 1)
    with progress("output bias", sum(len(sized.timesteps) for sized in data.by_size)) as advance:
        for sized in data.by_size:
            for index, row in enumerate(numerics.select_table_rows(sized.timesteps, numerics.midpoints(data.timesteps)).tolist()):
                timestep = sized.timesteps[index]
                for part in torch.arange(sized.samples.shape[1]).split(batch_size):
                    output = model(sized.samples[index, part], timestep.repeat(len(part)), **sized.given(index, part))
                    error = (output - sized.outputs[index, part]).double()
                    total[row] += (error.mean(dim=others) if others else error).sum(dim=0).cpu()
                counts[row] += sized.samples.shape[1]
                advance()
    table = total / counts
    return (table.mean(dim=0, keepdim=True).expand_as(table) if static else table).float()


def insert_output_bias(graph_module: GraphModule, table: torch.Tensor, timesteps: torch.Tensor) -> None:
    """Let the graph end in an ``OutputBias`` with this table [T, C], in place."""
    graph = graph_module.graph
    output = graph.output_node()
    timestep = graph.find_nodes(op="placeholder", target="timestep")[0]
    (y,) = output.args
    assert isinstance(y, Node)
    attach(graph_module, OutputBias(table, timesteps, channel_axis(y.meta["val"].dim())))
    with graph.inserting_before(output):
        call = graph.call_module(TARGET, (y, timestep))
    call.meta = {"path": "", "val": y.meta["val"]}
    output.args = (call,)
    graph_module.recompile()


def attach(root: nn.Module, correction: OutputBias) -> None:
    """Make ``correction`` the one of ``root``."""
    parent, _, leaf = TARGET.rpartition(".")
    root.add_module(parent, nn.Module())
    root.get_submodule(parent).add_module(leaf, correction)


def output_bias(model: nn.Module) -> OutputBias | None:
    """The correction at the end of a quantized graph; None for none."""
    return next((module for module in model.modules() if isinstance(module, OutputBias)), None)
