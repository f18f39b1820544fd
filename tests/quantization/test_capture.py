from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

from dq_deploy.errors import ArtifactError, UsageError
from dq_deploy.quantization.graph.capture import capture, input_names
from dq_deploy.quantization.graph.edit import aten
from tests.tiny import SHAPE, PlainUNet, captured, tiny_unet


def targets(graph: GraphModule) -> list[str]:
    return [str(n.target) for n in graph.graph.nodes if n.op == "call_function"]


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("kind", ["unet", "plain"])
def test_the_captured_graph_is_the_model(kind: str, batch: int, request: pytest.FixtureRequest) -> None:
    model = tiny_unet() if kind == "unet" else PlainUNet()
    graph = request.getfixturevalue(f"{kind}_graph")
    x, t = torch.randn(batch, *SHAPE), torch.linspace(0, 999, batch)
    expected = model(x, t)
    expected = expected if isinstance(expected, torch.Tensor) else expected.sample
    with torch.no_grad():
        torch.testing.assert_close(graph(x, t), expected, rtol=1e-4, atol=1e-5)


def test_nothing_that_computes_nothing_is_left(unet_graph: GraphModule) -> None:
    found = targets(unet_graph)
    for word in ("dropout", "assert", "_guards", "detach", "alias", "contiguous", "scaled_dot_product"):
        assert not any(word in target for target in found), word
    assert not [n for n in unet_graph.graph.nodes if n.op == "call_module"]
    for node in unet_graph.graph.nodes:
        if node.target == aten.div.Tensor:
            assert node.args[1] != 1


def test_equal_expressions_are_one_node(unet_graph: GraphModule) -> None:
    readers = [n for n in unet_graph.graph.nodes if n.target == aten.linear.default and "time_emb_proj" in n.meta["path"]]
    (silu,) = {n.args[0] for n in readers}
    assert silu.target == aten.silu.default
    assert set(silu.users) == set(readers)


