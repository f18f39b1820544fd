from __future__ import annotations

import pytest
import torch

from dq_deploy.quantization.distillation.optimizers import TableAdam, cosine


def test_tables_move_as_under_sparse_adam() -> None:
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.ones(6, 1)) for _ in range(2))
    table, reference = TableAdam({ours: 0.1}), torch.optim.SparseAdam([theirs], lr=0.1)
    for _ in range(20):
        index = torch.randint(6, (3,)).unique()
        gradient = torch.zeros(6, 1)
        gradient[index] = torch.randn(len(index), 1)
        ours.grad = gradient
        theirs.grad = torch.sparse_coo_tensor(index[None], gradient[index], (6, 1), check_invariants=True)
        table.step(torch.zeros(6, dtype=torch.bool).index_fill(0, index, True))
        reference.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_rows_that_are_not_touched_do_not_drift() -> None:
    parameter = torch.nn.Parameter(torch.zeros(3, 1))
    table = TableAdam({parameter: 0.1})
    for rows in ([True, True, False], [False, True, False], [False, True, False]):
        parameter.grad = torch.ones(3, 1)
        before = parameter.detach().clone()
        table.step(torch.tensor(rows))
        assert ((parameter != before)[:, 0] == torch.tensor(rows)).all()
    # Plain Adam would go on moving the first row by its momentum, with no gradient at all.
    plain = torch.nn.Parameter(torch.zeros(3, 1))
    adam = torch.optim.Adam([plain], lr=0.1)
    plain.grad = torch.ones(3, 1)
    adam.step()
    before = plain.detach().clone()
    plain.grad = torch.zeros(3, 1)
    adam.step()
    assert not torch.equal(plain, before)


def test_a_static_table_always_moves() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1, 1))
    parameter.grad = torch.ones(1, 1)
    TableAdam({parameter: 0.5}).step(torch.tensor([False, True, False]), factor=0.5)
    assert parameter.item() == pytest.approx(-0.25)


def test_the_cosine_goes_from_one_to_nothing() -> None:
    assert [cosine(i, 4) for i in (0, 2, 4)] == pytest.approx([1, 0.5, 0])
    reference = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(reference, 10)
    for step in range(10):
        assert cosine(step, 10) == pytest.approx(schedule.get_last_lr()[0])
        reference.step()
        schedule.step()
