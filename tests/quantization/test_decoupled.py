"""``--sensitivity decoupled``: which layers answer for what, how that is judged, and what is chosen within a group's bytes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import LatteTransformer3DModel

import dq_deploy
from dq_deploy.errors import UsageError
from dq_deploy.quantization.bits.aspects import PREDICTION, condition_effect, conditions_differ, frame_changes, under_other_conditions
from dq_deploy.quantization.bits.budget import WeightBudget
from dq_deploy.quantization.bits.choose import choose
from dq_deploy.quantization.bits.decoupled import Judging, judging_of
from dq_deploy.quantization.bits.groups import Group, layers_by_group
from dq_deploy.quantization.bits.sensitivity import BitPair, Sensitivity, few_trajectories, sensitivities_on
from dq_deploy.quantization.calibration.source import Request
from dq_deploy.quantization.calibration.trajectories import Trajectories
from dq_deploy.quantization.config import QuantizeConfig
from dq_deploy.quantization.graph.products import GraphLayer
from dq_deploy.quantization.prepare import Prepared, prepare
from tests.tiny import FAST, scheduler
from tests.tiny_pipelines import randomized

VIDEO = (4, 4, 4, 4)  # as many frames as places: shapes do not tell which attention is over which
TEXT = {"encoder_hidden_states": torch.randn(4, 5, 16, generator=torch.Generator().manual_seed(1))}


class Latte(torch.nn.Module):
    """Attention within frames, to a text, and over frames."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.transformer: Any = LatteTransformer3DModel(
            num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4, num_layers=1, sample_size=4, patch_size=2,
            cross_attention_dim=16, caption_channels=16, video_length=4, norm_type="ada_norm_single", norm_elementwise_affine=False,
            attention_bias=True, activation_fn="gelu-approximate", num_embeds_ada_norm=1000,
        )  # fmt: skip

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor) -> torch.Tensor:
        """The prediction [N, 4, 4, 4, 4]."""
        predicted: torch.Tensor = self.transformer(sample, timestep, encoder_hidden_states).sample
        return predicted


@pytest.fixture(scope="module")
def prepared() -> Prepared:
    request = Request(scheduler(), VIDEO, conditions=TEXT)
    return prepare(randomized(Latte()), QuantizeConfig.build("w4a8", **{**FAST, "batch_size": 3}), request)


@pytest.fixture(scope="module")
def data(prepared: Prepared) -> Trajectories:
    return few_trajectories(prepared)


def test_groups_of_a_video_network_are_what_its_names_say(prepared: Prepared, data: Trajectories) -> None:
    judging, _ = judging_of(prepared, data)
    assert set(judging.groups) == {layer.name for layer in prepared.plan.quantized}

    def expected(name: str) -> Group:
        if "caption_projection" in name or "attn2" in name:
            return Group.CROSS_ATTENTION
        if "attn1" in name:
            return Group.TEMPORAL_ATTENTION if "temporal" in name else Group.SELF_ATTENTION
        return Group.FEED_FORWARD if ".ff." in name else Group.REST

    assert judging.groups == {name: expected(name) for name in judging.groups}
    assert set(judging.groups.values()) == set(Group)
    assert judging.notes == ()


def test_without_frames_no_attention_is_temporal(prepared: Prepared) -> None:
    found = layers_by_group(prepared.float_graph, prepared.plan.layers, [], frame_axis=None)
    assert Group.TEMPORAL_ATTENTION not in found.values()
    assert sum(group is Group.SELF_ATTENTION for group in found.values()) == 12


def test_what_each_aspect_sees() -> None:
    draw = torch.Generator().manual_seed(0)
    expected = torch.randn(4, 2, 3, 5, 5, generator=draw)  # two samples under two conditions each, three frames
    error = torch.randn(4, 2, 3, 5, 5, generator=draw)
    effect, changes = condition_effect(2, channels=2), frame_changes(2)
    alike = error.clone()
    alike[1::2] = alike[::2]  # the same under both conditions
    assert effect.noise(expected, expected + alike).max() < 1e-12
    still = error.clone()
    still[:] = still[:, :, :1]  # the same in every frame
    assert changes.noise(expected, expected + still).max() < 1e-12
    assert PREDICTION.noise(expected, expected + still).min() > 0.1
    expected_effect, error_effect = (value[1::2] - value[::2] for value in (expected, error))
    wanted = error_effect.flatten(1).pow(2).sum(1) / expected_effect.flatten(1).pow(2).sum(1)
    torch.testing.assert_close(effect.noise(expected, expected + error), wanted.double())
    variance = torch.cat([expected, 100 * error], dim=1)
    torch.testing.assert_close(effect.of(variance), effect.of(expected))  # guidance reads no predicted variance


def trajectories(conditions: torch.Tensor, per_seed: int = 1) -> Trajectories:
    samples = torch.arange(6.0).reshape(2, 3, 1, 1, 1)[:, : len(conditions)]
    return Trajectories(torch.tensor([1.0, 2.0]), samples, samples, {"c": conditions}, per_seed)


def test_samples_under_the_conditions_of_others() -> None:
    data = under_other_conditions(trajectories(torch.tensor([7, 8, 9])))
    assert data.conditions["c"].tolist() == [7, 9, 8, 7, 9, 8]
    assert data.samples[1].flatten().tolist() == [3, 3, 4, 4, 5, 5]
    assert conditions_differ(data)
    assert not conditions_differ(under_other_conditions(trajectories(torch.tensor([7, 7]))))
    assert not conditions_differ(trajectories(torch.tensor([7, 8])))
    assert conditions_differ(trajectories(torch.tensor([7, 8]), per_seed=2))


