from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

from dq_deploy.errors import UsageError
from dq_deploy.quantization.calibration.trajectories import Trajectories
from dq_deploy.quantization.distillation.cache import ValueCache
from dq_deploy.quantization.distillation.chain import Chain
from dq_deploy.quantization.graph.blocks import assign_blocks, split_blocks
from tests.tiny import captured, planned, quantized_copy, snr_db, trajectories


def last_value(graph: GraphModule, data: Trajectories, folder: Path) -> torch.Tensor:
    """The graph's output, computed block by block."""
    samples, timestep, _ = data.flat(slice(None))
    chain = Chain(split_blocks(graph), ValueCache(folder), timestep, len(samples))
    name = next(n.name for n in graph.graph.nodes if n.op == "placeholder")
    chain.values.write(name, 0, samples)
    for block in chain.blocks:
        chain.run(block)
        if block is not chain.blocks[-1]:
            chain.forget(block)
    return chain.values.read(chain.blocks[-1].outputs[-1], torch.arange(len(samples)))


@pytest.mark.parametrize("kind", ["unet", "plain"])
def test_block_by_block_is_the_whole_graph(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    graph = deepcopy(request.getfixturevalue(f"{kind}_graph"))
    data = trajectories(graph, seeds=2, steps=3)
    quantized, plan = quantized_copy(graph, data)
    samples, timestep, _ = data.flat(slice(None))
    with torch.no_grad():
        for number, model in enumerate((graph, quantized)):
            got, expected = last_value(model, data, tmp_path / str(number)), model(samples, timestep)
            if kind == "plain":
                assert torch.equal(got, expected)
            else:  # values come back from the disk contiguous, and torch sums transposed ones in another order: last bits differ
                assert snr_db(expected, got) > (120 if model is graph else 30)
    blocks = split_blocks(quantized)
    assert sorted(name for block in blocks for name in block.layers) == sorted(layer.name for layer in plan.quantized)
    assert [b.name for b in blocks] == [b.name for b in split_blocks(graph)]


def test_blocks_of_diffusers_are_resnets_attentions_and_resamplers(unet_graph: GraphModule) -> None:
    graph = deepcopy(unet_graph)
    assign_blocks(graph, planned(graph))
    names = [b.name for b in split_blocks(graph)]
    assert len(names) == len(set(names))
    for expected in ("down_blocks.0.resnets.0", "down_blocks.1.attentions.0", "mid_block.attentions.0", "up_blocks.0.upsamplers.0"):
        assert expected in names
    assert "down_blocks.0.resnets.0.conv1" not in names


def test_patterns_name_the_blocks_of_other_models(plain_graph: GraphModule) -> None:
    graph = deepcopy(plain_graph)
    assign_blocks(graph, planned(graph), ["embed"])
    (embed,) = (b for b in split_blocks(graph) if b.name == "embed")
    assert embed.name == "embed"
    with pytest.raises(UsageError, match="'nowhere'"):
        assign_blocks(graph, planned(graph), ["embed", "nowhere"])


class Frames(nn.Module):
    """Two frames a sample [N, 2, 4, 8, 8], which lie in the batch; ``apart``: the first frames of all samples before the second ones."""

    def __init__(self, *, apart: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.apart = apart
        self.first, self.second, self.last = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)
        self.between = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        frames = (x.transpose(0, 1) if self.apart else x).flatten(0, 1)
        frames = self.second(self.first(frames).relu()).unflatten(0, (2, -1) if self.apart else (-1, 2))
        frames = frames.transpose(0, 1) if self.apart else frames
        pooled = frames.mean((1, 3, 4)) + timestep[:, None] / 1000  # over the frames too
        frames = frames + self.between(pooled)[:, None, :, None, None]
        return self.last(frames.flatten(0, 1)).reshape(x.shape)


class Half(nn.Sequential):
    """A block whose frames may lie apart when it is left."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())


class Apart(nn.Module):
    """Two blocks, and between them the first frames of all samples before the second ones."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = Half(), Half()

    def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        frames = self.two(self.one((x * (1 + timestep[:, None, None, None, None])).transpose(0, 1).flatten(0, 1)))
        return frames.unflatten(0, (2, -1)).transpose(0, 1)


def chain_of(model: nn.Module, folder: Path, patterns: list[str] | None = None) -> tuple[GraphModule, Chain, torch.Tensor]:
    graph = captured(model, (2, 4, 8, 8))
    assign_blocks(graph, planned(graph, max_float_share=1.0), patterns)
    samples, timestep = torch.randn(5, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.linspace(0, 999, 5)
    chain = Chain(split_blocks(graph), ValueCache(folder), timestep, 2)
    chain.values.write("x", 0, samples)
    return graph, chain, samples


@pytest.mark.parametrize("apart", [False, True])
def test_frames_in_the_batch_go_with_their_sample(apart: bool, tmp_path: Path) -> None:
    graph, chain, samples = chain_of(Frames(apart=apart), tmp_path)
    lengths = set()
    some = torch.tensor([4, 1])
    for block in chain.blocks:
        chain.run(block)
        lengths |= {len(value) for value in block.module(*chain.inputs(block, some))}
    assert lengths == {2, 4}
    with torch.no_grad():
        got = chain.read(chain.blocks[-1].outputs[-1], some)
        torch.testing.assert_close(got, graph(samples, chain.timestep)[some])


def test_blocks_that_are_left_with_frames_apart_are_refused(tmp_path: Path) -> None:
    _, chain, _ = chain_of(Apart(), tmp_path, ["one", "two"])
    with pytest.raises(UsageError, match=r"2 samples have 4 entries.*do not lie together") as refusal:
        for block in chain.blocks:
            chain.run(block)
    assert '{"iterations": 0}' in str(refusal.value.hint)
