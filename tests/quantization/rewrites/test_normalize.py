"""Ways to write products, one by one: the captured graph is the model, and every product in it can be quantized."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import GraphModule
from torch.utils.checkpoint import checkpoint

from dq_deploy.quantization.graph.capture import capture
from dq_deploy.quantization.graph.edit import aten
from dq_deploy.quantization.graph.products import GraphLayer, find_layers

C, T = 8, 16


class Words(nn.Module):
    """A sample [N, 8, 16] and whatever ``say`` makes of it with a few parameters."""

    def __init__(self, say: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.say = say
        self.matrix, self.vector = nn.Parameter(torch.randn(C, 3 * C) / 3), nn.Parameter(torch.randn(3 * C))
        self.tokens = nn.Parameter(torch.randn(4, T) / 4)
        self.conv, self.same = nn.Conv1d(C, 2 * C, 3, padding=1, stride=2), nn.Conv1d(C, C, 5, padding="same", dilation=2, groups=2)
        self.ups = nn.ModuleList([
            nn.ConvTranspose2d(C, 4, 2, stride=2),
            nn.ConvTranspose2d(C, 4, 4, stride=2, padding=1, bias=False),
            nn.ConvTranspose2d(C, 4, 3, stride=2, padding=1, output_padding=1),
            nn.ConvTranspose2d(C, 4, (5, 3), stride=3, padding=(1, 0)),
            nn.ConvTranspose2d(C, 4, 3, padding=1),
            nn.ConvTranspose2d(C, 4, (3, 8), stride=(1, 4), padding=(1, 2)),
        ])  # fmt: skip
        self.ups_1d = nn.ModuleList([
            nn.ConvTranspose1d(C, 4, 4, stride=2, padding=1),
            nn.ConvTranspose1d(C, 4, 3, stride=2, padding=1, output_padding=1, bias=False),
        ])  # fmt: skip
        self.table = nn.Embedding(1000, C)
        self.first_sequence = nn.MultiheadAttention(C, 2)
        self.first_batch = nn.MultiheadAttention(C, 2, batch_first=True)
        self.encoder = nn.TransformerEncoderLayer(C, 2, 16, batch_first=True)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(C, C))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.say(self, x + t[:, None, None] / 1000)


class Scores(torch.autograd.Function):
    """Half-precision scores with a gradient of their own, as EDM has them."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        scores = torch.einsum("ncq,nck->nqk", q.float(), k.float() / q.shape[1] ** 0.5).softmax(dim=2)
        ctx.save_for_backward(q, k, scores)
        return scores

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        raise NotImplementedError


def heads_in_the_batch(m: Words, x: torch.Tensor) -> torch.Tensor:
    n = x.shape[0]
    q, k, v = (x.transpose(1, 2) @ m.matrix).chunk(3, dim=-1)  # [N, T, C]
    q, k, v = (p.reshape(n, T, 2, 4).transpose(1, 2).reshape(n * 2, T, 4) for p in (q, k, v))
    weights = torch.baddbmm(torch.empty(2 * n, T, T), q, k.transpose(1, 2), beta=0, alpha=0.5).softmax(-1)
    return torch.bmm(weights, v).reshape(n, 2, T, 4).transpose(1, 2).reshape(n, T, C)


def heads_before_the_batch(m: Words, x: torch.Tensor) -> torch.Tensor:
    n = x.shape[0]
    q = x.reshape(n, 2, 4, T).permute(1, 0, 3, 2)  # [H, N, T, D]
    folded = q.reshape(2 * n, T, 4)
    both = q @ q.transpose(-1, -2), torch.bmm(folded, folded.transpose(1, 2)).reshape(2, n, T, T)
    return (both[0] + both[1]).transpose(0, 1)


def transposed_probabilities(m: Words, x: torch.Tensor) -> torch.Tensor:
    weights = torch.einsum("nct,ncs->nts", x, x).softmax(-1)
    return torch.einsum("ncs,nts->nct", x, weights)


def two_dimensions_of_keys(m: Words, x: torch.Tensor) -> torch.Tensor:
    x = x.reshape(-1, C, 4, 4)
    weights = torch.einsum("bchw,bcij->bhwij", x, x)
    weights = weights.flatten(3).softmax(-1).reshape(weights.shape)
    return torch.einsum("bhwij,bcij->bchw", weights, x)


