from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dq_deploy.quantization import numerics
from dq_deploy.quantization.config import InitialRange
from dq_deploy.quantization.initial.ranges import resolve, search_tables


def values(rows: int = 3, count: int = 4000) -> torch.Tensor:
    """[rows·4, count/4], each row wider than the one before, with one far outlier each."""
    x = torch.randn(rows, count, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 2.0, 4.0])[:rows, None] + 0.5
    x[:, 7] = 100.0
    return x.reshape(rows * 4, -1)


def error(x: torch.Tensor, rows: int, scale: torch.Tensor, zero: torch.Tensor, bits: int) -> torch.Tensor:
    x = x.reshape(rows, -1)
    codes = numerics.quantize(x, (1 / scale)[:, None], zero[:, None], bits)
    return (codes * scale[:, None] - x).pow(2).mean(dim=1)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("rule", [InitialRange.MINMAX, InitialRange.MSE, InitialRange.PERCENTILE])
def test_rows_do_not_see_each_other(rule: InitialRange, symmetric: bool) -> None:
    x = values()
    scale, zero = search_tables(x, 3, 4, symmetric=symmetric, rule=rule, percentile=99.9)
    for row in range(3):
        alone = search_tables(x[4 * row : 4 * row + 4], 1, 4, symmetric=symmetric, rule=rule, percentile=99.9)
        assert torch.equal(alone[0][0], scale[row])
        assert torch.equal(alone[1][0], zero[row])


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_min_max_covers_every_value_and_the_least_squares_are_no_worse(bits: int) -> None:
    x = values()
    widest = search_tables(x, 3, bits, symmetric=False, rule=InitialRange.MINMAX)
    low, high = widest[0] * (-(2 ** (bits - 1)) - widest[1]), widest[0] * (2 ** (bits - 1) - 1 - widest[1])
    rows = x.reshape(3, -1)
    assert bool((low - widest[0] / 2 <= rows.amin(dim=1)).all())
    assert bool((high + widest[0] / 2 >= rows.amax(dim=1)).all())
    best = search_tables(x, 3, bits, symmetric=False, rule=InitialRange.MSE)
    assert bool((error(x, 3, *best, bits) <= error(x, 3, *widest, bits) * 1.0001).all())


def test_a_percentile_cuts_the_outlier_off() -> None:
    x = values()
    scale, _ = search_tables(x, 3, 8, symmetric=False, rule=InitialRange.PERCENTILE, percentile=99.9)
    whole, _ = search_tables(x, 3, 8, symmetric=False, rule=InitialRange.PERCENTILE, percentile=100.0)
    assert torch.equal(whole, search_tables(x, 3, 8, symmetric=False, rule=InitialRange.MINMAX)[0])
    assert bool((scale < whole / 3).all())


def test_auto_gives_up_more_of_the_range_with_fewer_bits() -> None:
    rules = [resolve(InitialRange.AUTO, bits) for bits in (4, 5, 6, 7, 8)]
    assert rules == [InitialRange.MSE] * 2 + [InitialRange.PERCENTILE] + [InitialRange.MINMAX] * 2
    assert resolve(InitialRange.PERCENTILE, 4) is InitialRange.PERCENTILE


@given(bits=st.integers(2, 8), seed=st.integers(0, 2**31))
def test_a_clipped_weight_scale_never_rounds_worse(bits: int, seed: int) -> None:
    w = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(seed))

    def rounded(scale: torch.Tensor) -> torch.Tensor:
        qmax = 2 ** (bits - 1) - 1
        shaped = scale.reshape(-1, 1, 1, 1)
        return ((w / shaped).round().clamp(-qmax, qmax) * shaped - w).pow(2).flatten(1).sum(1)

    clipped = numerics.clipped_weight_scale(w, bits)
    assert bool((clipped > 0).all())
    assert bool((clipped <= numerics.weight_scale(w, bits)).all())
    assert bool((rounded(clipped) <= rounded(numerics.weight_scale(w, bits)) + 1e-7).all())
    assert numerics.clipped_weight_scale(torch.zeros(2, 3), bits).tolist() == [1.0, 1.0]


def test_a_constant_activation_has_defined_tables() -> None:
    for rule in InitialRange:
        scale, zero = search_tables(torch.zeros(8, 5), 2, 4, symmetric=False, rule=rule)
        assert scale.tolist() == [1.0, 1.0]
        assert torch.equal(zero, zero.round())
        scale, zero = search_tables(torch.full((8, 5), 3.0), 2, 4, symmetric=False, rule=rule)
        assert bool(torch.isfinite(scale).all())
        assert float((numerics.quantize(torch.tensor([3.0]), 1 / scale[:1], zero[:1], 4) * scale[0] - 3.0).abs()) < 1e-5


@pytest.mark.parametrize("rule", [InitialRange.MINMAX, InitialRange.MSE, InitialRange.PERCENTILE])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_row_of_zeros_has_the_nearest_rows_scale(rule: InitialRange, symmetric: bool) -> None:
    x = torch.randn(5, 500, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 0.0, 0.0, 8.0, 0.0])[:, None]
    scale, zero = search_tables(x, 5, 8, symmetric=symmetric, rule=rule)
    assert zero[[1, 2, 4]].tolist() == [0, 0, 0]
    for row, nearest in ((1, 0), (2, 3), (4, 3)):  # from its zero-point 0 it covers what that row covers
        lowest, highest = (float(scale[nearest] * (code - zero[nearest])) for code in (-128, 127))
        assert float(scale[row]) * 128 == pytest.approx(max(-lowest, highest, float(scale[nearest]) * 128))
    assert 0 < float(scale[0]) < float(scale[3]) < 1
    assert bool((numerics.quantize(x, (1 / scale)[:, None], zero[:, None], 8)[[1, 2, 4]] == 0).all())
    nothing = search_tables(torch.zeros(3, 10), 3, 8, symmetric=symmetric, rule=rule)
    assert [t.tolist() for t in nothing] == [[1.0] * 3, [0.0] * 3]


def test_a_percentile_of_nearly_all_zeros_is_the_whole_range() -> None:
    x = torch.zeros(2, 100_000)
    x[:, 5] = torch.tensor([3.0, 6.0])
    scale, _ = search_tables(x, 2, 8, symmetric=True, rule=InitialRange.PERCENTILE)
    torch.testing.assert_close(scale, torch.tensor([3.0, 6.0]) / 127)
