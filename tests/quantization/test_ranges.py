from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dq_deploy.formats import of_bits
from dq_deploy.quantization import numerics
from dq_deploy.quantization.choices import InitialRange
from dq_deploy.quantization.quantizers.observation import Observation
from dq_deploy.quantization.quantizers.ranges import clips_weights, resolve, search_tables


def values(rows: int = 3, count: int = 4000) -> torch.Tensor:
    """[rows·4, count/4], each row wider than the one before, with one far outlier each."""
    x = torch.randn(rows, count, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 2.0, 4.0])[:rows, None] + 0.5
    x[:, 7] = 100.0
    return x.reshape(rows * 4, -1)


def error(x: torch.Tensor, rows: int, scale: torch.Tensor, zero: torch.Tensor, bits: int) -> torch.Tensor:
    x = x.reshape(rows, -1)
    codes = numerics.quantize(x, (1 / scale)[:, None], zero[:, None], of_bits(bits))
    return (codes * scale[:, None] - x).pow(2).mean(dim=1)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("rule", [InitialRange.MINMAX, InitialRange.MSE, InitialRange.PERCENTILE])
def test_rows_do_not_see_each_other(rule: InitialRange, symmetric: bool) -> None:
    x = values()
    scale, zero = search_tables(Observation.of(x, 3), of_bits(4), symmetric=symmetric, rule=rule, percentile=99.9)
    for row in range(3):
        alone = search_tables(Observation.of(x[4 * row : 4 * row + 4], 1), of_bits(4), symmetric=symmetric, rule=rule, percentile=99.9)
        assert torch.equal(alone[0][0], scale[row])
        assert torch.equal(alone[1][0], zero[row])


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_min_max_covers_every_value_and_the_least_squares_are_no_worse(bits: int) -> None:
    x = values()
    widest = search_tables(Observation.of(x, 3), of_bits(bits), symmetric=False, rule=InitialRange.MINMAX)
    low, high = widest[0] * (-(2 ** (bits - 1)) - widest[1]), widest[0] * (2 ** (bits - 1) - 1 - widest[1])
    rows = x.reshape(3, -1)
    assert bool((low - widest[0] / 2 <= rows.amin(dim=1)).all())
    assert bool((high + widest[0] / 2 >= rows.amax(dim=1)).all())
    best = search_tables(Observation.of(x, 3), of_bits(bits), symmetric=False, rule=InitialRange.MSE)
    assert bool((error(x, 3, *best, bits) <= error(x, 3, *widest, bits) * 1.05).all())  # of so few values; a histogram knows them to a bin


def test_a_percentile_cuts_the_outlier_off() -> None:
    x = values()
    scale, _ = search_tables(Observation.of(x, 3), of_bits(8), symmetric=False, rule=InitialRange.PERCENTILE, percentile=99.9)
    whole, _ = search_tables(Observation.of(x, 3), of_bits(8), symmetric=False, rule=InitialRange.PERCENTILE, percentile=100.0)
    assert torch.equal(whole, search_tables(Observation.of(x, 3), of_bits(8), symmetric=False, rule=InitialRange.MINMAX)[0])
    assert bool((scale < whole / 3).all())


def test_auto_is_the_least_error_at_every_number_of_bits() -> None:
    assert resolve(InitialRange.AUTO) is InitialRange.LEAST_ERROR
    assert resolve(InitialRange.PERCENTILE) is InitialRange.PERCENTILE
    assert [clips_weights(InitialRange.AUTO, of_bits(bits)) for bits in (4, 5, 6, 8)] == [True, True, False, False]
    assert clips_weights(InitialRange.MSE, of_bits(8))
    assert not clips_weights(InitialRange.MINMAX, of_bits(4))


@given(bits=st.integers(2, 8), seed=st.integers(0, 2**31))
def test_a_clipped_weight_scale_never_rounds_worse(bits: int, seed: int) -> None:
    w = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(seed))

    def rounded(scale: torch.Tensor) -> torch.Tensor:
        qmax = 2 ** (bits - 1) - 1
        shaped = scale.reshape(-1, 1, 1, 1)
        return ((w / shaped).round().clamp(-qmax, qmax) * shaped - w).pow(2).flatten(1).sum(1)

    clipped = numerics.clipped_weight_scale(w, of_bits(bits))
    assert bool((clipped > 0).all())
    assert bool((clipped <= numerics.weight_scale(w, of_bits(bits))).all())
    assert bool((rounded(clipped) <= rounded(numerics.weight_scale(w, of_bits(bits))) + 1e-7).all())
    assert numerics.clipped_weight_scale(torch.zeros(2, 3), of_bits(bits)).tolist() == [1.0, 1.0]


def test_a_constant_activation_has_defined_tables() -> None:
    for rule in InitialRange:
        scale, zero = search_tables(Observation.of(torch.zeros(8, 5), 2), of_bits(4), symmetric=False, rule=rule)
        assert scale.tolist() == [1.0, 1.0]
        assert torch.equal(zero, zero.round())
        scale, zero = search_tables(Observation.of(torch.full((8, 5), 3.0), 2), of_bits(4), symmetric=False, rule=rule)
        assert bool(torch.isfinite(scale).all())
        assert float((numerics.quantize(torch.tensor([3.0]), 1 / scale[:1], zero[:1], of_bits(4)) * scale[0] - 3.0).abs()) < 1e-5


