from __future__ import annotations

import re
from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import GraphModule

from dq_deploy.errors import UsageError
from dq_deploy.quantization.graph.insertion import insert_quantizers
from dq_deploy.quantization.graph.modules import named_layers, named_quantizers
from dq_deploy.quantization.graph.plan import Plan
from tests.tiny import captured, planned

TIMESTEPS = torch.tensor([1.0, 251.0])


def rewritten(model: nn.Module, **options: Any) -> tuple[GraphModule, Plan]:
    """A captured graph (copied) or a module, with the quantizers in it."""
    graph = deepcopy(model) if isinstance(model, GraphModule) else captured(model)
    plan = planned(graph, **options)
    insert_quantizers(graph, plan, TIMESTEPS)
    return graph, plan


def quantizers_of(plan: Plan, word: str) -> set[str]:
    return {q for layer in plan.quantized if word in layer.name for q in layer.quantizers}


class Base(nn.Module):
    """A first and a last convolution, and what the subclass puts between them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        h = h + t[:, None, None, None] / 1000
        return self.last(self.middle(h))


def test_consumers_of_one_tensor_share_one_quantizer(unet_graph: GraphModule) -> None:
    _, plan = rewritten(unet_graph)
    assert len(quantizers_of(plan, "time_emb_proj")) == 1
    attention = "mid_block.attentions.0"
    assert len({q for name in ("to_q", "to_k", "to_v") for q in quantizers_of(plan, f"{attention}.{name}")}) == 1


def test_a_tensor_read_by_a_convolution_and_a_linear_layer_has_a_quantizer_for_each_axis() -> None:
    class Both(Base):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.linear = nn.Conv2d(8, 8, 1), nn.Linear(8, 8)

        def middle(self, h: torch.Tensor) -> torch.Tensor:
            return self.conv(h) + self.linear(h)

    graph, plan = rewritten(Both())
    assert quantizers_of(plan, "conv").isdisjoint(quantizers_of(plan, "linear"))
    assert {q.axis for _, q in named_quantizers(graph)} == {1, -1}


def test_by_default_the_first_layer_is_float_and_the_last_has_eight_bits(plain_graph: GraphModule) -> None:
    _, plan = rewritten(plain_graph, preset="w4a4")
    assert [(layer.name, "input" in str(layer.float_reason)) for layer in plan.left_float] == [("first", True)]
    bits = {layer.name: (layer.weight_bits, layer.activation_bits) for layer in plan.quantized}
    assert bits.pop("last") == (8, 8)
    assert set(bits.values()) == {(4, 4)}


def test_patches_cut_and_put_together_hide_neither_the_first_layer_nor_the_last() -> None:
    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into, self.between, self.out = nn.Linear(4, 16), nn.Linear(16, 16), nn.Linear(16, 4)

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            tokens = x.reshape(-1, 1, 4, 2, 4, 2).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # (N, 16, 4)
            tokens = self.out(self.between(self.into(tokens)) + t[:, None, None])
            return torch.einsum("nhwpq->nhpwq", tokens.reshape(-1, 4, 4, 2, 2)).reshape(x.shape)

    _, plan = rewritten(Patches(), preset="w4a4", max_float_share=0.5)
    assert [layer.name for layer in plan.left_float] == ["into"]
    assert {layer.name: layer.weight_bits for layer in plan.quantized} == {"between": 4, "out": 8}


class Prepared(Base):
    """What comes before the first layers: ``prepare`` gives what they read, from the sample, the time [N, 1, 1, 1] and a condition."""

    def __init__(self, channels: int, size: int = 8) -> None:
        super().__init__()
        self.size, self.stem = size, nn.Conv2d(channels, 8, 3, padding=1)
        self.shortcut, self.time = nn.Conv2d(channels, 8, 1), nn.Linear(4, 8)
        self.hint, self.second, self.third = nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

    def prepare(self, x: torch.Tensor, t: torch.Tensor, hint: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def forward(self, x: torch.Tensor, t: torch.Tensor, hint: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        t = t[:, None, None, None] / 1000
        angles = torch.cat([t.flatten(1).sin(), t.flatten(1).cos(), torch.ones_like(x)[:, 0, :1, 0], t.expand_as(x)[:, 0, :1, 0]], dim=1)
        y = self.prepare(x, t, hint)
        h = F.silu(self.stem(y) + self.time(angles)[:, :, None, None])
        h = self.second(h) + h.mean() * x + self.third(h + x)  # the sample added to what a product made of it
        return self.last(F.interpolate(h + self.shortcut(y), size=x.shape[2:]))


class Concatenated(Prepared):
    def prepare(self, x: torch.Tensor, t: torch.Tensor, hint: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        return torch.cat([x, self.hint(hint), torch.zeros_like(x)], dim=1)


class Scaled(Prepared):
    def prepare(self, x: torch.Tensor, t: torch.Tensor, hint: torch.Tensor) -> torch.Tensor:
        return self.hint(hint) + x * (1 + t**2) ** -0.5 - 0.5


class Enlarged(Prepared):
    def prepare(self, x: torch.Tensor, t: torch.Tensor, hint: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        return F.group_norm(F.pad(x, (0, 0, 0, 0, 0, 1)) + self.hint(hint), 1).clamp(-3, 3)


class Unshuffled(Prepared):
    def prepare(self, x: torch.Tensor, t: torch.Tensor, hint: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        return F.interpolate(F.pixel_unshuffle(x + self.hint(hint), 2), scale_factor=2)


class Fourier(Prepared):
    def prepare(self, x: torch.Tensor, t: torch.Tensor, hint: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        angles = torch.cat([x * 8, x * 16, hint.mean() + self.hint(hint)], dim=1)
        return torch.cat([x, angles.sin(), angles.cos()], dim=1)


@pytest.mark.parametrize(
    "model", [Concatenated(3), Scaled(1), Enlarged(2), Unshuffled(4), Fourier(7)], ids=lambda model: type(model).__name__
)
def test_the_first_layers_are_those_that_see_the_sample_before_a_product_has_mixed_it(model: nn.Module) -> None:
    plan = planned(captured(model, hint=torch.randn(2, 1, 8, 8)), max_float_share=1.0)
    first = {layer.name.split("#")[0] for layer in plan.left_float}
    assert first == {"stem", "shortcut"}
    assert {"hint", "time", "second", "third", "last"} <= {layer.name for layer in plan.quantized}


@pytest.mark.parametrize("cast", [torch.Tensor.type_as, lambda angles, x: angles.to(x)], ids=["type_as", "to"])
def test_what_takes_only_its_type_from_the_sample_is_no_first_layer(cast: Any) -> None:
    """As the adaptive norms of Z-Image have it."""

    class Adapted(Base):
        def __init__(self) -> None:
            super().__init__()
            self.time = nn.Linear(4, 8)

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            angles = cast((t[:, None] * torch.arange(4)).sin(), x)
            return self.last(self.first(x) * self.time(angles)[:, :, None, None])

    plan = planned(captured(Adapted()), max_float_share=1.0)
    assert [layer.name for layer in plan.left_float] == ["first"]
    assert [layer.name for layer in plan.quantized] == ["time", "last"]


class Unread(Base):
    """No product reads the sample, and none gives the output."""

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x * self.last(self.first(t[:, None, None, None] + torch.zeros_like(x)))


def test_a_first_or_last_layer_that_is_not_there_is_named_when_something_is_asked_of_it() -> None:
    graph = captured(Unread())
    assert len(planned(graph).quantized) == 2
    with pytest.raises(UsageError, match="no layer matches '@first', '@last'") as caught:
        planned(graph, keep={"@first": 8, "@last": "float"})
    assert "@first and @last are those that read the sample as it is, and whose output is the model's" in str(caught.value)


def test_keep_patterns_choose_bits_or_float(plain_graph: GraphModule) -> None:
    _, plan = rewritten(plain_graph, keep={"embed.*": 6, "grouped": "float", "@first": 8}, max_float_share=0.5)
    assert [(layer.name, layer.float_reason) for layer in plan.left_float] == [("grouped", "keep grouped=float")]
    assert {layer.weight_bits for layer in plan.quantized if layer.name.startswith("embed.")} == {6}
    assert next(layer for layer in plan.quantized if layer.name == "first").weight_bits == 8


def test_a_later_pattern_overrides_an_earlier_one(plain_graph: GraphModule) -> None:
    _, plan = rewritten(plain_graph, keep={"first": 8, "out": "float", "o*": 6})
    bits = {layer.name: layer.weight_bits for layer in plan.quantized}
    assert (bits["first"], bits["out"]) == (8, 6)


def test_a_pattern_that_matches_nothing_names_it_and_some_layers(plain_graph: GraphModule) -> None:
    with pytest.raises(UsageError, match="'nowhere'") as caught:
        rewritten(plain_graph, keep={"nowhere": 8})
    assert "embed.0" in str(caught.value)


def test_too_much_in_float_names_the_largest_layers(plain_graph: GraphModule) -> None:
    with pytest.raises(UsageError, match="stay in float") as caught:
        rewritten(plain_graph, keep={"grouped": "float"}, max_float_share=0.02)
    assert "grouped" in str(caught.value)
    allowed = re.search(r"""echo '\{"max_float_share": ([\d.]+)\}' > options.json, then --config options.json""", str(caught.value))
    assert allowed
    rewritten(plain_graph, keep={"grouped": "float"}, max_float_share=float(allowed[1]))


def test_a_model_without_products_is_refused() -> None:
    class Nothing(nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return x + t[:, None, None, None]

    with pytest.raises(UsageError, match="no convolution"):
        rewritten(Nothing())


class Unsupported(Base):
    def __init__(self) -> None:
        super().__init__()
        self.transposed, self.table = nn.ConvTranspose2d(8, 8, 3, padding=1, groups=2), nn.Parameter(torch.eye(8))

    def middle(self, h: torch.Tensor) -> torch.Tensor:
        h = self.transposed(h)
        h = torch.einsum("nchw,oc,oh->nohw", h, self.table, self.table)
        h = F.conv2d(h, self.table[:, :, None, None] * h.mean())
        return F.linear(h.mean(0), self.table) + h


def test_products_without_an_integer_form_stay_in_float_and_say_why() -> None:
    graph, plan = rewritten(Unsupported(), max_float_share=1.0)
    reasons = {layer.op: str(layer.float_reason) for layer in plan.left_float if layer.name != "first"}
    assert set(reasons) == {"conv_transpose2d", "einsum", "conv2d", "linear"}
    assert all(word in reasons[word] for word in ("conv_transpose2d", "einsum"))
    assert "computed" in reasons["conv2d"]
    assert "not the batch" in reasons["linear"]
    assert [name for name, _ in named_layers(graph)] == ["last"]


def test_probabilities_have_constant_tables_only_on_the_left() -> None:
    class Attention(Base):
        def middle(self, h: torch.Tensor) -> torch.Tensor:
            tokens = h.flatten(2)
            left = torch.softmax(torch.matmul(tokens, tokens.transpose(1, 2)), dim=-1)
            right = torch.softmax(torch.matmul(tokens.transpose(1, 2), tokens), dim=-1)
            return torch.matmul(torch.matmul(left, tokens), right).reshape(h.shape)

    graph, plan = rewritten(Attention())
    quantizers = dict(named_quantizers(graph))
    fixed = {name for name, q in quantizers.items() if q.fixed}
    products = {layer.name: layer.quantizers for layer in plan.quantized if layer.op == "matmul"}
    assert len(products) == 4
    assert len(fixed) == 1
    assert fixed <= {q[0] for q in products.values()}
    (name,) = fixed
    assert quantizers[name].scale_table().tolist() == pytest.approx([1 / 255] * 2)
    assert quantizers[name].zero_point_table().tolist() == [-128] * 2
    others = {q for pair in products.values() for q in pair} - fixed
    assert all(quantizers[q].symmetric for q in others)


def test_a_softmax_of_anything_but_scores_has_tables_of_its_own() -> None:
    class LinearAttention(Base):
        def middle(self, h: torch.Tensor) -> torch.Tensor:
            keys = h.flatten(2).softmax(dim=-1)  # over all pixels: far below 1 everywhere
            return torch.matmul(torch.matmul(keys, h.flatten(2).transpose(1, 2)), h.flatten(2)).reshape(h.shape)

    graph, plan = rewritten(LinearAttention())
    assert [layer.op for layer in plan.quantized] == ["matmul", "matmul", "conv2d"]
    assert not any(q.fixed for _, q in named_quantizers(graph))


@pytest.mark.parametrize("softmax_bits", [8, 4])
def test_probabilities_have_bits_of_their_own(unet_graph: GraphModule, softmax_bits: int) -> None:
    graph, plan = rewritten(unet_graph, preset="w4a4", **({} if softmax_bits == 8 else {"softmax_bits": softmax_bits}))
    quantizers = dict(named_quantizers(graph))
    product = next(layer for layer in plan.quantized if layer.name.endswith("matmul_1"))
    probabilities, values = (quantizers[name] for name in product.quantizers)
    assert (probabilities.bits, values.bits) == (softmax_bits, 4)
    assert probabilities.scale_table().tolist() == pytest.approx([1 / (2**softmax_bits - 1)] * 2)


def test_layers_are_conserved_and_float_weights_forgotten(unet_graph: GraphModule) -> None:
    graph, plan = rewritten(unet_graph)
    assert sorted(name for name, _ in named_layers(graph)) == sorted(layer.name for layer in plan.quantized)
    assert {name for name, _ in graph.named_buffers() if name.endswith("conv1.weight")} == set()
    total = sum(layer.macs for layer in plan.layers)
    assert plan.float_fraction == sum(layer.macs for layer in plan.left_float) / total


def test_multiply_accumulates_per_sample(plain_graph: GraphModule) -> None:
    plan = planned(plain_graph)
    macs = {layer.name: layer.macs for layer in plan.layers}
    assert macs["first"] == 8 * 8 * 8 * 9
    assert macs["down"] == 4 * 4 * 16 * 8 * 9
    assert macs["depthwise"] == 4 * 4 * 16 * 9
    assert macs["qkv"] == 16 * 48 * 16
    assert macs["matmul"] == 16 * 16 * 16


def test_a_module_called_twice_is_two_layers() -> None:
    class Twice(Base):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 1)

        def middle(self, h: torch.Tensor) -> torch.Tensor:
            return self.conv(F.silu(self.conv(h)))

    graph, _ = rewritten(Twice())
    assert {"conv", "conv_1"} <= {name for name, _ in named_layers(graph)}
