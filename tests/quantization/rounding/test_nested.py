"""Codes that are rounded for several widths at once."""

from __future__ import annotations

import pytest
import torch

from dq_deploy.formats import INT8, of_bits
from dq_deploy.quantization import numerics
from dq_deploy.quantization.rounding.columns import Rounder
from dq_deploy.quantization.rounding.nested import NestedRounder, Slices, code_values, preimages

WIDTHS = (8, 6, 4, 3, 2)


@pytest.fixture(scope="module")
def problem() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Second moments of inputs that go together, a weight [6, 40] and its scales."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 8, generator=generator, dtype=torch.float64) @ torch.randn(8, 40, generator=generator, dtype=torch.float64)
    x += 0.3 * torch.randn(400, 40, generator=generator, dtype=torch.float64)
    weight = torch.randn(6, 40, generator=generator, dtype=torch.float64)
    scale = (weight.abs().amax(dim=1, keepdim=True) / 127).expand_as(weight)
    return x.T @ x / len(x), weight, scale


@pytest.mark.parametrize(("code", "bits", "expected"), [
    (100, 4, 6), (104, 4, 6), (120, 4, 7), (127, 4, 7), (-127, 4, -7), (-120, 4, -7), (8, 4, 0), (24, 4, 2), (40, 4, 2), (95, 2, 1),
    (33, 2, 1), (31, 2, 0), (127, 2, 1), (2, 6, 0), (6, 6, 2), (126, 6, 31), (77, 8, 77),
])  # fmt: skip
def test_a_slice_is_the_nearest_code_of_its_width(code: int, bits: int, expected: int) -> None:
    codes, scale = numerics.sliced(torch.tensor([[float(code)]]), torch.tensor([0.5]), INT8, bits)
    assert (codes.item(), scale.item()) == (expected, 0.5 * 2 ** (8 - bits))  # a tie goes to the even code


def test_slices_let_gradients_through_where_nothing_is_clipped() -> None:
    codes = torch.tensor([[3.0, 100.0, 127.0]], requires_grad=True)
    sliced, scale = numerics.sliced(codes, torch.tensor([0.5]), INT8, 4)
    (sliced * scale).sum().backward()
    assert codes.grad is not None
    torch.testing.assert_close(codes.grad, torch.tensor([[0.5, 0.5, 0.0]]))  # 127 / 16 is nearest to 8, and 7 is the largest


def test_values_of_codes_are_their_slices() -> None:
    values = code_values(WIDTHS)
    codes = torch.arange(-127, 128, dtype=torch.float64)[None]
    assert torch.equal(values[0], codes[0])
    for bits, row in zip(WIDTHS, values, strict=True):
        sliced, scale = numerics.sliced(codes, torch.ones(1, dtype=torch.float64), INT8, bits)
        assert torch.equal(row, (sliced * scale)[0])
        assert len(row.unique()) == 2**bits - 1


def test_every_code_is_judged() -> None:
    slices = Slices(WIDTHS)
    ideal = torch.randn(len(WIDTHS), 50, dtype=torch.float64) * 60
    worth = (slices.counts[:, None, None] * (ideal[:, :, None] - slices.values[:, None]).square()).sum(dim=0)  # [R, codes]
    best = slices.best(ideal)
    torch.testing.assert_close(worth.gather(1, best[:, None])[:, 0], worth.min(dim=1).values)


def test_the_error_is_that_of_every_width(problem: tuple[torch.Tensor, ...]) -> None:
    moments, weight, scale = problem
    slices, codes = Slices(WIDTHS), torch.randint(-127, 128, weight.shape)
    expected = torch.zeros(len(weight), dtype=torch.float64)
    for bits, count in zip(WIDTHS, slices.counts, strict=True):
        sliced, step = numerics.sliced(codes.double(), scale[:, 0], INT8, bits)
        error = weight - sliced * step[:, None]
        expected += count * torch.einsum("rk,kl,rl->r", error, moments, error)
    torch.testing.assert_close(slices.error(moments, weight, scale, codes), expected)


def test_descent_never_loses_and_ends_where_no_single_code_is_better(problem: tuple[torch.Tensor, ...]) -> None:
    moments, weight, scale = problem
    slices, codes = Slices((8, 4)), (weight / scale).round()
    errors = [slices.error(moments, weight, scale, codes)]
    for _ in range(30):
        codes = slices.refined(moments, weight, scale, codes, 1)
        errors.append(slices.error(moments, weight, scale, codes))
        assert bool((errors[-1] <= errors[-2] * (1 + 1e-9)).all())
    assert float(errors[-1].sum()) < 0.5 * float(errors[0].sum())
    for column in range(0, weight.shape[1], 7):
        for step in (-16, -1, 1, 16):
            moved = codes.clone()
            moved[:, column] = (moved[:, column] + step).clamp(-127, 127)
            assert bool((slices.error(moments, weight, scale, moved) >= errors[-1] * (1 - 1e-9)).all())


