"""Rotation of what linear layers read: the network stays what it was, and it is chosen where it serves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.fx import GraphModule

from dq_deploy.errors import UsageError
from dq_deploy.quantization import QuantizeConfig, quantize
from dq_deploy.quantization.graph.products import find_layers
from dq_deploy.quantization.graph.rotation import BLOCKS, largest_block, rotate, rotated, rotation, source_of, token_inputs
from dq_deploy.quantization.initial.rotation_choice import choose_rotations, take_rotations
from tests.tiny import FAST, SHAPE, PlainUNet, captured, planned, scheduler, trajectories

WIDTH = 32  # 64 channels where its linear layers read tokens


@pytest.fixture(scope="module")
def model() -> PlainUNet:
    """One channel of its tokens is 40 times the others', and what reads it makes as little of it."""
    made = PlainUNet(WIDTH).eval()
    with torch.no_grad():
        made.grouped.weight[3] *= 40
        made.grouped.bias[3] = 5
        made.qkv.weight[:, 3] /= 40
    return made


@pytest.fixture
def graph(model: PlainUNet) -> GraphModule:
    return captured(model)


def output(graph: GraphModule) -> torch.Tensor:
    x = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    result: torch.Tensor = graph(x, torch.tensor([1.0, 400.0, 900.0]))
    return result


@pytest.mark.parametrize("block", BLOCKS)
def test_a_rotation_is_orthogonal_and_spreads_a_channel_and_what_all_share(block: int) -> None:
    matrix = rotation(block)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(block, dtype=torch.float64))
    assert float(rotated(torch.eye(2 * block)[0], block).abs().max()) == pytest.approx(block**-0.5)
    assert float(rotated(torch.ones(block), block).abs().max()) < block**0.5 / 2


def test_a_block_divides_the_channels() -> None:
    assert [largest_block(*sizes) for sizes in ((384, 256), (384, 64), (512, 256), (96, 256))] == [128, 64, 256, 0]


def test_the_network_stays_what_it_was_and_the_layer_before_takes_what_it_can(graph: GraphModule) -> None:
    before = output(graph)
    inputs = {layers[0].name: layers for layers in token_inputs(planned(graph))}
    assert list(inputs) == ["qkv", "out"]
    weights = {name: graph.get_buffer(str(layers[0].node.args[1].target)).clone() for name, layers in inputs.items()}
    taken = rotate(graph, [(layers, 64) for layers in inputs.values()])
    assert taken == [None, inputs["qkv"][0].node]
    assert float((output(graph) - before).abs().max()) < 1e-4 * float(before.abs().max())
    after = {name: graph.get_buffer(str(layers[0].node.args[1].target)) for name, layers in inputs.items()}
    torch.testing.assert_close(after["out"], rotated(weights["out"], 64))
    mixed = rotated(weights["qkv"], 64)  # of its outputs v alone is rotated
    torch.testing.assert_close(after["qkv"][: 4 * WIDTH], mixed[: 4 * WIDTH])
    torch.testing.assert_close(after["qkv"][4 * WIDTH :], rotated(mixed[4 * WIDTH :].T, 64).T)
    assert sum(node.meta.get("layer") == "qkv.rotation" for node in graph.graph.nodes) == 1
    assert {"qkv", "out", "qkv.rotation"} <= {layer.name for layer in find_layers(graph)}


def test_no_layer_before_takes_it_where_something_else_reads_the_same(model: PlainUNet) -> None:
    class TwoReaders(PlainUNet):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            time = self.embed(t[:, None].float().expand(-1, self.width) / 1000)
            tokens = (self.first(x) + time[:, :, None, None]).flatten(2).transpose(1, 2).repeat(1, 1, 2)
            _, _, v = self.qkv(tokens).chunk(3, dim=-1)
            h = (self.out(v) + v).transpose(1, 2)[:, : self.width].reshape(len(x), self.width, *x.shape[2:])
            return self.last(h)

    inputs = {layers[0].name: layers for layers in token_inputs(planned(captured(TwoReaders(WIDTH).eval())))}
    (layer,) = inputs["out"]
    assert source_of(layer.node.args[0], [layer.node], 64) is None


@pytest.mark.parametrize("rounding", ["gptq", "nearest"])
def test_auto_rotates_an_outlier_away(graph: GraphModule, rounding: str) -> None:
    data, plan = trajectories(graph), planned(graph, preset="w8a8", rotation="auto", rounding=rounding)
    config = QuantizeConfig.build(**{**FAST, "rotation": "auto", "rounding": rounding})
    before = output(graph)
    qkv, out = choose_rotations(graph, plan, data, config)
    assert (qkv.layers, qkv.block, out.layers) == (["qkv"], 64, ["out"])
    assert qkv.snr_db["64"] > qkv.snr_db["none"] + 1
    assert (out.block == 64) == (out.snr_db["64"] >= out.snr_db["none"] + 0.25)
    torch.testing.assert_close(output(graph), before, rtol=0, atol=0)  # the trials were copies
    named = take_rotations(graph, plan.layers, [qkv, out.model_copy(update={"block": 64})])
    assert [choice.folded_into for choice in named] == [None, "qkv"]


def test_a_rotation_that_no_layer_can_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match="rotation 128 is for linear layers on tokens whose input channels 64 divides, and their inputs have 16"
    ):
        quantize(PlainUNet().eval(), tmp_path / "c", scheduler=scheduler(), sample_shape=SHAPE, rotation=128, **FAST)
    with pytest.raises(UsageError, match="activations in float, where rotation would be ignored"):
        QuantizeConfig.build("w4a16", rotation="auto")
    with pytest.raises(UsageError, match="rotation: .*'none', 'auto', '64', '128' or '256'"):
        QuantizeConfig.build(rotation=100)
