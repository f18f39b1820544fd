"""GPTQ against its plain form: one input at a time, an inverse that is updated after each, no blocks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dq_deploy.quantization.rounding.columns import DAMPING, Rounder, nearest_codes


def round_columns(weight: torch.Tensor, scale: torch.Tensor, moments: torch.Tensor, limit: torch.Tensor, **options: Any) -> torch.Tensor:
    """GPTQ's codes, and of rows that nearest codes serve as well, those."""
    codes, errors = Rounder(moments, **options).candidates(weight, scale[None], limit)
    return codes.gather(0, errors.argmin(dim=0)[None, :, None].expand(1, *weight.shape))[0].double()


def output_error(error: torch.Tensor, moments: torch.Tensor) -> torch.Tensor:
    return torch.einsum("ri,ij,rj->r", error, moments, error)


def plain_gptq(weight: torch.Tensor, scale: torch.Tensor, moments: torch.Tensor, limit: torch.Tensor) -> torch.Tensor:
    """Codes by the Optimal Brain Surgeon's step: what is left moves by −(error / H⁻¹_ii) · H⁻¹_i, and input i leaves H⁻¹."""
    order = moments.diagonal().argsort(stable=True).flip(0)
    inverse = torch.linalg.inv(moments + DAMPING * moments.diagonal().mean() * torch.eye(len(moments), dtype=torch.float64))
    inverse, left = inverse[order][:, order], weight[:, order].clone()
    codes = torch.empty_like(weight)
    for i, at in enumerate(order):
        codes[:, at] = torch.minimum(torch.maximum((left[:, i] / scale[:, at]).round(), -limit), limit)
        error = (left[:, i] - scale[:, at] * codes[:, at]) / inverse[i, i]
        left = left - error[:, None] * inverse[i]
        inverse = inverse - torch.outer(inverse[:, i], inverse[i]) / inverse[i, i]
    return codes


def problem(rows: int, inputs: int, most: float = 7.0) -> tuple[torch.Tensor, ...]:
    """A weight, its scales, moments of inputs that lean on each other, and limits."""
    generator = torch.Generator().manual_seed(rows * inputs)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x = noise(4 * inputs, inputs) @ noise(inputs, inputs)
    weight = noise(rows, inputs)
    scale = (weight.abs().amax(dim=1, keepdim=True) / most).expand(rows, inputs).contiguous()
    return weight, scale, x.T @ x / len(x), torch.full((rows,), most, dtype=torch.float64)


@pytest.mark.parametrize(("rows", "inputs", "most"), [(8, 5, 7.0), (16, 150, 7.0), (40, 300, 1.0), (3, 129, 127.0)])
def test_the_codes_are_those_of_the_plain_form(rows: int, inputs: int, most: float) -> None:
    weight, scale, moments, limit = problem(rows, inputs, most)
    codes, expected = round_columns(weight, scale, moments.clone(), limit), plain_gptq(weight, scale, moments, limit)
    worse = output_error(weight - scale * expected, moments) >= output_error(weight - scale * nearest_codes(weight, scale, limit), moments)
    expected[worse] = nearest_codes(weight, scale, limit)[worse]
    assert torch.equal(codes, expected)


def test_scales_of_blocks_and_limits_of_rows() -> None:
    weight, scale, moments, limit = problem(12, 64)
    scale = scale * torch.rand(12, 4, dtype=torch.float64).add(0.5).repeat_interleave(16, dim=1)
    limit[:4] = 1
    codes = round_columns(weight, scale, moments, limit)
    assert codes[:4].abs().max() == 1
    better = output_error(weight - scale * codes, moments) < output_error(weight - scale * nearest_codes(weight, scale, limit), moments)
    assert torch.equal(codes[better], plain_gptq(weight, scale, moments, limit)[better])
    assert int(better.sum()) > 6


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_the_size_of_a_block_makes_no_difference(block: int) -> None:
    weight, scale, moments, limit = problem(16, 150)
    assert torch.equal(round_columns(weight, scale, moments, limit, block=block), round_columns(weight, scale, moments, limit))


