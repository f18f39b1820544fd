"""Named methods: what they fill in, what a user's own options do to it, and what they train."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dq_deploy.errors import UsageError
from dq_deploy.quantization import quantize
from dq_deploy.quantization.choices import Dilation
from dq_deploy.quantization.config import QuantizeConfig
from dq_deploy.quantization.graph.products import find_layers
from dq_deploy.quantization.graph.roles import layers_by_role
from dq_deploy.quantization.methods import METHODS
from tests.flow import small_unet
from tests.tiny import FAST, captured, scheduler


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_a_configuration_and_the_users_options_win(name: str) -> None:
    config = QuantizeConfig.build("w8a8", method=name, activation_bits=6)
    options = dict(METHODS[name].options)
    assert (config.method, config.activation_bits) == (name, 6)
    assert config.model_dump(include=set(options)) == options
    assert QuantizeConfig.build(method=name, dilation="symmetric").dilation is Dilation.SYMMETRIC


def test_the_default_fills_in_nothing() -> None:
    assert QuantizeConfig.build() == QuantizeConfig(activations="auto")


def test_an_unknown_method_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(
        UsageError,
        match=r"unknown method 'quest2'\ndid you mean quest, quest-paper\? methods: dilatequant, quest, quest-paper, vidit-q, vqdm",
    ):
        QuantizeConfig.build(method="quest2")


def test_what_a_method_sets_is_not_blamed_on_the_user() -> None:
    with pytest.raises(UsageError, match=r"(?s)method vidit-q does not go with preset w4a16 .*the method sets activations, dilation"):
        QuantizeConfig.build("w4a16", method="vidit-q")
    with pytest.raises(UsageError, match="^bad quantization options: steps"):
        QuantizeConfig.build(method="vidit-q", steps=0)


@pytest.mark.parametrize("name", ["low_rank", "steps", "guidance_scale", "final_samples"])
def test_a_truth_value_is_no_number(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name}: a number is needed .got True."):
        QuantizeConfig.build(**{name: True})


def test_an_alpha_that_nothing_uses_is_refused() -> None:
    with pytest.raises(UsageError, match="smoothquant_alpha would be ignored: dilation is none"):
        QuantizeConfig.build(smoothquant_alpha=0.2, dilation="none")
    assert QuantizeConfig.build(smoothquant_alpha=0.2).smoothquant_alpha == 0.2
    assert QuantizeConfig.build(smoothquant_alpha=0.5, dilation="none").dilation is Dilation.NONE
    assert QuantizeConfig.build(method="vidit-q", dilation="none").smoothquant_alpha == 0.5


class Transformer(torch.nn.Module):
    """A block of diffusers' transformers: attention and a feed-forward pair, a timestep's embedding that scales its norm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.proj_in, self.proj_out = torch.nn.Linear(8, 16), torch.nn.Linear(16, 8)
        self.embed = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.SiLU(), torch.nn.Linear(16, 32))
        self.qkv, self.out = torch.nn.Linear(16, 48), torch.nn.Linear(16, 16)
        self.up, self.down = torch.nn.Linear(16, 64), torch.nn.Linear(32, 16)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        h = self.proj_in(x)
        scale, shift = self.embed(t[:, None] / torch.tensor([1.0, 10.0, 100.0, 1000.0])).chunk(2, dim=1)
        q, k, v = self.qkv(torch.nn.functional.layer_norm(h, (16,)) * scale[:, None] + shift[:, None]).chunk(3, dim=-1)
        h = h + self.out(torch.softmax(q @ k.transpose(1, 2) / 4, dim=-1) @ v)
        value, gate = self.up(torch.nn.functional.layer_norm(h, (16,))).chunk(2, dim=-1)
        return self.proj_out(h + self.down(value * torch.nn.functional.gelu(gate)))


def test_roles_come_from_how_values_flow() -> None:
    graph = captured(Transformer(), (5, 8))
    assert layers_by_role(graph, list(find_layers(graph))) == {
        "@time": {"embed.0", "embed.2"},
        "@attention": {"qkv", "matmul", "matmul_1", "out"},
        "@feed-forward": {"up", "down"},
    }


def test_roles_of_a_unet_are_what_its_names_say() -> None:
    graph = captured(small_unet())
    layers = list(find_layers(graph))
    roles = layers_by_role(graph, layers)
    names = {layer.name for layer in layers}
    assert roles["@time"] == {name for name in names if "time_emb" in name}
    assert roles["@attention"] == {name for name in names if "attentions" in name}
    assert roles["@feed-forward"] == set()


@pytest.mark.parametrize(
    ("method", "moved", "still"), [("quest", {"up", "down"}, {"qkv", "out"}), ("quest-paper", {"qkv", "out"}, {"up", "down"})]
)
def test_quest_trains_its_layers_and_no_others(method: str, moved: set[str], still: set[str], tmp_path: Path) -> None:
    """What is not trained has the weights that it would have without any training."""
    from dq_deploy.quantization import load_checkpoint

    options = {**FAST, "scheduler": scheduler(), "sample_shape": (5, 8), "preset": "w4a8", "max_float_share": 1.0, "method": method}
    options |= {"rounding": "nearest"}  # so few iterations move no code of GPTQ
    plain, trained = (
        load_checkpoint(quantize(Transformer(), tmp_path / str(n), **{**options, "iterations": n, "output_bias": False}).path).layers
        for n in (0, 20)
    )

    def same(name: str) -> bool:
        a, b = (x[name].state_dict() | {"codes": x[name].frozen[0]} for x in (plain, trained))  # type: ignore[union-attr,index]
        return all(torch.equal(a[key], b[key]) for key in ("codes", "bias"))

    assert all(same(name) for name in still | {"proj_out"})
    assert not any(same(name) for name in moved)
