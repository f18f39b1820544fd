from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dq_deploy.quantization.distillation.cache import ValueCache


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(), (3,), (2, 4, 5)])
def test_rows_come_back_in_any_order(dtype: torch.dtype, shape: tuple[int, ...], tmp_path: Path) -> None:
    values = (torch.randn(10, *shape) * 100).to(dtype)
    cache = ValueCache(tmp_path / "values")
    for start in (0, 4, 8):
        cache.write("x", start, values[start : start + 4])
    for index in (torch.arange(10), torch.tensor([7, 0, 1, 2, 9, 9, 3]), torch.tensor([5]), torch.tensor([], dtype=torch.int64)):
        assert torch.equal(cache.read("x", index), values[index])


def test_transposed_values_are_stored_in_order(tmp_path: Path) -> None:
    values = torch.randn(4, 3, 5).transpose(1, 2)
    cache = ValueCache(tmp_path)
    cache.write("x", 0, values)
    assert torch.equal(cache.read("x", torch.arange(4)), values)


def test_what_is_dropped_gives_back_its_disk(tmp_path: Path) -> None:
    cache = ValueCache(tmp_path)
    cache.write("x", 0, torch.ones(2))
    cache.write("y", 0, torch.ones(2))
    cache.drop("x")
    assert "x" not in cache
    assert [p.name for p in tmp_path.iterdir()] == ["y.rows"]
    cache.drop("y")
    assert not list(tmp_path.iterdir())


def test_rows_that_were_never_written_are_an_error(tmp_path: Path) -> None:
    cache = ValueCache(tmp_path)
    cache.write("x", 0, torch.ones(2))
    with pytest.raises(OSError, match="ends before sample 3"):
        cache.read("x", torch.tensor([2]))