def test_no_row_is_worse_than_its_nearest_codes_and_the_whole_is_far_better() -> None:
    for rows, inputs in ((64, 6), (64, 200)):
        weight, scale, moments, limit = problem(rows, inputs)
        error = output_error(weight - scale * round_columns(weight, scale, moments, limit), moments)
        nearest = output_error(weight - scale * nearest_codes(weight, scale, limit), moments)
        assert bool((error <= nearest).all())
    assert float(error.sum()) < 0.7 * float(nearest.sum())


def test_inputs_that_do_not_lean_on_each_other_are_rounded_to_nearest() -> None:
    weight, scale, _, limit = problem(16, 40)
    moments = torch.rand(40, dtype=torch.float64).diag()
    assert torch.equal(round_columns(weight, scale, moments, limit), nearest_codes(weight, scale, limit))


def test_dead_inputs_are_rounded_to_nearest_and_change_nothing() -> None:
    weight, scale, moments, limit = problem(16, 40)
    moments[5:15] = moments[:, 5:15] = 0
    alive = torch.tensor([*range(5), *range(15, 40)])
    codes = round_columns(weight, scale, moments, limit)
    assert torch.equal(codes[:, 5:15], nearest_codes(weight, scale, limit)[:, 5:15])
    # The mean diagonal, and with it the damping, is that of 40 inputs.
    alone = round_columns(weight[:, alive], scale[:, alive], moments[alive][:, alive], limit, damping=DAMPING * 30 / 40)
    assert torch.equal(codes[:, alive], alone)


def test_where_nothing_was_seen_all_codes_are_nearest() -> None:
    weight, scale, moments, limit = problem(4, 10)
    assert torch.equal(round_columns(weight, scale, torch.zeros_like(moments), limit), nearest_codes(weight, scale, limit))


def test_inputs_that_are_always_the_same_share_their_errors() -> None:
    """H of rank 1: what one of two equal inputs lacks the other takes."""
    weight = torch.tensor([[0.4, 0.4, 0.4]], dtype=torch.float64)
    codes = round_columns(weight, torch.ones_like(weight), torch.ones(3, 3, dtype=torch.float64), torch.tensor([7.0], dtype=torch.float64))
    assert float(codes.sum()) == 1.0  # of 1.2; the nearest codes are all 0


def test_moments_that_fp32_left_indefinite_are_damped_until_they_are_not() -> None:
    weight, scale, moments, limit = problem(8, 30)
    values, vectors = torch.linalg.eigh(moments)
    values[0] = -2 * DAMPING * float(moments.diagonal().mean())
    indefinite = vectors @ values.diag() @ vectors.T
    codes = round_columns(weight, scale, indefinite, limit)
    assert bool(torch.isfinite(codes).all())
    assert bool((codes.abs() <= limit[:, None]).all())


def test_candidates_are_the_nearest_codes_and_those_of_every_scale() -> None:
    weight, scale, moments, limit = problem(30, 60)
    scales = torch.stack([scale, scale * 0.8, scale * 0.6])
    codes, errors = Rounder(moments).candidates(weight, scales, limit)
    assert torch.equal(codes[0].double(), nearest_codes(weight, scale, limit))
    for made, lost, some in zip(codes, errors, [scale, *scales], strict=True):
        torch.testing.assert_close(lost, output_error(weight - some * made, moments))
    for made, some in zip(codes[1:], scales, strict=True):
        assert torch.equal(made.double(), plain_gptq(weight, some, moments, limit))
    assert len(errors.argmin(dim=0).unique()) > 1


def test_rows_are_rounded_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, scale, moments, limit = problem(16, 150)
    whole = round_columns(weight, scale, moments, limit)
    monkeypatch.setattr("dq_deploy.quantization.rounding.columns.AT_ONCE", 5 * 150)
    assert torch.equal(round_columns(weight, scale, moments, limit), whole)
