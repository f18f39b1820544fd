"""Branches on values: on those that no input has a part in, the capture takes the one that the model takes; others are refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from dq_deploy.errors import ArtifactError
from tests.tiny import captured

TOKENS = 6


class Masked(nn.Module):
    """torch's own decoder, which looks whether its mask is causal, after a guidance mask [N] that is all zeros."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16, batch_first=True, norm_first=True), 2)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(TOKENS))

    def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        memory = x + timestep[:, None, None] / 1000
        dropped = torch.zeros(len(x), dtype=torch.bool)
        if dropped.any():
            memory = torch.where(dropped[:, None, None], 0, memory)
        return self.decoder(x, memory, tgt_mask=self.mask)


class Branching(nn.Module):
    """Doubles what it makes of a sample where ``decide`` says so of it and of a buffer of zeros [4]."""

    def __init__(self, decide: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.decide, self.linear = decide, nn.Linear(8, 8)
        self.register_buffer("table", torch.zeros(4))

    def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        y = self.linear(x) + timestep[:, None, None] / 1000
        return 2 * y if self.decide(x, self.table.clone()) else y


def written(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    table[1] = x[0, 0, 0].abs() + 1
    return table.sum() > 0


def listed(x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    return torch.tensor(x.flatten().tolist()).sum() > 0


def overwritten(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    torch.add(table, x.abs().max(), out=table)
    return table.view(2, 2)[1, 1] > 0


def test_a_branch_that_no_input_decides_is_taken_as_the_model_takes_it() -> None:
    model = Masked().eval()
    graph = captured(model, (TOKENS, 8))
    for batch in (1, 2, 5):
        x, t = torch.randn(batch, TOKENS, 8), torch.linspace(0, 999, batch)
        with torch.no_grad():
            torch.testing.assert_close(graph(x, t), model(x, t), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("decide", [
    lambda x, _: x.max() > -99, written, listed, overwritten, lambda x, _: torch.ones(len(x)).sum() > 2,
    lambda x, _: torch.ones(len(x)).sum() > 10, lambda x, _: (torch.arange(len(x)) == 7).any(),
])  # fmt: skip
def test_a_branch_that_an_input_decides_is_refused(decide: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
    with pytest.raises(ArtifactError, match="cannot capture Branching") as caught:
        captured(Branching(decide).eval(), (TOKENS, 8))
    assert "depends on values of its inputs" in str(caught.value.hint)


def in_a_row(_: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    read = [bool(value) for value in table + torch.tensor([1.0, 0.0, 0.0, 1.0])]
    return torch.tensor(read == [True, False, False, True] and int(table[2]) == 0 and torch.equal(table, table + 0))


def test_values_that_are_read_at_one_place_are_given_in_their_order() -> None:
    model = Branching(in_a_row).eval()
    x, t = torch.randn(3, TOKENS, 8), torch.tensor([1.0, 2.0, 3.0])
    with torch.no_grad():
        torch.testing.assert_close(captured(model, (TOKENS, 8))(x, t), model(x, t))


class Numbered(Branching):
    """Numbers its samples before it looks at a buffer: N has a part in the numbers, and none in the branch."""

    def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return super().forward(x + torch.arange(len(x))[:, None, None], timestep)


def test_what_n_has_a_part_in_does_not_hide_what_it_has_none_in() -> None:
    model = Numbered(lambda _, table: table.sum() == 0).eval()
    x, t = torch.randn(3, TOKENS, 8), torch.tensor([1.0, 2.0, 3.0])
    with torch.no_grad():
        torch.testing.assert_close(captured(model, (TOKENS, 8))(x, t), model(x, t))