def test_rounding_for_all_widths_serves_each_better_than_slicing_what_was_rounded_for_8_bits(problem: tuple[torch.Tensor, ...]) -> None:
    moments, weight, scale = problem
    limit = torch.full_like(weight[:, 0], 127.0)
    plain, _ = Rounder(moments).codes(weight, scale, limit)
    slices = Slices((8, 4, 3))
    nested, lost = NestedRounder(moments, slices).codes(weight, scale, limit)
    torch.testing.assert_close(lost, slices.error(moments, weight, scale, nested))

    def error(codes: torch.Tensor, bits: int) -> float:
        sliced, step = numerics.sliced(codes, scale[:, 0], INT8, bits)
        wrong = weight - sliced * step[:, None]
        return float(((wrong @ moments) * wrong).sum())

    assert error(nested, 4) < 0.5 * error(plain, 4)
    assert error(nested, 3) < 0.5 * error(plain, 3)
    assert error(plain, 8) < error(nested, 8) < error(nested, 4)


def test_candidates_are_nearest_codes_and_those_of_each_scale(problem: tuple[torch.Tensor, ...]) -> None:
    moments, weight, scale = problem
    scales = torch.stack([scale, 0.8 * scale])
    codes, errors = NestedRounder(moments, Slices((8, 3))).candidates(weight, scales, torch.full_like(weight[:, 0], 127.0))
    assert codes.shape == (3, *weight.shape)
    assert torch.equal(codes[0].double(), (weight / scale).round())
    assert bool((errors[1:].min(dim=0).values < errors[0]).all())


@pytest.mark.parametrize(("bits", "wider"), [(3, 4), (4, 8), (6, 8), (2, 3), (2, 8)])
def test_preimages_are_all_codes_that_are_sliced_alike(bits: int, wider: int) -> None:
    most = 2 ** (wider - 1) - 1
    codes = torch.arange(-most, most + 1, dtype=torch.float64)[None]
    sliced, _ = numerics.sliced(codes, torch.ones(1, dtype=torch.float64), of_bits(wider), bits)
    lowest, highest = preimages(wider, bits)
    assert len(lowest) == 2**bits - 1
    index = sliced.long() + len(lowest) // 2
    assert bool(((lowest[index] <= codes) & (codes <= highest[index])).all())
    assert torch.equal(lowest[1:], highest[:-1] + 1)


def test_width_after_width_begins_with_gptqs_own_codes_of_the_narrowest(problem: tuple[torch.Tensor, ...]) -> None:
    moments, weight, scale = problem
    limit = torch.full_like(weight[:, 0], 127.0)
    rounder = NestedRounder(moments, Slices((8, 4, 3)))
    nested = rounder.one_after_the_other(weight, scale, limit)
    narrow, _ = Rounder(moments).codes(weight, scale * 32, torch.full_like(limit, 3.0))
    sliced, _ = numerics.sliced(nested, scale[:, 0], INT8, 3)
    assert torch.equal(sliced, narrow)


def test_of_inputs_that_are_few_all_widths_are_nearly_as_good_as_alone() -> None:
    """Three vectors in 40 dimensions: there are directions without end that cost nothing, and one code can serve every width."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 40, generator=generator, dtype=torch.float64)
    weight = torch.randn(20, 40, generator=generator, dtype=torch.float64)
    scale = (weight.abs().amax(dim=1, keepdim=True) / 90).expand_as(weight)
    moments, limit, slices = x.T @ x, torch.full((20,), 127.0, dtype=torch.float64), Slices((8, 4))
    rounder = NestedRounder(moments, slices)

    def error(codes: torch.Tensor, bits: int) -> float:
        made, step = numerics.sliced(codes, scale[:, 0], INT8, bits)
        return float(((weight - made * step[:, None]) @ x.T).square().sum())

    alone = float(Rounder(moments).codes(weight, 16 * scale, torch.full_like(limit, 7.0))[1].sum())
    at_once, after = rounder.for_all_at_once(weight, scale), rounder.one_after_the_other(weight, scale, limit)
    assert error(after, 4) == pytest.approx(alone, rel=1e-6)
    assert error(after, 8) < error(at_once, 8)
    chosen, _ = rounder.codes(weight, scale, limit)
    assert float(rounder.error(weight, scale, chosen).sum()) <= float(rounder.error(weight, scale, at_once).sum())