def made_up() -> tuple[list[Sensitivity], Judging]:
    """Two layers of equal size in each of two groups: what the second one's own aspect says is the reverse of the prediction."""
    effect = condition_effect(2, 1)

    def layer(name: str, prediction: float, own: float) -> Sensitivity:
        def tried(value: float) -> dict[tuple[int, int], torch.Tensor]:
            return {(4, 8): torch.tensor([value]), (8, 8): torch.tensor([value / 100])}

        return Sensitivity(name, 1000, 10, tried(prediction), {effect.name: tried(own)})

    measured = [layer("a", 5e-3, 1e-3), layer("b", 1e-3, 5e-3), layer("k", 4e-3, 1e-3), layer("v", 2e-3, 3e-3)]
    kinds = {"a": Group.REST, "b": Group.REST, "k": Group.CROSS_ATTENTION, "v": Group.CROSS_ATTENTION}
    return measured, Judging(kinds, {Group.CROSS_ATTENTION: effect})


def test_a_group_gets_the_bytes_that_the_prediction_grants_and_spends_them_by_its_own_aspect() -> None:
    measured, judging = made_up()
    settings = {x.layer: [(4, 8), (8, 8)] for x in measured}
    two = WeightBudget.parse(f"{4 * (500 + 120) + 2 * 500}B", "--auto-bits", snr=True)
    plain = choose(measured, settings, two, 4000)
    decoupled = choose(measured, settings, two, 4000, judging)
    assert (set(plain.keep), set(decoupled.keep)) == ({"a", "k"}, {"a", "v"})
    assert plain.weights_bytes == decoupled.weights_bytes
    assert plain.snr_db > decoupled.snr_db
    assert (plain.groups, [layer.group for layer in plain.layers]) == ([], [None] * 4)
    cross, rest = decoupled.groups
    assert (cross.group, cross.judged_by, cross.layers, cross.raised) == ("cross-attention", "what the condition changes", 2, 1)
    assert (rest.group, rest.judged_by, rest.snr_db) == ("the rest", "the prediction", decoupled.snr_db)
    assert cross.error_share == pytest.approx(0.4)  # (1 + 3) of 10, where the prediction says 6 of 12
    assert cross.snr_db == pytest.approx(-10 * math.log10(1e-5 + 5e-3 + 1e-3 + 3e-5))  # of all layers, a and v with 8 bits
    assert cross.snr_db_lowest < cross.snr_db < cross.snr_db_highest


def test_an_error_budget_is_of_the_prediction() -> None:
    measured, judging = made_up()
    settings = {x.layer: [(4, 8), (8, 8)] for x in measured}
    reached = choose(measured, settings, WeightBudget.parse("22dB", "--auto-bits", snr=True), 4000, judging)
    assert reached.snr_db >= 22
    assert "v" in reached.keep


def test_a_network_of_all_groups(prepared: Prepared, data: Trajectories) -> None:
    def settings(_: GraphLayer) -> list[BitPair]:
        return [(4, 8), (8, 8)]

    layers = prepared.plan.quantized
    judging, samples = judging_of(prepared, data)
    assert (judging.every, samples.per_seed) == (2, 2)
    plain = sensitivities_on(prepared, data, layers, settings)
    found = sensitivities_on(prepared, samples, layers, settings, aspects=list(judging.aspects.values()))
    for one, other in zip(plain, found, strict=True):
        torch.testing.assert_close(other.noise[4, 8][::2], one.noise[4, 8], rtol=1e-2, atol=1e-12)  # judged on the same samples
        assert len(other.aspects["what the condition changes"][4, 8]) == len(one.noise[4, 8])
    caption = next(x for x in found if "caption_projection.linear_1" in x.layer)
    assert caption.aspects["what the condition changes"][4, 8].mean() > caption.noise[4, 8].mean()
    budget = WeightBudget.parse("0.3x", "--auto-bits", snr=True)
    by_prediction, decoupled = (
        choose(found, {x.name: settings(x) for x in layers}, budget, 15000, x) for x in (replace(judging, aspects={}), judging)
    )
    others = [x.layer for x in decoupled.layers if x.group not in {"cross-attention", "temporal attention"}]
    assert [name in decoupled.keep for name in others] == [name in by_prediction.keep for name in others]
    assert [group.judged_by for group in decoupled.groups] == [
        "the prediction", "what the condition changes", "what changes between frames", "the prediction", "the prediction",
    ]  # fmt: skip
    for group, before in zip(decoupled.groups, by_prediction.groups, strict=True):
        assert before.judged_by == "the prediction"
        assert group.snr_db_lowest <= group.snr_db <= group.snr_db_highest
        assert group.raised == sum(x.raised for x in decoupled.layers if x.group == group.group)


def test_what_it_is_judged_on(prepared: Prepared, data: Trajectories) -> None:
    guided = under_other_conditions(data)
    judging, samples = judging_of(prepared, guided)
    assert (judging.every, samples) == (1, guided)
    same = replace(data, conditions={name: value[:1].expand_as(value) for name, value in data.conditions.items()})
    judging, _ = judging_of(prepared, same)
    assert judging.aspect(Group.CROSS_ATTENTION) is PREDICTION
    assert judging.notes == ("attention to a condition is judged by the prediction, since all samples have the same one",)


def test_a_rule_that_is_not_known_is_refused() -> None:
    with pytest.raises(UsageError, match="sensitivity is snr or decoupled, not 'clip'"):
        dq_deploy.choose_bits(torch.nn.Identity(), "0.2x", sensitivity="clip")