@pytest.mark.parametrize("rule", [InitialRange.MINMAX, InitialRange.MSE, InitialRange.PERCENTILE])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_row_of_zeros_has_the_nearest_rows_scale(rule: InitialRange, symmetric: bool) -> None:
    x = torch.randn(5, 500, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 0.0, 0.0, 8.0, 0.0])[:, None]
    scale, zero = search_tables(Observation.of(x, 5), of_bits(8), symmetric=symmetric, rule=rule)
    assert zero[[1, 2, 4]].tolist() == [0, 0, 0]
    for row, nearest in ((1, 0), (2, 3), (4, 3)):  # from its zero-point 0 it covers what that row covers
        lowest, highest = (float(scale[nearest] * (code - zero[nearest])) for code in (-128, 127))
        assert float(scale[row]) * 128 == pytest.approx(max(-lowest, highest, float(scale[nearest]) * 128))
    assert 0 < float(scale[0]) < float(scale[3]) < 1
    assert bool((numerics.quantize(x, (1 / scale)[:, None], zero[:, None], of_bits(8))[[1, 2, 4]] == 0).all())
    nothing = search_tables(Observation.of(torch.zeros(3, 10), 3), of_bits(8), symmetric=symmetric, rule=rule)
    assert [t.tolist() for t in nothing] == [[1.0] * 3, [0.0] * 3]


def test_a_percentile_of_nearly_all_zeros_is_the_whole_range() -> None:
    x = torch.zeros(2, 100_000)
    x[:, 5] = torch.tensor([3.0, 6.0])
    scale, _ = search_tables(Observation.of(x, 2), of_bits(8), symmetric=True, rule=InitialRange.PERCENTILE)
    torch.testing.assert_close(scale, torch.tensor([3.0, 6.0]) / 127)


def test_an_observation_is_the_same_in_one_piece_and_in_several() -> None:
    x = values() * torch.tensor([1e-3, 1.0, 1e3])[:, None].repeat_interleave(4, dim=0)
    whole, parts = Observation.of(x, 3), Observation.nothing(3, x.device)
    for row, of_row in enumerate(x.reshape(3, -1)):
        for part in of_row.split(100):
            parts.add(part, row)
    assert torch.equal(whole.low, x.reshape(3, -1).amin(dim=1))
    assert torch.equal(whole.high, x.reshape(3, -1).amax(dim=1))
    assert torch.equal(whole.counts, parts.counts)
    assert whole.counts.sum(dim=1).tolist() == [x.numel() / 3] * 3


def test_bins_hold_values_of_either_sign_zero_and_what_is_beyond_them() -> None:
    x = torch.tensor([-3e38, -2.0, -1e-30, 0.0, -0.0, 1e-30, 0.5, 3e38])
    seen = Observation.of(x, 1)
    held = seen.bins().points[0].tolist()
    assert held[0] < -1e7
    assert held[1:4] == pytest.approx([-2.0, 0.0, 0.5], rel=1 / 16)
    assert held[4] > 1e7
    assert seen.bins().counts[0].tolist() == [1, 1, 4, 1, 1]


@pytest.mark.parametrize("bits", [2, 4, 6, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("reach", [0.3, 1.0])
def test_the_error_that_a_histogram_tells_is_the_measured_one(bits: int, symmetric: bool, reach: float) -> None:
    x = torch.nn.functional.silu(3 * torch.randn(2, 200_000, generator=torch.Generator().manual_seed(0)))
    seen = Observation.of(x, 2)
    scale, zero = numerics.affine_parameters(seen.low, reach * seen.high, of_bits(bits), symmetric=symmetric)
    rounding, clipping = seen.bins().error(scale, zero, of_bits(bits))
    torch.testing.assert_close((rounding + clipping).float() / x.shape[1], error(x, 2, scale, zero, bits), rtol=0.03, atol=0)
    beyond = (x > scale[:, None] * (2 ** (bits - 1) - 0.5 - zero[:, None])) | (
        x < scale[:, None] * (-(2 ** (bits - 1)) - 0.5 - zero[:, None])
    )
    assert bool((clipping > 0).all()) == bool(beyond.any(dim=1).all())


def test_the_least_error_clips_what_few_values_need_at_few_bits_and_either_end_alone() -> None:
    x = torch.nn.functional.silu(3 * torch.randn(1, 100_000, generator=torch.Generator().manual_seed(0)))
    x[0, 0] = 60.0  # nothing else lies beyond 15, and half of all values between −0.28 and 0
    seen = Observation.of(x, 1)

    def ends(bits: int, rule: InitialRange = InitialRange.LEAST_ERROR) -> tuple[float, float]:
        scale, zero = search_tables(seen, of_bits(bits), symmetric=False, rule=rule)
        low, high = (float(scale[0] * (code - zero[0])) for code in (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1))
        return low, high

    assert ends(8)[1] > 50
    assert 5 < ends(4, InitialRange.MSE)[1] < ends(4)[1] < 20
    assert ends(8)[0] < float(seen.low[0]) * 0.5


@pytest.mark.parametrize("magnitude", [1e-13, 1e-3, 1e7, 1e9, 1e15, 1e22])
@pytest.mark.parametrize("rule", [InitialRange.LEAST_ERROR, InitialRange.MSE, InitialRange.PERCENTILE, InitialRange.MINMAX])
def test_a_range_follows_the_magnitude(magnitude: float, rule: InitialRange) -> None:
    x = torch.randn(2, 20_000, generator=torch.Generator().manual_seed(0)) * magnitude
    scale, zero = search_tables(Observation.of(x, 2), of_bits(8), symmetric=False, rule=rule)
    power = (x / magnitude).pow(2).mean(dim=1)
    assert bool((10 * torch.log10(power / error(x / magnitude, 2, scale / magnitude, zero, 8)) > 34).all())
