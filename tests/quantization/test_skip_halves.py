from __future__ import annotations

import importlib.util
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import GraphModule

from dq_deploy.accuracy import check
from dq_deploy.engines.build.engine import build_engine, load_report
from dq_deploy.exporters import export
from dq_deploy.quantization.checkpoint import Checkpoint
from dq_deploy.quantization.choices import SkipHalves
from dq_deploy.quantization.distillation.trained import selected
from dq_deploy.quantization.graph.blocks import assign_blocks, split_blocks
from dq_deploy.quantization.graph.products import find_layers
from dq_deploy.quantization.graph.skip_halves import arrange_skip_halves, name_matches, whole_name
from tests.tiny import SHAPE, WHOLE, captured, make_checkpoint, planned, tiny_unet

RESNETS = ["up_blocks.0.resnets.0", "up_blocks.0.resnets.1", "up_blocks.1.resnets.0", "up_blocks.1.resnets.1"]
READERS = [f"{resnet}.{conv}" for resnet in RESNETS for conv in ("conv1", "conv_shortcut")]


def split(graph: GraphModule) -> tuple[GraphModule, dict[str, Any]]:
    graph = deepcopy(graph)
    return graph, arrange_skip_halves(graph, SkipHalves.SPLIT)


@pytest.fixture(scope="module")
def halves(unet_graph: GraphModule) -> tuple[GraphModule, dict[str, Any]]:
    return split(unet_graph)


def test_the_function_stays_what_it_was(unet_graph: GraphModule, halves: tuple[GraphModule, dict[str, Any]]) -> None:
    x, t = torch.randn(3, *SHAPE), torch.tensor([0.0, 500.0, 999.0])
    with torch.no_grad():
        torch.testing.assert_close(halves[0](x, t), unet_graph(x, t), rtol=1e-5, atol=1e-5)


def test_every_reader_of_a_concatenated_skip_is_split_and_nothing_else(
    unet_graph: GraphModule, halves: tuple[GraphModule, dict[str, Any]]
) -> None:
    graph, entry = halves
    assert sorted(row["layer"] for row in entry["split"]) == sorted(READERS)
    assert entry["joint"] == []
    before, after = ({layer.name: layer.macs for layer in find_layers(g)} for g in (unet_graph, graph))
    assert sum(before.values()) == sum(after.values())
    for row in entry["split"]:
        shares = [after.pop(half) for half in row["halves"]]
        assert sum(shares) == before.pop(row["layer"])
        assert shares[0] * row["channels"][1] == shares[1] * row["channels"][0]
    assert before == after


def test_blocks_are_the_same(unet_graph: GraphModule, halves: tuple[GraphModule, dict[str, Any]]) -> None:
    names = []
    for graph in (unet_graph, halves[0]):
        assign_blocks(graph, planned(graph))
        names.append([block.name for block in split_blocks(graph)])
    assert names[0] == names[1]


def test_a_layer_that_is_a_block_of_its_own_stays_one() -> None:
    graph, _ = split(captured(Cat()))
    assign_blocks(graph, planned(graph))
    assert [block.layers for block in split_blocks(graph) if block.name == "target"] == [[]]
    assert {n.meta["block_name"] for n in graph.graph.nodes if "target" in n.meta.get("path", "") and n.op != "get_attr"} == {"target"}


def test_halves_of_a_concatenation_itself_are_its_operands(halves: tuple[GraphModule, dict[str, Any]]) -> None:
    nodes = {layer.name: layer.node for layer in find_layers(halves[0])}
    direct = nodes["up_blocks.0.resnets.0.conv_shortcut#skip"].args[0]
    behind = nodes["up_blocks.0.resnets.0.conv1#skip"].args[0]
    assert "slice" not in str(direct.target)  # type: ignore[union-attr]
    assert "slice" in str(behind.target)  # type: ignore[union-attr]


def test_a_pattern_of_keep_means_both_halves_or_one(halves: tuple[GraphModule, dict[str, Any]]) -> None:
    plan = planned(deepcopy(halves[0]), keep={"up_blocks.0.resnets.0.conv1": 6, "up_blocks.1.*.conv1#skip": 5})
    bits = {layer.name: layer.weight_bits for layer in plan.quantized if "conv1#" in layer.name}
    assert [bits[f"up_blocks.0.resnets.0.conv1{half}"] for half in ("#h", "#skip")] == [6, 6]
    assert [bits[f"up_blocks.1.resnets.0.conv1{half}"] for half in ("#h", "#skip")] == [8, 5]


