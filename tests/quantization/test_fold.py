from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import DiTTransformer2DModel, UNet2DConditionModel
from torch import nn
from torch.fx import GraphModule, Interpreter, Node

from dq_deploy.quantization.calibration.sampling_loop import SamplingLoop
from dq_deploy.quantization.checkpoint import freeze
from dq_deploy.quantization.choices import Dilation
from dq_deploy.quantization.graph.fold import fold_dilations
from dq_deploy.quantization.graph.modules import named_layers, named_quantizers
from dq_deploy.quantization.initial.initialize import quantizer_groups
from dq_deploy.quantization.quantizers import Quantized
from dq_deploy.quantization.weights import QuantizedWeight
from tests.tiny import SHAPE, captured, quantized_copy, scheduler, snr_db


def tiny_text_unet() -> UNet2DConditionModel:
    """Transformer blocks with LayerNorm, cross-attention and GEGLU."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8,), norm_num_groups=4,
        cross_attention_dim=8, attention_head_dim=4, down_block_types=("CrossAttnDownBlock2D",), up_block_types=("UpBlock2D",),
        mid_block_type=None,
    ).eval()  # fmt: skip


def tiny_dit() -> DiTTransformer2DModel:
    """The adaLN of DiT: without an affine of its own."""
    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=1, out_channels=1, num_layers=2, sample_size=8, patch_size=2,
        num_embeds_ada_norm=10, norm_num_groups=4,
    )  # fmt: skip
    return model.eval()


CONDITIONS: dict[str, dict[str, torch.Tensor]] = {
    "text": {"encoder_hidden_states": torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(1))},
    "dit": {"class_labels": torch.tensor([1, 2, 3, 4])},
}


def dilated(graph: GraphModule, conditions: dict[str, torch.Tensor] | None = None, *, only: str = "", **options: Any) -> GraphModule:
    """A frozen quantized copy whose quantizers all divide by some s from 1 to 8, chosen at random."""
    data = SamplingLoop(scheduler(), 2, SHAPE, conditions or {}).collect(_call(graph), range(4), batch_size=4)
    quantized, _ = quantized_copy(graph, data, rule=Dilation.NONE, **options)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for group in (g for groups in quantizer_groups(quantized).values() for g in groups):
            s = 1 + 7 * torch.rand(group.quantizer.dilation.shape, generator=generator)
            if not group.layers or only not in group.name or any(getattr(x, "groups", 1) > 1 for x in group.layers.values()):
                continue
            group.quantizer.dilation.copy_(s)
            for layer in group.layers.values():
                layer.set_weight(layer.weight * s.reshape(1, -1, *[1] * (layer.weight.dim() - 2)))
    freeze(quantized)
    return quantized


def _call(graph: GraphModule) -> Any:
    names = [str(n.target) for n in graph.graph.nodes if n.op == "placeholder"]
    return lambda x, t, **conditions: graph(*[{names[0]: x, "timestep": t, **conditions}[name] for name in names])


class _Forced(Interpreter):
    """Runs a quantized graph; every quantizer's codes are kept, and then replaced by the known ones, so that no flip of one cascades."""

    def __init__(self, model: GraphModule, known: dict[str, Quantized] | None = None) -> None:
        super().__init__(model)
        self.known, self.seen = known, dict[str, Quantized]()

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Quantized):
            self.seen[n.name] = result
            return self.known[n.name] if self.known else result
        return result


def assert_same(before: GraphModule, after: GraphModule, *inputs: torch.Tensor) -> None:
    """Every quantizer's codes up to ties, and the output on equal codes up to rounding."""
    first = _Forced(before)
    with torch.no_grad():
        expected = first.run(*inputs)
        second = _Forced(after, first.seen)
        assert snr_db(expected, second.run(*inputs)) > 100
    for name, known in first.seen.items():
        difference = (second.seen[name].codes - known.codes).abs()
        assert float(difference.max()) <= 1, name
        assert int((difference > 0).sum()) <= max(1, 1e-4 * difference.numel()), name
        assert float(known.codes.abs().max()) > 1 or not float(known.codes.abs().max()), name