class DataDependent(nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x * t[:, None, None, None] if float(x.sum()) > 0 else x


class FixedBatch(nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x.reshape(2, -1).reshape(x.shape) * t.reshape(2, 1, 1, 1)


class NotFinite(nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.log(-x.abs() - t[:, None, None, None] ** 2)


@pytest.mark.parametrize(("model", "text"), [(DataDependent(), "DataDependent"), (FixedBatch(), "batch"), (NotFinite(), "NaN")])
def test_what_cannot_be_captured_is_an_artifact_error(model: nn.Module, text: str) -> None:
    with pytest.raises(ArtifactError, match=text):
        captured(model)


class Several(nn.Module):
    def forward(self, hidden: torch.Tensor, encoder: torch.Tensor, t: torch.Tensor) -> Any:
        return (hidden + encoder[:, :1, None, None] * t[:, None, None, None], None)


class Named(nn.Module):
    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, **kwargs: torch.Tensor) -> torch.Tensor:
        return sample * timestep[:, None, None, None] + kwargs["extra"][:, None, None, None]


def test_inputs_keep_the_forwards_names_and_order() -> None:
    assert input_names(PlainUNet()) == ["x", "timestep"]
    assert input_names(tiny_unet(), ["class_labels"]) == ["sample", "timestep", "class_labels"]
    assert input_names(Named(), ["extra"]) == ["sample", "timestep", "extra"]
    graph = captured(Named(), extra=torch.tensor([1.0, 2.0]))
    assert [n.target for n in graph.graph.nodes if n.op == "placeholder"] == ["sample", "timestep", "extra"]
    x, t, extra = torch.randn(3, *SHAPE), torch.arange(3.0), torch.arange(3.0)
    torch.testing.assert_close(graph(x, t, extra), Named()(x, t, extra=extra))


@pytest.mark.parametrize(("model", "conditions", "text"), [(PlainUNet(), ["labels"], "takes no labels"), (nn.ReLU(), [], "takes")])
def test_an_unknown_condition_is_a_usage_error(model: nn.Module, conditions: list[str], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        input_names(model, conditions)


class Padded(nn.Module):
    def __init__(self, padding: Any, kernel: int, dilation: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, kernel, padding=padding, dilation=dilation)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.conv(x) + t[:, None, None, None]


@pytest.mark.parametrize(("padding", "kernel", "target"), [("same", 3, "aten.conv2d.default"), ("valid", 2, "aten.conv2d.default"),
                                                           ("same", 2, "aten.conv2d.padding"), (1, 3, "aten.conv2d.default")])  # fmt: skip
def test_padding_by_name_becomes_numbers_where_both_sides_get_as_much(padding: Any, kernel: int, target: str) -> None:
    model = Padded(padding, kernel, dilation=1 if kernel == 2 else 2)
    graph = captured(model)
    assert target in targets(graph)
    x = torch.randn(2, *SHAPE)
    torch.testing.assert_close(graph(x, torch.zeros(2)), model(x, torch.zeros(2)))


class Einsum(nn.Module):
    def __init__(self, equation: str, count: int) -> None:
        super().__init__()
        self.equation, self.count = equation, count

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.einsum(self.equation, *[x] * self.count) + t.reshape(-1, *[1] * (len(self.equation.split("->")[1].split()) - 1))


@pytest.mark.parametrize(
    ("equation", "count", "target"),
    [
        ("n c h w -> n w c h", 1, "aten.permute.default"),
        ("n c h h -> n c h", 1, "aten.einsum.default"),
    ],
    ids=["permutation", "diagonal"],
)
def test_an_einsum_that_only_permutes_is_a_permutation(equation: str, count: int, target: str) -> None:
    model = Einsum(equation, count)
    graph = captured(model)
    assert [t for t in targets(graph) if "permute" in t or "einsum" in t] == [target]
    x, t = torch.randn(3, *SHAPE), torch.zeros(3)
    torch.testing.assert_close(graph(x, t), model(x, t))


class Attention(nn.Module):
    def __init__(self, mask: str) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        y = x + t[:, None, None, None]
        if self.mask == "bool":
            return nn.functional.scaled_dot_product_attention(y, y, x, attn_mask=(y[..., :1] > -1) | (y > 0))
        if self.mask == "float":
            return nn.functional.scaled_dot_product_attention(y, y, x, attn_mask=y * 0.5, scale=0.3)
        return nn.functional.scaled_dot_product_attention(y, y, x, is_causal=self.mask == "causal")


@pytest.mark.parametrize("mask", ["none", "bool", "float", "causal"])
def test_attention_is_two_products_and_a_softmax(mask: str) -> None:
    model = Attention(mask)
    graph = captured(model)
    found = targets(graph)
    assert found.count("aten.matmul.default") == 2
    x, t = torch.randn(3, *SHAPE), torch.tensor([0.0, 0.5, 1.0])
    torch.testing.assert_close(graph(x, t), model(x, t), rtol=1e-4, atol=1e-5)


def test_the_parameters_keep_their_names(plain_graph: GraphModule) -> None:
    buffers = dict(plain_graph.named_buffers())
    for name, tensor in PlainUNet().state_dict().items():
        assert torch.equal(buffers[name], tensor)


def test_a_condition_on_the_batch_size_is_found() -> None:
    class ByBatch(nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return (x if x.shape[0] == 2 else x * 3) + t[:, None, None, None]

    with pytest.raises(ArtifactError, match="batch"):
        capture(ByBatch(), {"x": torch.randn(2, *SHAPE), "timestep": torch.zeros(2)})


class Table(nn.Module):
    """Looks its timesteps up, which floats cannot do."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(1000, 1)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x * self.table(t)[:, :, None, None]


def test_a_table_of_timesteps_gets_integers() -> None:
    model = Table()
    x, t = torch.randn(3, *SHAPE), torch.tensor([0, 500, 999])
    torch.testing.assert_close(captured(model)(x, t.float()), model(x, t))


class Inner(nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        y = x * t[:, None, None, None]
        return torch.cond(y.sum() > 0, lambda z: z * 2, lambda z: z, [y])


def test_control_flow_inside_the_graph_is_an_artifact_error() -> None:
    with pytest.raises(ArtifactError, match="control flow"):
        captured(Inner())
