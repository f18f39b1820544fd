"""Adam (arXiv 1412.6980) for scale tables, leaving alone the rows that a batch does not touch, and the schedule of every rate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

_BETAS, _EPS = (0.9, 0.999), 1e-8  # torch's own defaults


def cosine(step: int, steps: int) -> float:
    """Factor of the learning rates at ``step`` = 0, 1, … of ``steps``: from 1 down to almost 0."""
    return 0.5 * (1 + math.cos(math.pi * step / max(steps, 1)))


@dataclass
class _Table:
    """A parameter [T, 1] with its learning rate and Adam's two moments."""

    parameter: torch.nn.Parameter
    lr: float
    mean: torch.Tensor = field(init=False)
    square: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.mean, self.square = torch.zeros_like(self.parameter), torch.zeros_like(self.parameter)


class TableAdam:
    """Adam on tables [T, 1]; a row that the batch does not touch keeps its value and its moments, as under ``torch.optim.SparseAdam``.

    Works on dense gradients and takes the rows as an argument, because sparse gradients cost more than the tables are worth.
    """

    def __init__(self, tables: Mapping[torch.nn.Parameter, float]) -> None:
        self.tables = [_Table(parameter, lr) for parameter, lr in tables.items()]
        self.steps = 0

    @torch.no_grad()
    def step(self, table_rows: torch.Tensor, factor: float = 1.0) -> None:
        """Move the rows that are touched (``table_rows`` [T], bool; a table of one row always is), learning rates times ``factor``."""
        self.steps += 1
        correction = math.sqrt(1 - _BETAS[1] ** self.steps) / (1 - _BETAS[0] ** self.steps)
        mask = table_rows[:, None]
        for table in self.tables:
            gradient = table.parameter.grad
            if gradient is None:
                continue
            mean = table.mean.lerp(gradient, 1 - _BETAS[0])
            square = table.square.lerp(gradient * gradient, 1 - _BETAS[1])
            move = mean / (square.sqrt() + _EPS) * (-table.lr * factor * correction)
            if len(move) == 1:
                table.mean, table.square = mean, square
                table.parameter.add_(move)
            else:
                table.mean, table.square = torch.where(mask, mean, table.mean), torch.where(mask, square, table.square)
                table.parameter.add_(torch.where(mask, move, 0.0))

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for table in self.tables:
            table.parameter.grad = None