def test_whole_names() -> None:
    assert [whole_name(n) for n in ("a.conv1#h", "a.conv1#skip", "a.conv1", "a#pad")] == ["a.conv1", "a.conv1", "a.conv1", "a#pad"]


class Cat(nn.Module):
    """Two convolutions' outputs, concatenated, and what the subclass does with that; ``target`` reads it."""

    count = 2

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.other = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.target, self.last = nn.Conv2d(8 * self.count, 8, 3, padding=1), nn.Conv2d(8, 1, 1)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        h = self.first(x) + t[:, None, None, None] / 1000
        return self.last(self.read(torch.cat([self.other(F.silu(h)), *[h] * (self.count - 1)], dim=1)))

    def read(self, cat: torch.Tensor) -> torch.Tensor:
        return self.target(cat)


class Modulated(Cat):
    """A norm, a scale for each channel, an activation and a resampling between."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.scale = nn.GroupNorm(4, 16), nn.Parameter(torch.rand(16, 1, 1))
        self.target = nn.Conv2d(16, 8, 3, padding=1, stride=2, bias=False)

    def read(self, cat: torch.Tensor) -> torch.Tensor:
        return self.target(F.interpolate(F.silu(self.norm(cat) * (1 + self.scale)), scale_factor=2))


class Tokens(Cat):
    def __init__(self) -> None:
        super().__init__()
        self.target = nn.Linear(16, 8)

    def read(self, cat: torch.Tensor) -> torch.Tensor:
        return self.target(F.gelu(cat.flatten(2).transpose(1, 2))).transpose(1, 2).unflatten(2, (8, 8))


class Last(Cat):
    def __init__(self) -> None:
        super().__init__()
        self.target, self.last = nn.Conv2d(16, 1, 3, padding=1), nn.Identity()


class Grouped(Cat):
    def __init__(self) -> None:
        super().__init__()
        self.target = nn.Conv2d(16, 8, 3, padding=1, groups=2)


class Three(Cat):
    count = 3


class OtherAxis(Cat):
    def __init__(self) -> None:
        super().__init__()
        self.target = nn.Conv2d(8, 8, 1)

    def read(self, cat: torch.Tensor) -> torch.Tensor:
        return self.target(torch.cat([cat[:, :8, ::2], cat[:, 8:, ::2]], dim=2))


class Mixed(Cat):
    """A residual of other channels in between."""

    def read(self, cat: torch.Tensor) -> torch.Tensor:
        return self.target(cat + cat.flip(1))


class Padded(Cat):
    def read(self, cat: torch.Tensor) -> torch.Tensor:
        return self.target(F.pad(cat[:, 2:], (0, 0, 0, 0, 1, 1)))


class TimeEmbedding(Cat):
    """Sine and cosine of the timestep have one range."""

    def __init__(self) -> None:
        super().__init__()
        self.target, self.emb = nn.Conv2d(16, 8, 1), nn.Linear(2, 8)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        emb = self.emb(torch.cat([t[:, None].sin(), t[:, None].cos()], dim=1))
        return self.last(self.first(x) + emb[:, :, None, None])


class SelfConditioned(Cat):
    """Zeros beside the sample, and what the first layer made of both beside the end: a split layer's output in a concatenation."""

    def __init__(self, *, zeros: bool) -> None:
        super().__init__()
        self.zeros, self.first = zeros, nn.Conv2d(2, 8, 3, padding=1)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        x = self.first(torch.cat((torch.zeros_like(x) if self.zeros else x.abs(), x), dim=1))
        r = x.clone()
        return self.last(self.target(torch.cat((self.other(F.silu(x + t[:, None, None, None] / 1000)), r), dim=1)))


