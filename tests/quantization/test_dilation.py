from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dq_deploy.formats import of_bits
from dq_deploy.quantization.initial.dilation import (
    MAX_DILATION,
    LayerStatistics,
    asymmetric_bound,
    balanced,
    candidates,
    dilate,
    smoothquant,
    symmetric_bound,
)
from dq_deploy.quantization.numerics import weight_scale

Rule = Callable[[Sequence[torch.Tensor], int], torch.Tensor]
SHAPES = st.sampled_from([(1, 1), (3, 5), (4, 3, 3, 3), (2, 6, 1, 1)])


def weights(shape: tuple[int, ...], seed: int, *, zeros: bool = False) -> torch.Tensor:
    """Random weights whose input channels have very different norms, with some zeros."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.logspace(0, -2, shape[1])[torch.randperm(shape[1], generator=generator)]
    w = torch.randn(shape, generator=generator, dtype=torch.float64) * spread.reshape(1, -1, *[1] * (len(shape) - 2))
    return w * (torch.rand(shape, generator=generator) > 0.3) if zeros else w


@given(shape=SHAPES, seed=st.integers(0, 2**31), zeros=st.booleans(), rule=st.sampled_from([symmetric_bound, asymmetric_bound]))
def test_dilation_leaves_the_output_and_every_range_unchanged(shape: tuple[int, ...], seed: int, zeros: bool, rule: Rule) -> None:
    w = weights(shape, seed, zeros=zeros)
    s = rule([w], shape[1])
    dilated = dilate(w, s)
    assert bool((s >= 1).all())
    assert bool((s <= MAX_DILATION).all())
    if rule is symmetric_bound:
        torch.testing.assert_close(dilated.flatten(1).abs().amax(1), w.flatten(1).abs().amax(1), rtol=1e-12, atol=0)
    else:
        for sign in (1, -1):  # a channel without positive (negative) weights has no maximum (minimum) of that sign to keep
            before, after = ((sign * v).flatten(1).amax(1).clamp(min=0) for v in (w, dilated))
            torch.testing.assert_close(after, before, rtol=1e-12, atol=0)
    x = torch.randn(2, shape[1], 7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    if w.dim() == 2:
        y, y_dilated = (torch.einsum("nchw,oc->nohw", v, m) for v, m in ((x, w), (x / s.reshape(1, -1, 1, 1), dilated)))
    else:
        y, y_dilated = torch.nn.functional.conv2d(x, w), torch.nn.functional.conv2d(x / s.reshape(1, -1, 1, 1), dilated)
    torch.testing.assert_close(y_dilated, y, rtol=0, atol=1e-10)


@given(shape=SHAPES, seed=st.integers(0, 2**31))
def test_the_symmetric_rule_never_allows_less_than_the_papers(shape: tuple[int, ...], seed: int) -> None:
    w = weights(shape, seed)
    assert bool((symmetric_bound([w], shape[1]) >= asymmetric_bound([w], shape[1])).all())


@given(layout=st.sampled_from([(6, 6, 2), (4, 8, 4), (8, 8, 8), (8, 4, 4), (3, 6, 3)]), seed=st.integers(0, 2**31),
       rule=st.sampled_from([symmetric_bound, asymmetric_bound]))  # fmt: skip
def test_a_grouped_and_an_ordinary_convolution_share_one_dilation(layout: tuple[int, int, int], seed: int, rule: Rule) -> None:
    outputs, channels, groups = layout
    grouped, plain = weights((outputs, channels // groups, 3, 3), seed), weights((5, channels, 1, 1), seed + 1)
    s = rule([grouped, plain], channels)
    assert torch.equal(s, torch.minimum(rule([grouped], channels), rule([plain], channels)))
    x = torch.randn(2, channels, 7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    for w, count in ((grouped, groups), (plain, 1)):
        dilated = dilate(w, s)
        for sign in (1, -1):
            before, after = ((sign * v).flatten(1).amax(1).clamp(min=0) for v in (w, dilated))
            if rule is asymmetric_bound:
                torch.testing.assert_close(after, before, rtol=1e-12, atol=0)
        torch.testing.assert_close(dilated.flatten(1).abs().amax(1), w.flatten(1).abs().amax(1), rtol=1e-12, atol=0)
        y, y_dilated = (torch.nn.functional.conv2d(v, m, groups=count) for v, m in ((x, w), (x / s.reshape(1, -1, 1, 1), dilated)))
        torch.testing.assert_close(y_dilated, y, rtol=0, atol=1e-10)


def test_a_groups_channels_are_bound_by_its_own_outputs_alone() -> None:
    w = torch.tensor([[1.0, 0.5], [1.0, 0.25], [0.1, 0.4], [0.2, 0.8]])  # two groups of two outputs and two inputs
    assert symmetric_bound([w], 4).tolist() == [1.0, 2.0, 4.0, 1.0]
    assert dilate(w, torch.tensor([1.0, 2.0, 3.0, 4.0])).tolist() == [
        pytest.approx(row) for row in ([1.0, 1.0], [1.0, 0.5], [0.3, 1.6], [0.6, 3.2])
    ]
    assert smoothquant(torch.tensor([1.0, 4.0, 1.0, 4.0]), [w]).tolist() == pytest.approx([1.0, 8**0.5, 5**0.5, 5**0.5])


def test_channels_that_hold_an_extreme_are_saturated() -> None:
    w = torch.tensor([[1.0, 0.25, -0.5], [0.1, 0.5, -0.2]])
    assert symmetric_bound([w], 3).tolist() == [1.0, 1.0, 2.0]
    assert asymmetric_bound([w], 3).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("rule", [symmetric_bound, asymmetric_bound])
def test_zeros_are_masked_and_an_all_zero_column_is_capped(rule: Rule) -> None:
    w = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.5, 0.0]])
    s = rule([w], 3)
    assert torch.isfinite(s).all()
    assert s[2] == MAX_DILATION
    assert s[1] == (2.0 if rule is symmetric_bound else 1.0)  # 0.5 is the second channel's maximum
    assert rule([torch.zeros(2, 3)], 3).tolist() == [MAX_DILATION] * 3


def test_all_consumers_of_a_tensor_bound_its_dilation() -> None:
    a, b = torch.tensor([[1.0, 0.25]]), torch.tensor([[1.0, 0.5], [0.1, 0.1]])
    assert symmetric_bound([a], 2).tolist() == [1.0, 4.0]
    assert symmetric_bound([a, b], 2).tolist() == [1.0, 1.0]


def statistics(channel_range: torch.Tensor, weight: torch.Tensor, step: float = 0.01) -> LayerStatistics:
    power = channel_range.pow(2) / 4
    return LayerStatistics(channel_range, power, torch.full((len(channel_range),), step), [weight], [weight_scale(weight, of_bits(4))])


def test_candidates_stay_within_one_and_the_bound() -> None:
    bound = torch.tensor([1.0, 4.0, 9.0, 16.0])
    given = statistics(torch.tensor([[1.0, 8.0, 1.0, 1.0], [1.0, 2.0, 10.0, 1.0]]), torch.tensor([[1.0, 0.25, 1 / 9, 1 / 16]]))
    found = candidates(bound, given)
    assert set(found) == {"none", "full", "half", "balanced", "range-setting", "range-setting half"}
    assert found["range-setting"].tolist() == [1.0, 4.0, 9.0, 1.0]
    for s in found.values():
        assert bool((s >= 1).all())
        assert bool((s <= bound).all())
    assert list(candidates(torch.ones(4), given)) == ["none"]


def test_relaxation_raises_the_bound_of_unsaturated_channels_only() -> None:
    bound = torch.tensor([1.0, 4.0, 9.0, 16.0])
    given = statistics(torch.tensor([[1.0, 8.0, 1.0, 1.0]]), torch.tensor([[1.0, 0.25, 1 / 9, 1 / 16]]))
    found = candidates(bound, given, relaxation=0.5)
    assert found["full"].tolist() == bound.tolist()
    assert found["full relaxed"].tolist() == [1.0, 6.0, 13.5, 24.0]
    assert set(found) >= {"half relaxed", "balanced relaxed"}


@given(seed=st.integers(0, 2**31), step=st.floats(1e-4, 1.0), groups=st.sampled_from([1, 2, 6]))
def test_the_balance_predicts_no_more_error_than_any_other_choice(seed: int, step: float, groups: int) -> None:
    w = weights((6, 6 // groups, 3, 3), seed).float()
    given = statistics(torch.rand(4, 6, generator=torch.Generator().manual_seed(seed)) + 0.1, w, step)
    bound = symmetric_bound([w], 6)
    own = [slice(g * 6 // groups, (g + 1) * 6 // groups) for g in range(groups)]  # a group's outputs, and its inputs

    def predicted(s: torch.Tensor) -> float:
        gain = 1 / given.channel_power.mean(dim=1)
        power = (gain[:, None] * given.channel_power).sum(dim=0)
        error = torch.zeros(())
        for g in own:
            through_x = (gain * given.step**2).sum() * (s[g] ** 2 * w[g].pow(2).sum(dim=(0, 2, 3))).sum()
            error += through_x + 9 * given.weight_steps[0][g].pow(2).sum() * (power[g] / s[g] ** 2).sum()
        return float(error)

    best = predicted(balanced(bound, given))
    for share in torch.linspace(0, 1, 9):
        assert best <= predicted(1 + share * (bound - 1)) * (1 + 1e-5)


def test_smoothquant_evens_out_activation_and_weight() -> None:
    w = torch.tensor([[1.0, 0.5, 0.0], [0.25, 4.0, 0.0]])
    s = smoothquant(torch.tensor([4.0, 1.0, 3.0]), [w])
    assert s.tolist() == [2.0, 0.5, 1.0]
    assert smoothquant(torch.tensor([0.0, 1.0, 1.0]), [w]).tolist()[0] == 1.0
