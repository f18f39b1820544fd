from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.fx import GraphModule

from dq_deploy.accuracy import check
from dq_deploy.errors import ArtifactError, ResourceError, UsageError
from dq_deploy.exporters import export
from dq_deploy.quantization.graph.capture import capture, check_alone
from dq_deploy.quantization.graph.edit import aten
from dq_deploy.quantization.graph.positional import input_names
from tests.text_encoder_pipelines import tiny_cogvideox
from tests.tiny import SHAPE, PlainUNet, captured, make_checkpoint, planned, targets, tiny_unet


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


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_squeeze_of_all_dimensions_leaves_a_batch_of_one(batch: int) -> None:
    model = SqueezedNoiseLevel()
    x, t = torch.randn(batch, *SHAPE), torch.linspace(0, 999, batch)
    torch.testing.assert_close(captured(model)(x, t), model(x, t))


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


class SqueezedNoiseLevel(nn.Module):
    """``sigma`` [N, 1, 1, 1] loses every dimension of size 1, at a batch of one the batch's too, as in smalldiffusion."""

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        sigma = (t[:, None, None, None] + 1).squeeze()
        if sigma.dim() == 0:
            sigma = sigma.expand(x.shape[0])
        return x * torch.sin(torch.stack([sigma, 2 * sigma], dim=1)).sum(dim=1)[:, None, None, None]


class NotFinite(nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.log(-x.abs() - t[:, None, None, None] ** 2)


class Random(nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x * t[:, None, None, None] + torch.randn_like(x)


class Recurrent(nn.Module):
    """Which torch marks as random, for a dropout that it does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.GRU(8, 8, batch_first=True)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.cells(x[:, 0])[0][:, None] * t[:, None, None, None]


class RandomOutside(nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x * t[:, None, None, None] + float(np.random.default_rng().random())


class OtherType(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.conv(x.half()) + t[:, None, None, None]


class Demanding(nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor | None = None) -> torch.Tensor:
        if text is None:
            raise ValueError("this model needs a text")
        return x * t[:, None, None, None]


class Sized(nn.Module):
    """One convolution for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.conv(part) for part in x.split(1)])
        return x * t[:, None, None, None]