def masked(m: Words, x: torch.Tensor) -> torch.Tensor:
    q = x.reshape(-1, 2, 4, T).transpose(-1, -2)
    causal = F.scaled_dot_product_attention(q, q, q, is_causal=True)
    grouped = F.scaled_dot_product_attention(q, q[:, :1], q[:, 1:], enable_gqa=True, scale=0.3)
    return causal + grouped


def in_place(m: Words, x: torch.Tensor) -> torch.Tensor:
    h = x @ x.transpose(1, 2)
    kept = h.clone()
    h += kept.relu_() @ kept
    h[:, 0] = 0
    return h


def computed_weight(m: Words, x: torch.Tensor) -> torch.Tensor:
    kernel = x.new_zeros([C, C, 3])
    index = torch.arange(C)
    kernel[index, index] = torch.tensor([0.25, 0.5, 0.25])
    standard = (m.matrix - m.matrix.mean(0)) / m.matrix.std(0)
    return F.linear(F.conv1d(x, kernel).transpose(1, 2), standard.T, m.vector * 2)


def one_number_for_both_axes(m: Words, x: torch.Tensor) -> torch.Tensor:
    kernel = m.matrix.reshape(C, C, 3, 1).repeat(1, 1, 1, 3)
    x = F.conv2d(x.reshape(-1, C, 4, 4), kernel, padding=(1,), dilation=[1])
    return F.conv_transpose2d(x, kernel[:, :, :2, :2].tile(1, 1, 2, 2), stride=(2,), padding=(1,))


SPOKEN: dict[str, tuple[Callable[[Words, torch.Tensor], torch.Tensor], list[str]]] = {
    "tokens @ parameter": (lambda m, x: x.transpose(1, 2) @ m.matrix, ["linear"]),
    "parameter @ tokens": (lambda m, x: m.tokens @ x.transpose(1, 2), ["linear"]),
    "all tokens in one matrix": (lambda m, x: F.linear(x.transpose(1, 2).reshape(-1, C), m.matrix.T).reshape(-1, T, 3 * C), ["linear"]),
    "tokens before samples": (lambda m, x: F.linear(x.permute(2, 0, 1), m.matrix.T, m.vector).transpose(0, 1), ["linear"]),
    "tokens before samples in one matrix": (
        lambda m, x: torch.addmm(m.vector, x.permute(2, 0, 1).reshape(-1, C), m.matrix).reshape(T, -1, 3 * C).transpose(0, 1), ["linear"],
    ),
    "samples between tokens": (
        lambda m, x: F.linear(x.reshape(-1, C, 4, 4).permute(2, 0, 3, 1).reshape(-1, C), m.matrix.T)
        .reshape(4, -1, 4, 3 * C).transpose(0, 1), ["linear"],
    ),
    "addmm": (lambda m, x: torch.addmm(m.vector, x.mean(-1), m.matrix, beta=0.5, alpha=2), ["linear"]),
    "mm": (lambda m, x: torch.mm(x[:, :, 0], m.matrix), ["linear"]),
    "einsum with a parameter": (lambda m, x: torch.einsum("nct,co->not", x, m.matrix), ["linear"]),
    "einsum with a parameter first": (lambda m, x: torch.einsum("st,nct->nsc", m.tokens, x), ["linear"]),
    "einsum over two letters": (lambda _, x: torch.einsum("nct,ncs->n", x, x[:, :, :4]), ["matmul"]),
    "einsum with an ellipsis": (lambda _, x: torch.einsum("... c t, ... c s -> ... t s", x, x), ["matmul"]),
    "implicit einsum": (lambda m, x: torch.einsum("nct,co", x, m.matrix), ["linear"]),
    "einsum of one operand": (lambda _, x: torch.einsum("nct->tn", x).T, []),
    "heads in the batch": (heads_in_the_batch, ["linear", "matmul", "matmul"]),
    "heads before the batch": (heads_before_the_batch, ["matmul", "matmul"]),
    "transposed probabilities": (transposed_probabilities, ["matmul", "matmul"]),
    "two dimensions of keys": (two_dimensions_of_keys, ["matmul", "matmul"]),
    "causal and grouped attention": (masked, ["matmul"] * 4),
    "conv1d": (lambda m, x: m.conv(m.same(x)), ["conv2d", "conv2d"]),
    "convolutions with one number for both axes": (one_number_for_both_axes, ["conv2d", "conv2d"]),
    "transposed convolutions": (
        lambda m, x: torch.cat([up(x.reshape(-1, C, 4, 4)).flatten(2) for up in m.ups], dim=2), ["conv2d"] * 6,
    ),
    "transposed convolutions of sequences": (lambda m, x: torch.cat([up(x) for up in m.ups_1d], dim=2), ["conv2d"] * 2),
    "checkpointing": (lambda m, x: checkpoint(m.normed, x.transpose(1, 2), use_reentrant=True), ["linear"]),
    "a function with its own gradient": (lambda _, x: Scores.apply(x, x), ["matmul"]),
    "changes in place": (in_place, ["matmul", "matmul"]),
    "a weight computed from parameters": (computed_weight, ["conv2d", "linear"]),
    "weight_norm": (lambda m, x: m.normed(x.transpose(1, 2)), ["linear"]),
    "MultiheadAttention, sequence first": (
        lambda m, x: m.first_sequence(*[x.permute(2, 0, 1)] * 3)[0].transpose(0, 1), ["linear", "matmul", "matmul", "linear"],
    ),
    "MultiheadAttention, batch first": (
        lambda m, x: m.first_batch(*[x.transpose(1, 2)] * 3, need_weights=False)[0], ["linear", "matmul", "matmul", "linear"],
    ),
    "TransformerEncoderLayer": (
        lambda m, x: m.encoder(x.transpose(1, 2)), ["linear", "matmul", "matmul", "linear", "linear", "linear"],
    ),
}  # fmt: skip