@pytest.mark.parametrize("zeros", [True, False])
def test_a_split_layers_output_may_be_half_of_another_layers_input(zeros: bool) -> None:
    plain = captured(SelfConditioned(zeros=zeros))
    graph, entry = split(plain)
    graph.graph.lint()
    assert [row["layer"] for row in entry["split"]] == ["target"] if zeros else ["first", "target"]
    x, t = torch.randn(3, *SHAPE), torch.tensor([0.0, 500.0, 999.0])
    torch.testing.assert_close(graph(x, t), plain(x, t), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", [Cat, Modulated, Tokens, Last])
def test_what_is_split(model: type[Cat]) -> None:
    plain = captured(model())
    graph, entry = split(plain)
    assert entry["split"] == [{"layer": "target", "channels": [8, 8], "halves": ["target#h", "target#skip"]}]
    x, t = torch.randn(3, *SHAPE), torch.zeros(3)
    torch.testing.assert_close(graph(x, t), plain(x, t), rtol=1e-4, atol=1e-5)
    assert "target.weight" not in dict(graph.named_buffers())
    bits = {layer.name: layer.weight_bits for layer in planned(graph, preset="w4a4").layers}
    assert {bits["target#h"], bits["target#skip"]} == {8 if model is Last else 4}


@pytest.mark.parametrize(("model", "reason"), [(Grouped, "2 groups"), (Three, "3 parts")])
def test_what_cannot_be_split_says_why(model: type[Cat], reason: str) -> None:
    _, entry = split(captured(model()))
    assert entry["split"] == []
    assert [(row["layer"], reason in row["reason"]) for row in entry["joint"]] == [("target", True)]


@pytest.mark.parametrize("model", [OtherAxis, Mixed, Padded, TimeEmbedding])
def test_what_is_no_concatenation_of_channels(model: type[Cat]) -> None:
    _, entry = split(captured(model()))
    assert entry["split"] == entry["joint"] == []


def test_joint_changes_nothing_and_names_the_layers(unet_graph: GraphModule) -> None:
    graph = deepcopy(unet_graph)
    entry = arrange_skip_halves(graph, SkipHalves.JOINT)
    assert (entry["mode"], entry["split"]) == ("joint", [])
    assert sorted(row["layer"] for row in entry["joint"]) == sorted(READERS)
    assert str(graph.graph) == str(unet_graph.graph)


def test_a_pattern_means_both_halves_or_one() -> None:
    halves = ["up.conv1#h", "up.conv1#skip"]
    assert [name_matches(name, "up.conv1") for name in halves] == [True, True]
    assert [name_matches(name, "*#skip") for name in halves] == [False, True]
    assert not name_matches("up.conv10", "up.conv1")


def test_training_a_split_layer_by_its_name_trains_both_halves(checkpoint: Checkpoint) -> None:
    chosen, quantizers = selected(checkpoint.model, [READERS[0]])
    assert chosen == {f"{READERS[0]}#h", f"{READERS[0]}#skip"}
    assert len(quantizers) == 2


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    model = tiny_unet(block_out_channels=(8,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), add_attention=False)
    return make_checkpoint(model, tmp_path_factory.mktemp("halves") / "checkpoint", skip_halves="split", reference_samples=16)


def test_each_half_has_its_own_scales(checkpoint: Checkpoint) -> None:
    assert checkpoint.details.skip_halves.mode == "split"
    layers = {layer.name: layer for layer in checkpoint.details.layers}
    quantizers = checkpoint.quantizers
    for reader in READERS[:4]:
        (h,), (skip,) = (layers[f"{reader}{half}"].quantizers for half in ("#h", "#skip"))
        assert h != skip
        assert not torch.equal(quantizers[h].scale_table(), quantizers[skip].scale_table())
        assert checkpoint.layers[f"{reader}#skip"].bias is None  # type: ignore[union-attr]


@pytest.mark.parametrize("target", ["qdq", "onnxruntime"])
def test_both_graphs_compute_what_the_checkpoint_does(checkpoint: Checkpoint, target: str, tmp_path: Path) -> None:
    bundle = export(checkpoint.artifact, tmp_path / "bundle", target=target, dtype="fp32", **WHOLE[target])  # type: ignore[arg-type]
    verdict = check(bundle, checkpoint.artifact, optimized=False)
    assert verdict, verdict.failures
    assert {row.layer for row in verdict.layers} == set(checkpoint.layers)


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed")
def test_the_compiler_runs_both_halves_in_int8(checkpoint: Checkpoint, tmp_path: Path) -> None:
    bundle = export(checkpoint.artifact, tmp_path / "bundle", target="qdq")
    (report,) = load_report(build_engine(bundle, tmp_path / "engine", compute_capabilities=["8.9"]))
    precision = {layer.name: layer.precision for layer in report.layers}
    assert {precision[f"{reader}{half}"] for reader in READERS[:4] for half in ("#h", "#skip")} == {"int8"}
