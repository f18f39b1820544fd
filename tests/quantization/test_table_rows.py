"""Rows between the calibrated ones: the stored rows stay where they are, and what lies between them is interpolated."""

from __future__ import annotations

import pytest
import torch

from dq_deploy.artifacts.reading import read_tensors
from dq_deploy.formats import ScaleSource
from dq_deploy.quantization.checkpoint import MODEL, Checkpoint
from dq_deploy.quantization.table_rows import MOST_TABLE_ROWS, PARTS, between, between_scales, parts


def test_the_rows_of_calibrated_timesteps_are_the_stored_ones() -> None:
    timesteps, scale = torch.tensor([1.0, 51.0, 951.0]), torch.tensor([0.1, 0.3, 0.003])
    assert torch.equal(between(timesteps, 8)[::8].float(), timesteps)
    assert torch.equal(between_scales(scale, 8)[::8], scale)
    assert torch.equal(between(timesteps, 1).float(), timesteps)


def test_between_two_rows_scales_are_interpolated_by_their_logarithms_and_the_rest_linearly() -> None:
    assert between(torch.tensor([0.0, 8.0]), 4).tolist() == [0, 2, 4, 6, 8]
    assert between_scales(torch.tensor([1.0, 16.0]), 4).tolist() == pytest.approx([1, 2, 4, 8, 16])
    bias = between(torch.tensor([[0.0, 1.0], [1.0, -1.0]]), 2)
    assert bias.tolist() == [[0, 1], [0.5, 0], [1, -1]]


def test_equal_rows_have_exactly_that_between_them() -> None:
    third = torch.full((5,), 1 / 3)
    assert torch.equal(between_scales(third, 8), torch.full((33,), 1 / 3))


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (2, PARTS), (50, PARTS), (100, 2), (200, 1), (1000, 1)])
def test_long_schedules_have_fewer_rows_between(count: int, expected: int) -> None:
    assert parts(count) == expected
    assert (count - 1) * parts(count) + 1 <= max(MOST_TABLE_ROWS, count)


def test_a_loaded_checkpoint_is_used_with_rows_between(plain_checkpoint: Checkpoint) -> None:
    stored = read_tensors(plain_checkpoint.artifact.file(MODEL))
    gaps = parts(len(plain_checkpoint.timesteps))
    assert torch.equal(plain_checkpoint.table_timesteps[::gaps], plain_checkpoint.timesteps)
    moved = 0
    for name, quantizer in plain_checkpoint.quantizers.items():
        if quantizer.source is ScaleSource.COMPUTED:
            continue
        assert torch.equal(quantizer.scale_table()[::gaps], stored[f"{name}.scale"])
        assert torch.equal(quantizer.zero_point_table()[::gaps], stored[f"{name}.zero_point"])
        low, high = stored[f"{name}.scale"][:2].tolist()
        between_two, _ = quantizer.selected(plain_checkpoint.table_timesteps[gaps // 2 : gaps // 2 + 1])
        assert between_two.item() == pytest.approx((low * high) ** 0.5)
        moved += low != high
    assert moved
