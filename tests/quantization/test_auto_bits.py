"""Which layers get 8 bits: sensitivities are what a brute-force run gives, budgets hold, and the network is better for it."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median

import pytest
import torch
from torch.fx import GraphModule

import dq_deploy
from dq_deploy.errors import UsageError
from dq_deploy.formats import FP16, of_bits
from dq_deploy.quantization.bits.budget import WeightBudget
from dq_deploy.quantization.bits.choose import choose, choose_bits
from dq_deploy.quantization.bits.sensitivity import Sensitivity, few_trajectories, sensitivities_on
from dq_deploy.quantization.calibration.source import Request
from dq_deploy.quantization.config import QuantizeConfig
from dq_deploy.quantization.graph.edit import set_tensor
from dq_deploy.quantization.numerics import clipped_weight_scale, per_channel, quantize_weight
from dq_deploy.quantization.prepare import Prepared, prepare
from tests.command_line import Cli, assert_refused
from tests.tiny import FAST

SETTINGS = ((4, 8), (8, 8))


@pytest.fixture(scope="module")
def prepared(flow_pipeline: Path) -> Prepared:
    return prepare(str(flow_pipeline), QuantizeConfig.build("w4a8", **{**FAST, "batch_size": 3}), Request())


def with_weight(graph: GraphModule, name: str, weight: torch.Tensor, run: list[torch.Tensor]) -> torch.Tensor:
    before = graph.get_buffer(name)
    set_tensor(graph, name, weight)
    with torch.no_grad():
        output: torch.Tensor = graph(*run)
    set_tensor(graph, name, before)
    return output


def test_the_noise_of_a_layer_is_what_the_whole_network_gives_with_that_layer_rounded(prepared: Prepared) -> None:
    layers, data = prepared.plan.quantized, few_trajectories(prepared)
    found = sensitivities_on(prepared, data, layers, lambda _: [(4, FP16.bits)])
    assert [x.layer for x in found] == [layer.name for layer in layers]
    graph = prepared.float_graph
    inputs = {prepared.names[0]: data.samples.flatten(0, 1), "timestep": data.timesteps.repeat_interleave(2)}
    run = [inputs[name] for name in prepared.names]
    expected = with_weight(graph, "conv_in.weight", graph.get_buffer("conv_in.weight"), run)
    tried = 0
    for layer, measured in zip(layers, found, strict=True):
        if layer.op == "matmul":
            assert float(measured.noise[4, FP16.bits].abs().max()) == 0
            assert (measured.weights, measured.channels) == (0, 0)
            continue
        name = str(layer.node.args[1].target)  # type: ignore[union-attr]
        weight = graph.get_buffer(name)
        scale = clipped_weight_scale(weight, of_bits(4))
        output = with_weight(graph, name, quantize_weight(weight, scale, of_bits(4)) * per_channel(scale, weight, 0), run)
        noise = (output - expected).double().flatten(1).pow(2).sum(dim=1) / expected.double().flatten(1).pow(2).sum(dim=1)
        torch.testing.assert_close(measured.noise[4, FP16.bits], noise, rtol=1e-3, atol=1e-12)
        assert (measured.weights, measured.channels) == (weight.numel(), len(weight))
        assert float(noise.min()) > 0
        tried += 1
    assert tried > 10


def made_up() -> list[Sensitivity]:
    def layer(name: str, weights: int, low: float, high: float) -> Sensitivity:
        return Sensitivity(name, weights, 10 if weights else 0, {(4, 8): torch.tensor([low, low]), (8, 8): torch.tensor([high, high])})

    return [
        layer("large", 100_000, 1e-3, 1e-5),
        layer("small", 1_000, 1e-3, 1e-5),
        layer("good", 1_000, 1e-6, 1e-7),
        layer("qk", 0, 1e-4, 1e-5),
    ]


def chosen(budget: str, parameters: int = 102_000) -> dq_deploy.BitChoice:
    return choose(made_up(), {x.layer: list(SETTINGS) for x in made_up()}, WeightBudget.parse(budget, "--auto-bits", snr=True), parameters)


def test_a_size_budget_takes_what_saves_most_for_each_byte() -> None:
    plain = (100_000 + 1_000 + 1_000) // 2 + 12 * 30
    tight = chosen(f"{plain}B")
    assert tight.keep == {"qk": 8}  # costs nothing
    assert tight.weights_bytes == plain
    assert chosen(f"{plain + 499}B").keep == {"qk": 8}
    assert chosen(f"{plain + 500}B").keep == {"small": 8, "qk": 8}
    assert set(chosen(f"{plain + 1000}B").keep) == {"small", "good", "qk"}
    everything = chosen("0.3x")
    assert set(everything.keep) == {"large", "small", "good", "qk"}
    assert everything.snr_db == everything.snr_db_highest
    assert tight.snr_db_lowest < tight.snr_db < chosen(f"{plain + 500}B").snr_db < everything.snr_db


def test_an_snr_budget_raises_no_more_than_it_takes() -> None:
    easy = chosen("25dB")
    assert easy.snr_db >= 25
    assert set(easy.keep) == {"qk"}
    assert set(chosen("29dB").keep) == {"small", "qk"}
    assert set(chosen("40dB").keep) == {"small", "large", "qk"} or "good" in chosen("40dB").keep
    assert chosen("40dB").snr_db >= 40


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        ("60dB", "no choice of bits reaches 60 dB: with every layer at 8 bits 4"),
        ("0.01x", r"weights take 0\.0514 MB \(0\.126x\) with no layer raised, and the budget is 0\.00408 MB"),
        ("1.6", "takes a size"),
        ("0x", "takes a size"),
        ("fast", "takes a size"),
        ("1 GiB", "takes a size"),
    ],
)
def test_a_budget_that_nothing_meets_says_what_can_be_had(budget: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        chosen(budget)


def test_a_network_is_better_for_it_and_as_small_as_said(flow_pipeline: Path, tmp_path: Path) -> None:
    choice = choose_bits(str(flow_pipeline), "0.2x", preset="w4a8", **FAST)
    assert 0 < len(choice.keep) < len(choice.layers)
    plain = dq_deploy.quantize(str(flow_pipeline), tmp_path / "plain", preset="w4a8", **FAST)
    mixed = dq_deploy.quantize(str(flow_pipeline), tmp_path / "mixed", preset="w4a8", keep=choice.keep, **FAST)
    before, after = (median(x.manifest.details["snr_db"]["after_distillation"]) for x in (plain, mixed))
    assert after > before + 1
    assert abs(after - choice.snr_db) < 3
    bits = {x["name"]: x.get("weight_bits") for x in mixed.manifest.details["layers"]}
    assert all(bits[name] in (8, None) for name in choice.keep)
    assert all(bits[x.layer] in (4, None) for x in choice.layers if x.weight_bits == 4)


def test_branches_beside_a_choice_are_refused(flow_pipeline: Path) -> None:
    with pytest.raises(UsageError, match="no low-rank branch"):
        choose_bits(str(flow_pipeline), "0.2x", low_rank=2)


def test_on_the_command_line(cli: Cli, flow_pipeline: Path, tmp_path: Path) -> None:
    options = ("--steps", "4", "--calibration-samples", "8", "--batch-size", "8", "--iterations", "0", "--dilation", "none")
    ended = cli(
        "quantize", flow_pipeline, "-o", tmp_path / "c", "--auto-bits", "0.2x", "--keep", "conv_out=4", *options, "--format", "json"
    )
    assert ended.code == 0, ended.err
    result = json.loads(ended.out)
    assert result["manifest"]["quantization"]["weight_bits"] == 4
    keep = result["manifest"]["quantization"]["keep"]
    assert set(result["auto_bits"]["keep"].items()) <= set(keep.items())
    assert keep["conv_out"] == 4  # the user's own choice is none of the tool's
    assert "conv_out" not in result["auto_bits"]["keep"]
    table = cli("quantize", flow_pipeline, "-o", tmp_path / "d", "--auto-bits", "0.2x", "--sensitivity", "decoupled", "--dry-run", *options)
    assert table.code == 0, table.err
    assert "raised to 8 bits: " in table.out
    assert "groups of layers, and what each is judged by" in table.out
    assert "no attention to a condition was found" in table.err
    assert "every layer is judged by the prediction, as with --sensitivity snr" in table.err
    assert not (tmp_path / "d").exists()
    refused = cli("quantize", flow_pipeline, "-o", tmp_path / "d", "--auto-bits", "0.2x", "--preset", "w8a8", *options)
    assert_refused(refused, 2, "8 bits already", "w4a8")
    assert_refused(cli("quantize", flow_pipeline, "-o", tmp_path / "d", "--auto-bits", "small", *options), 2, "1.6MB")
    assert_refused(
        cli("quantize", flow_pipeline, "-o", tmp_path / "d", "--sensitivity", "snr"), 2, "and there is none", "--auto-bits 0.18x"
    )