@pytest.mark.parametrize(
    ("model", "texts"),
    [
        (DataDependent(), ["cannot capture DataDependent: GuardOnDataDependentSymNode", "depends on values of its inputs", "> 0 else x"]),
        (FixedBatch(), ["runs at batch 2, and not at batches 1 and 3: RuntimeError: shape", "in forward: return x.reshape(2, -1)"]),
        (NotFinite(), ["NaN"]),
        (Random(), ["draws random numbers in its forward (aten.randn_like.default) at File", "torch.randn_like(x)", "as a condition"]),
        (Recurrent(), ["has a recurrent layer (aten.gru.input) at File", "self.cells(x[:, 0])", "attention along the sequence"]),
        (RandomOutside(), ["gives another output every time for the same input"]),
        (OtherType(), ["OtherType does not run on x [2, 1, 8, 8], timestep [2]: RuntimeError: Input type", "return self.conv(x.half())"]),
        (Demanding(), ["Demanding does not run on x [2, 1, 8, 8], timestep [2]: ValueError: this model needs a text", "raise ValueError"]),
        (Sized(), ["the graph, and not the model, is bound to the batch", "for part in x.split(1)", "take sizes from x.shape"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_captured_is_an_artifact_error_that_names_the_cause_and_the_models_line(
    model: nn.Module, texts: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ArtifactError) as caught:
        captured(model)
    assert all(text in str(caught.value) for text in texts)
    assert "usual cause" not in str(caught.value)
    assert "def forward" not in capfd.readouterr().err


@pytest.mark.parametrize("dropout", [nn.Dropout(), nn.Dropout2d(), nn.AlphaDropout(), nn.FeatureAlphaDropout()], ids=repr)
def test_dropouts_that_are_not_trained_are_left_out(dropout: nn.Module) -> None:
    model = nn.Module()
    model.layer, model.dropout = nn.Conv2d(1, 1, 1), dropout
    model.forward = lambda x, t: model.dropout(model.layer(x)) * t[:, None, None, None]
    assert not any("dropout" in str(node.target) for node in captured(model.eval()).graph.nodes)


@pytest.mark.parametrize("name", ["type", "float", "training"])
def test_a_submodule_that_a_method_hides_is_named(name: str) -> None:
    model = OtherType()
    model._modules[name] = nn.Conv2d(1, 1, 1)
    with pytest.raises(ArtifactError, match=f"has '{name}' as a part, and a method or attribute of that name hides it from torch.export"):
        captured(model)


class Called(nn.Module):
    """A convolution and a norm in a submodule of any name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.name, inner = name, nn.Sequential()
        inner._modules[name] = nn.Conv2d(1, 4, 1)
        self._modules[name] = nn.ModuleDict({"conv": inner, name: nn.GroupNorm(2, 4), "last": nn.Conv2d(4, 1, 1)})

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        parts = self._modules[self.name]
        assert isinstance(parts, nn.ModuleDict)
        return parts["last"](parts[self.name](parts["conv"](x))) * t[:, None, None, None]


@pytest.mark.parametrize("name", ["graph", "code", "meta", "recompile", "in", "class", "forward_", "self"])
def test_submodules_may_be_called_what_a_graph_or_pythons_grammar_has_a_use_for(name: str, tmp_path: Path) -> None:
    model = Called(name)
    graph = captured(model)
    x, t = torch.randn(3, *SHAPE), torch.arange(3.0)
    torch.testing.assert_close(graph(x, t), model(x, t))
    if name in ("graph", "in"):
        checkpoint = make_checkpoint(model, tmp_path / "checkpoint", max_float_share=1.0)
        assert [layer.name for layer in checkpoint.details.layers] == [f"{name}.last"]


class ByLength(nn.Module):
    """The batch as a number of Python, in every way that torch.export takes for a constant."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.conv, self.last = kind, nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 1, 1)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.last(self.middle(x, t / 1000 + 1))

    def middle(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        n, h = len(x), self.conv(x)
        if self.kind == "reshape":
            return h * t.reshape(n, 1, 1, 1)
        if self.kind == "multiple":
            return h.reshape(n * 2, 2, 8, 8).softmax(1).reshape(int(x.shape[0]), 4, 8, 8) * t.reshape(n, 1, 1, 1)
        if self.kind == "constant":
            return h * t.reshape(-1, 1, 1, 1) + torch.tensor([[0.5, 2.0]] * n).sum(dim=1).reshape(-1, 1, 1, 1)
        if self.kind == "rows":
            return h * t.reshape(-1, 1, 1, 1) + torch.zeros(len(x), 1, 8, 1) + torch.arange(n + 1)[:1].sum()
        return h * t.repeat_interleave(4).reshape(n, 4, 1, 1) * torch.ones([n] * 1)[:, None, None, None]


@pytest.mark.parametrize("kind", ["reshape", "multiple", "constant", "rows", "list"])
def test_a_batch_that_became_a_number_is_a_symbol_again(kind: str) -> None:
    model = ByLength(kind).eval()
    graph = captured(model)
    for batch in (1, 2, 3, 7):
        x, t = torch.randn(batch, *SHAPE), torch.rand(batch)
        torch.testing.assert_close(graph(x, t), model(x, t), rtol=1e-4, atol=1e-5)
    assert not any(isinstance(n.meta["val"].shape[0], int) for n in graph.graph.nodes if n.op == "placeholder")
    assert [layer.name for layer in planned(graph, keep={"@first": 8}, max_float_share=1.0).quantized] == ["conv", "last"]


class Upsampled(ByLength):
    """Beside that, a nearest upsampling and products whose sizes are read from what it gives (rectified-flow's U-Net)."""

    def middle(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        h = nn.functional.interpolate(nn.functional.avg_pool2d(self.conv(x), 2), scale_factor=2.0)
        mixed = torch.einsum("n c h w, n d h w -> n c d", h, h).softmax(dim=-1)
        return torch.einsum("n c d, n d h w -> n c h w", mixed, h) * t.reshape(len(x), 1, 1, 1)


def test_an_upsampling_leaves_the_batch_a_symbol() -> None:
    model = Upsampled("upsampled").eval()
    graph = captured(model)
    for batch in (1, 2, 5):
        x, t = torch.randn(batch, *SHAPE), torch.rand(batch)
        torch.testing.assert_close(graph(x, t), model(x, t), rtol=1e-4, atol=1e-5)


class ByNumber(nn.Module):
    """What takes no symbols: numpy's functions (EDM2's and Cosmos's norms), and sets."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.conv = kind, nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        h = self.conv(x) * t[:, None, None, None]
        if self.kind == "numpy":
            norm = torch.linalg.vector_norm(h, dim=(1, 2, 3), keepdim=True)
            return h / torch.add(1e-4, norm, alpha=np.sqrt(norm.numel() / h.numel()))
        return h * len({len(x), h.shape[0]})


@pytest.mark.parametrize("kind", ["numpy", "set"])
def test_numbers_that_no_symbol_can_stand_for_are_found_at_two_batches(kind: str) -> None:
    model = ByNumber(kind).eval()
    graph = captured(model)
    for batch in (1, 2, 5):
        x, t = torch.randn(batch, *SHAPE), torch.rand(batch)
        torch.testing.assert_close(graph(x, t), model(x, t), rtol=1e-4, atol=1e-5)


def test_a_network_whose_batch_became_a_number_goes_the_whole_way(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(ByLength("multiple"), tmp_path / "checkpoint", max_float_share=1.0)
    bundle = export(tmp_path / "checkpoint", tmp_path / "bundle", target="qdq", dtype="fp32")
    assert check(bundle, checkpoint.artifact.path)


def test_out_of_memory_is_not_a_model_that_does_not_run() -> None:
    class Hungry(nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return x * t[:, None, None, None] + torch.zeros(10**14)[0]

    with pytest.raises(ResourceError, match="out of memory: 363.8 TiB were requested"):
        captured(Hungry())


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


def test_a_condition_on_a_larger_batch_is_found() -> None:
    class ByBatch(nn.Module):
        def __init__(self, sign: int) -> None:
            super().__init__()
            self.sign = sign

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return (self.sign * x if x.shape[0] > 8 else x) + t[:, None, None, None]

    inputs = {"x": torch.randn(2, *SHAPE), "timestep": torch.zeros(2)}
    capture(ByBatch(1), inputs)
    with pytest.raises(ArtifactError, match="something else for batches above 8, and a graph has one branch"):
        capture(ByBatch(-1), inputs)


def test_the_parameters_keep_their_names(plain_graph: GraphModule) -> None:
    buffers = dict(plain_graph.named_buffers())
    for name, tensor in PlainUNet().state_dict().items():
        assert torch.equal(buffers[name], tensor)


def test_a_condition_on_the_batch_size_is_found() -> None:
    class ByBatch(nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return (x if x.shape[0] == 2 else x * 3) + t[:, None, None, None]

    with pytest.raises(ArtifactError, match=r"the graph, and not the model, is bound to the batch(?s:.*)if x.shape\[0\] == 2 else x \* 3"):
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


class InCompany(nn.Module):
    """Divides by a deviation: of the whole batch, or of each sample."""

    def __init__(self, dims: tuple[int, ...] | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.dims, self.conv = dims, nn.Conv2d(1, 4, 3, padding=1)
        self.out = nn.Conv2d(4, 1, 1)

    def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        h = self.conv(x) * (1 + timestep[:, None, None, None])
        return self.out(h / (h.std() if self.dims is None else h.std(dim=self.dims, keepdim=True)))


def test_a_network_that_mixes_the_samples_of_a_batch_is_refused() -> None:
    captured(InCompany((1, 2, 3)))
    with pytest.raises(
        ArtifactError, match=r"mixes the samples of a batch: .* alone and beside two others differs by .*\ntake statistics over"
    ):
        check_alone(captured(InCompany(None)))


def test_positions_of_another_size_than_the_configurations() -> None:
    """CogVideoX 2B has a table for one, and computes others."""
    model = tiny_cogvideox().transformer
    inputs = {
        "hidden_states": torch.randn(2, 5, 4, 4, 6), "encoder_hidden_states": torch.randn(2, 226, 24), "timestep": torch.tensor([1.0, 2.0]),
    }  # fmt: skip
    graph = capture(model, inputs)
    with torch.no_grad():
        torch.testing.assert_close(graph(*inputs.values()), model(**inputs).sample, rtol=1e-4, atol=1e-4)