def inputs_of(graph: GraphModule, conditions: dict[str, torch.Tensor] | None = None, *, batch: int = 3) -> list[torch.Tensor]:
    torch.manual_seed(4)
    values = {"timestep": torch.linspace(0, 500, batch), **{k: v[:batch] for k, v in (conditions or {}).items()}}
    names = [str(n.target) for n in graph.graph.nodes if n.op == "placeholder"]
    return [values[name] if name in values else torch.randn(batch, *SHAPE) for name in names]


@pytest.fixture(scope="module", params=["unet", "text", "dit"])
def case(request: pytest.FixtureRequest) -> tuple[str, GraphModule, dict[str, torch.Tensor]]:
    if request.param == "unet":
        return "unet", request.getfixturevalue("unet_graph"), {}
    conditions = CONDITIONS[request.param]
    model = tiny_text_unet() if request.param == "text" else tiny_dit()
    return request.param, captured(model, **conditions), conditions


EXPECTED = {
    "unet": {"attentions.0.to_q": "group_norm"},
    "text": {
        "attn1.to_q.input": "norm1", "attn2.to_q.input": "norm2", "ff.net.0.proj.input": "norm3", "ff.net.2.input": "ff.net.0.proj",
        "proj_in.input": ".norm.weight",
    },
    "dit": {"attn1.to_q.input": "norm1.linear", "ff.net.0.proj.input": "norm1.linear", "proj_out_2.input": "proj_out_1"},
}  # fmt: skip


@pytest.mark.parametrize("activations", ["per-timestep", "per-token"])
def test_what_is_folded_changes_by_rounding_only(case: tuple[str, GraphModule, dict[str, torch.Tensor]], activations: str) -> None:
    kind, graph, conditions = case
    before = dilated(graph, conditions, activations=activations)
    after = deepcopy(before)
    folded = fold_dilations(after)
    for pattern, place in EXPECTED[kind].items():
        hits = {name: places for name, places in folded.items() if pattern in name}
        assert hits, pattern
        assert all(any(place in p for p in places) for places in hits.values()), hits
    quantizers = dict(named_quantizers(after))
    assert all(bool((quantizers[name].dilation == 1).all()) for name in folded)
    still = {name for name, q in quantizers.items() if bool((q.dilation != 1).any())}
    assert still
    assert still.isdisjoint(folded)
    assert_same(before, after, *inputs_of(graph, conditions))
    for (name, one), (_, other) in zip(named_layers(before), named_layers(after), strict=True):
        if isinstance(one, QuantizedWeight) and isinstance(other, QuantizedWeight):
            assert one.frozen is not None
            assert other.frozen is not None
            assert torch.equal(one.frozen[0], other.frozen[0]), name


def test_activations_behind_a_nonlinearity_a_residual_or_an_attention_product_keep_the_multiply(
    case: tuple[str, GraphModule, dict[str, torch.Tensor]],
) -> None:
    kind, graph, conditions = case
    folded = fold_dilations(dilated(graph, conditions))
    kept = {
        "unet": ("conv1", "conv2", "to_out", "time_emb"),
        "text": ("conv1", "conv2", "to_out", "proj_out"),
        "dit": ("to_out", "ff.net.2"),
    }
    for name in folded:
        assert not any(word in name for word in kept[kind]), name


class Base(nn.Module):
    """A first convolution, what the subclass puts behind it, and a last one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 1, 3, padding=1)
        self.inner, self.other, self.norm = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(2, 8)
        with torch.no_grad():
            self.norm.weight.uniform_(0.5, 2)
            self.norm.bias.uniform_(-1, 1)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.last(F.silu(self.middle(self.first(x) + t[:, None, None, None] / 1000)))


class Straight(Base):
    def middle(self, h: torch.Tensor) -> torch.Tensor:
        return self.inner(self.norm(h))


class Rectified(Base):
    """A layer's output through a ReLU, a transpose and an upsampling."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Conv2d(8, 8, 3, padding=1, stride=2)

    def middle(self, h: torch.Tensor) -> torch.Tensor:
        return self.other(F.interpolate(F.relu(self.inner(h)).transpose(2, 3), scale_factor=2.0))


class ReadTwice(Base):
    """The norm's output is a residual too."""

    def middle(self, h: torch.Tensor) -> torch.Tensor:
        n = self.norm(h)
        return self.inner(n) + n


