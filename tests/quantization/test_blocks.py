from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch.fx import GraphModule

from dq_deploy.errors import UsageError
from dq_deploy.quantization.calibration.trajectories import Trajectories
from dq_deploy.quantization.distillation.cache import ValueCache
from dq_deploy.quantization.distillation.chain import Chain
from dq_deploy.quantization.graph.blocks import assign_blocks, split_blocks
from tests.tiny import planned, quantized_copy, snr_db, trajectories


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