def spoken(say: Callable[[Words, torch.Tensor], torch.Tensor]) -> tuple[Words, GraphModule]:
    model = Words(say).requires_grad_(False)  # as pipelines hand models over; torch then takes fused paths, which the capture turns off
    torch.manual_seed(1)
    with torch.no_grad():
        return model, capture(model, {"x": torch.randn(2, C, T), "timestep": torch.tensor([1.0, 2.0])})


@pytest.mark.parametrize("way", SPOKEN)
def test_every_way_to_write_a_product_can_be_quantized(way: str) -> None:
    say, operators = SPOKEN[way]
    model, graph = spoken(say)
    x, t = torch.randn(5, C, T), torch.linspace(0, 999, 5)
    with torch.no_grad():
        torch.testing.assert_close(graph(x, t), model(x, t), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(graph(x[:1], t[:1]), model(x[:1], t[:1]), rtol=1e-4, atol=1e-5)
    layers = list(find_layers(graph))
    assert [layer.op for layer in layers] == operators
    assert not [layer.float_reason for layer in layers if layer.float_reason]
    for layer in layers:
        assert_samples_first(graph, layer, x, t)


def assert_samples_first(graph: GraphModule, layer: GraphLayer, x: torch.Tensor, t: torch.Tensor) -> None:
    """Change one sample: only its row of each operand may change."""
    other = x.clone()
    other[2] += 1
    for operand in layer.node.args[: 2 if layer.op == "matmul" else 1]:
        with torch.no_grad():
            before, after = (Probe(graph, operand).run(v, t) for v in (x, other))
        changed = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if not torch.allclose(a, b, atol=1e-5)]
        assert len(before) == len(x)
        assert changed == [2]


class Probe(torch.fx.Interpreter):
    """Gives one node's value."""

    def __init__(self, graph: GraphModule, node: Any) -> None:
        super().__init__(graph)
        self.node = node

    def run(self, *inputs: torch.Tensor) -> torch.Tensor:
        super().run(*inputs)
        return self.value

    def run_node(self, n: torch.fx.Node) -> Any:
        value = super().run_node(n)
        if n is self.node:
            self.value = value
        return value