class SharedNorm(Base):
    def middle(self, h: torch.Tensor) -> torch.Tensor:
        return self.inner(self.norm(h)) + self.other(self.norm(h * 2))


class TwoKinds(Base):
    """One tensor, read along two axes: two quantizers with two vectors s."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def middle(self, h: torch.Tensor) -> torch.Tensor:
        n = self.norm(h)
        return self.inner(n) + self.linear(n)


class NoAffine(Base):
    def middle(self, h: torch.Tensor) -> torch.Tensor:
        return self.inner(F.group_norm(h, 2))


class Halves(Base):
    """Three parts of one layer: two are folded separately, the third is read by someone else."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(8, 24, 1)

    def middle(self, h: torch.Tensor) -> torch.Tensor:
        a, b, c = self.wide(h).chunk(3, dim=1)
        return self.inner(a * torch.sigmoid(c)) + self.other(b) + c


class Overlap(Halves):
    """The same channels, reached by a slice and by a chunk."""

    def middle(self, h: torch.Tensor) -> torch.Tensor:
        w = self.wide(h)
        return self.inner(w[:, 4:12]) + self.other(w[:, 8:16])


class Squared(Base):
    def middle(self, h: torch.Tensor) -> torch.Tensor:
        n = self.inner(h)
        return self.other(n * n)


class BySubtraction(Base):
    """Terms, a number, a parameter and a quotient; a heads' reshape within the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.linspace(-1, 1, 8)[:, None, None])

    def middle(self, h: torch.Tensor) -> torch.Tensor:
        scale = self.inner(h).unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2)
        return self.other((self.norm(h) - self.shift) / (2 + h.square()) + scale - 0.5)


CASES: list[tuple[type[Base], str, list[str] | None]] = [
    (Straight, "inner.input", ["norm.weight", "norm.bias"]),
    (Rectified, "other.input", ["inner"]),
    (ReadTwice, "inner.input", None),
    (SharedNorm, "inner.input", None),
    (TwoKinds, "inner.input", None),
    (NoAffine, "inner.input", None),
    (Halves, "inner.input", ["wide"]),
    (Halves, "other.input", ["wide"]),
    (Overlap, "inner.input", None),
    (Squared, "other.input", None),
    (BySubtraction, "other.input", ["norm.weight", "norm.bias", "shift", "inner", "other.input.constant_1"]),
]


@pytest.mark.parametrize(("model", "quantizer", "places"), CASES)
def test_where_a_division_goes(model: type[Base], quantizer: str, places: list[str] | None) -> None:
    graph = captured(model())
    before = dilated(graph)
    after = deepcopy(before)
    folded = fold_dilations(after)
    assert folded.get(quantizer) == places
    assert_same(before, after, *inputs_of(graph))


def test_rows_of_v_take_the_division_only_where_the_attention_product_is_in_float() -> None:
    class Attention(Base):
        def __init__(self) -> None:
            super().__init__()
            self.qk, self.v, self.out = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

        def middle(self, h: torch.Tensor) -> torch.Tensor:
            x = h.flatten(2).transpose(1, 2)
            q = self.qk(x).unflatten(-1, (2, 4)).transpose(1, 2)
            v = self.v(x).unflatten(-1, (2, 4)).transpose(1, 2)
            weights = torch.softmax(torch.matmul(q, q.transpose(-1, -2)), dim=-1)
            return self.out(torch.matmul(weights, v).transpose(1, 2).flatten(2)).transpose(1, 2).reshape(h.shape)

    graph = captured(Attention())
    assert "out.input" not in fold_dilations(dilated(graph))
    before = dilated(graph, keep={"matmul*": "float"}, max_float_share=1.0)
    after = deepcopy(before)
    assert fold_dilations(after)["out.input"] == ["v"]
    assert_same(before, after, *inputs_of(graph))


def test_a_wrong_fold_would_be_seen() -> None:
    graph = captured(Straight())
    before = dilated(graph)
    after = deepcopy(before)
    fold_dilations(after)
    with torch.no_grad():
        after.get_buffer("norm.bias")[3] *= 1.01
    with pytest.raises(AssertionError):
        assert_same(before, after, *inputs_of(graph))
