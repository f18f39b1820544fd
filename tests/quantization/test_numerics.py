from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dq_deploy.formats import of_bits
from dq_deploy.quantization import numerics

BITS = st.integers(2, 8)


@given(bits=BITS, symmetric=st.booleans(), seed=st.integers(0, 2**31), spread=st.floats(1e-6, 1e6), offset=st.floats(-2, 2))
def test_error_is_at_most_half_a_step_inside_the_range(bits: int, symmetric: bool, seed: int, spread: float, offset: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn(200, generator=generator) + offset) * spread
    scale, zero_point = numerics.affine_parameters(x.min(), x.max(), of_bits(bits), symmetric=symmetric)
    qmin, qmax = of_bits(bits).code_range()
    codes = numerics.quantize(x, 1 / scale, zero_point, of_bits(bits))
    assert torch.equal(codes, codes.round())
    assert bool((codes + zero_point >= qmin).all())
    assert bool((codes + zero_point <= qmax).all())
    inside = (x / scale + zero_point > qmin) & (x / scale + zero_point < qmax)
    error = (codes.double() * scale.double() - x.double()).abs()[inside]
    # x · (1/s) and the rounding of 1/s itself each cost less than an ulp of x.
    limit = scale.double() / 2 + 2 * np.spacing(x.abs().max().numpy())
    assert bool((error <= limit).all())


@given(bits=BITS, symmetric=st.booleans(), low=st.floats(-1e4, 1e4, width=32), width=st.floats(0, 1e4, width=32))
def test_the_range_is_covered_and_zero_is_exact(bits: int, symmetric: bool, low: float, width: float) -> None:
    ends = torch.tensor([low, low + width])
    scale, zero_point = numerics.affine_parameters(ends[0], ends[1], of_bits(bits), symmetric=symmetric)
    qmin, qmax = of_bits(bits).code_range()
    assert float(scale) > 0
    assert qmin <= float(zero_point) <= qmax
    assert float(zero_point) == round(float(zero_point))
    assert not symmetric or float(zero_point) == 0
    assert float(numerics.quantize(torch.zeros(()), 1 / scale, zero_point, of_bits(bits))) == 0
    error = (numerics.quantize(ends, 1 / scale, zero_point, of_bits(bits)) * scale - ends).abs()
    assert bool((error <= scale * 1.001).all())  # the zero-point's own rounding may push an end out by half a step


@pytest.mark.parametrize("bits", range(2, 9))
def test_a_weight_scale_reaches_the_largest_code_and_no_further(bits: int) -> None:
    weight = torch.randn(5, 7, generator=torch.Generator().manual_seed(bits))
    weight[3] = 0
    scale = numerics.weight_scale(weight, of_bits(bits))
    codes = (weight / scale[:, None]).round()
    largest = codes.abs().amax(dim=1)
    assert scale[3] == 1
    assert largest.tolist() == [2 ** (bits - 1) - 1] * 3 + [0] + [2 ** (bits - 1) - 1]


@given(st.sets(st.integers(0, 999), min_size=1, max_size=20), st.lists(st.floats(-10, 1010, width=32), min_size=1, max_size=20))
def test_rows_are_the_nearest_by_value_and_a_midpoint_goes_down(calibrated: set[int], asked: list[float]) -> None:
    timesteps = np.array(sorted(calibrated), dtype=np.float32)
    middle = (timesteps[1:] + timesteps[:-1]) / 2
    t = np.concatenate([np.array(asked, dtype=np.float32), timesteps, middle])
    distance = np.abs(t[:, None].astype(np.float64) - timesteps.astype(np.float64))
    got = numerics.select_table_rows(torch.from_numpy(t), numerics.midpoints(timesteps))
    assert got.tolist() == distance.argmin(axis=1).tolist()  # argmin takes the first, that is the smaller, of two equals
    assert got[len(asked) + len(timesteps) :].tolist() == list(range(len(middle)))


def test_integer_timesteps_select_like_floats() -> None:
    boundaries = numerics.midpoints([1.0, 51.0, 101.0])
    asked = [0, 26, 27, 76, 77, 999]
    assert numerics.select_table_rows(torch.tensor(asked), boundaries).tolist() == [0, 0, 1, 1, 2, 2]


def test_a_clipped_element_passes_no_gradient() -> None:
    x = torch.tensor([0.3, 500.0, -500.0], requires_grad=True)
    numerics.quantize(x, torch.tensor(1.0), torch.tensor(0.0), of_bits(8)).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, 0.0, 0.0]


def test_what_is_not_finite_is_found_by_sample_and_a_large_sum_is_no_fault() -> None:
    values = torch.ones(4, 3, 2)
    assert numerics.not_finite(values) == []
    values[1, 0, 0], values[3, 2, 1] = torch.nan, -torch.inf
    assert numerics.not_finite(values) == [1, 3]
    values[1, 0, 0] = torch.inf  # whose sum with the other is NaN
    assert numerics.not_finite(values) == [1, 3]
    assert numerics.not_finite(torch.full((2, 3), torch.finfo(torch.float32).max)) == []