@pytest.mark.parametrize("say", [
    lambda _, x: x.squeeze(1) + 1,
    lambda _, x: x[:, :, None].squeeze((1, 2)) + 1,
    lambda _, x: x.unsqueeze(0).squeeze((0, 3)) + 1,
])  # fmt: skip
def test_what_is_not_of_size_one_is_not_squeezed(say: Any) -> None:
    """PyTorch leaves it alone, and ONNX's Squeeze would refuse it."""
    model, graph = spoken(say)
    x, t = torch.randn(3, C, T), torch.zeros(3)
    torch.testing.assert_close(graph(x, t), model(x, t))
    for node in graph.graph.nodes:
        if "squeeze" in str(node.target) and "unsqueeze" not in str(node.target):
            dims = node.args[1] if isinstance(node.args[1], list | tuple) else [node.args[1]]
            assert all(node.args[0].meta["val"].shape[dim] == 1 for dim in dims)


@pytest.mark.parametrize("cast", [
    torch.Tensor.type_as, lambda h, x: h.to(x), lambda h, x: h.to(x.dtype), lambda h, _: h.float(), lambda h, _: h.contiguous(),
])  # fmt: skip
def test_a_cast_to_the_type_that_a_value_has_computes_nothing(cast: Any) -> None:
    model, graph = spoken(lambda _, x: x + cast(x.mean(-1, keepdim=True), x))
    x, t = torch.randn(3, C, T), torch.linspace(0, 999, 3)
    torch.testing.assert_close(graph(x, t), model(x, t))
    assert not [
        n.target for n in graph.graph.nodes if str(n.target).startswith(("aten.to.", "aten.type_as", "aten._to_copy", "aten.contig"))
    ]


def test_a_cast_to_another_type_stays() -> None:
    model, graph = spoken(lambda _, x: x + x.mean(-1, keepdim=True).to(torch.float16).type_as(x))
    x, t = torch.randn(3, C, T), torch.linspace(0, 999, 3)
    assert torch.equal(graph(x, t), model(x, t))


def test_a_layout_that_cannot_be_had_leaves_the_product_in_float() -> None:
    _, graph = spoken(lambda _, x: x + (x.mean(-1).T @ x.mean(-1)).sum())  # summed over the samples
    (layer,) = find_layers(graph)
    assert "not the batch" in str(layer.float_reason)


@pytest.mark.parametrize("equation", ["nct,nct->nct", "nct,nds->n", "nct,ncs->nc", "nct,nct->n", "nct,mct->nm"])
def test_einsums_with_letters_in_every_role(equation: str) -> None:
    model, graph = spoken(lambda _, x: torch.einsum(equation, x, x[:, :, : x.shape[2] if "t,nct" in equation or "m" in equation else 4]))
    x, t = torch.randn(3, C, T), torch.zeros(3)
    torch.testing.assert_close(graph(x, t), model(x, t), rtol=1e-4, atol=1e-4)
    assert aten.einsum.default not in {n.target for n in graph.graph.nodes}


@pytest.mark.parametrize("say", [
    lambda _, x: torch.einsum("ncc->nc", x[:, :, :C]),
    lambda m, x: torch.einsum("nct,ct,nt->nc", x, m.matrix[:, :T], x[:, 0]),
    lambda _, x: torch.einsum("nct,nct->nt", x, x[:, :1]),
])  # fmt: skip
def test_einsums_that_are_no_single_product_stay(say: Any) -> None:
    model, graph = spoken(say)
    x, t = torch.randn(3, C, T), torch.zeros(3)
    torch.testing.assert_close(graph(x, t), model(x, t))
    assert aten.einsum.default in {n.target for n in graph.graph.nodes}


def test_a_weight_that_depends_on_the_input_is_no_constant() -> None:
    _, graph = spoken(lambda m, x: F.linear(x.transpose(1, 2), m.matrix.T * x.mean()))
    (layer,) = find_layers(graph)
    assert "computed from the input" in str(layer.float_reason)


def test_graphs_that_need_nothing_are_left_as_they_are(unet_graph: GraphModule) -> None:
    assert not [n for n, _ in unet_graph.named_buffers() if "folded" in n]
    assert len([n for n in unet_graph.graph.nodes if n.target == aten.sym_size.int]) == 1
