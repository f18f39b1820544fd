from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.fx import GraphModule

from dq_deploy.artifacts.details import BlockLoss
from dq_deploy.errors import ArtifactError, UsageError
from dq_deploy.quantization.calibration.trajectories import Trajectories
from dq_deploy.quantization.config import QuantizeConfig
from dq_deploy.quantization.distillation.distill import distill, split_samples
from dq_deploy.quantization.graph.modules import named_quantizers
from dq_deploy.quantization.quantizers import TableQuantizer
from dq_deploy.quantization.widths import at_width
from tests.tiny import FAST, PlainUNet, captured, quantized_copy, trajectories


def distilled(graph: GraphModule, data: Trajectories, scratch: Path, **options: Any) -> tuple[list[BlockLoss], GraphModule]:
    config = QuantizeConfig.build("w4a4", **{**FAST, "iterations": 60, "batch_size": 16, **options})
    quantized, _ = quantized_copy(graph, data, preset="w4a4", initial_range="minmax")
    records = distill(graph, quantized, data, config, scratch=scratch)
    assert not list(scratch.iterdir())  # what was cached is gone
    return records, quantized


@pytest.fixture
def graph(plain_graph: GraphModule) -> GraphModule:
    return deepcopy(plain_graph)


def test_distillation_lowers_the_held_out_loss(graph: GraphModule, plain_data: Trajectories, tmp_path: Path) -> None:
    records, _ = distilled(graph, plain_data, tmp_path)
    assert {"embed.0", "down", "grouped", "qkv", "last"} <= {r.block for r in records}
    assert all(r.after <= r.before for r in records)
    assert sum(r.after < r.before for r in records) >= 0.7 * len(records)
    assert not any(r.note for r in records)


def test_the_same_seed_gives_the_same_model(graph: GraphModule, plain_data: Trajectories, tmp_path: Path) -> None:
    first, one = distilled(graph, plain_data, tmp_path, iterations=10)
    second, two = distilled(graph, plain_data, tmp_path, iterations=10)
    assert first == second
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    third, _ = distilled(graph, plain_data, tmp_path, iterations=10, seed=1)
    assert third != first


def test_divergence_keeps_the_best_state_and_says_so(graph: GraphModule, plain_data: Trajectories, tmp_path: Path) -> None:
    start, untrained = distilled(graph, plain_data, tmp_path, iterations=0)
    records, trained = distilled(graph, plain_data, tmp_path, iterations=5, lr_weight=1e6, lr_scale=5.0)
    assert any("diverged" in r.note for r in records)
    assert all(r.after <= r.before for r in records)
    assert records[0].before == start[0].before
    samples, timestep, _ = plain_data.flat(slice(None))
    assert torch.isfinite(trained(samples, timestep)).all()
    if all(r.after == r.before for r in records):
        assert torch.equal(trained(samples, timestep), untrained(samples, timestep))


def test_constant_tables_are_not_trained(graph: GraphModule, plain_data: Trajectories, tmp_path: Path) -> None:
    _, quantized = distilled(graph, plain_data, tmp_path, iterations=5)
    fixed = [q for _, q in named_quantizers(quantized) if q.fixed]
    assert fixed
    initial = dict(named_quantizers(quantized_copy(graph, plain_data, preset="w4a4", initial_range="minmax")[0]))
    assert all(torch.equal(q.scale_table(), initial[name].scale_table()) for name, q in named_quantizers(quantized) if q.fixed)
    assert all(q.bits == 8 for q in fixed)  # probabilities keep 8 bits


def test_held_out_seeds_are_never_trained_on() -> None:
    train, held_out = split_samples(3, 8)
    assert held_out.tolist() == [7, 15, 23]
    assert sorted([*train.tolist(), *held_out.tolist()]) == list(range(24))
    train, held_out = split_samples(2, 2)
    assert (train.tolist(), held_out.tolist()) == ([0, 2], [1, 3])


def test_all_widths_are_trained_together(tmp_path: Path) -> None:
    """Weights that are only sliced gain at every width, and no width is trained at the cost of another."""
    graph = captured(PlainUNet(width=16))
    data = trajectories(graph, seeds=32)
    options: dict[str, Any] = {**FAST, "matryoshka": (8, 4, 3), "batch_size": 16}
    quantized, _ = quantized_copy(graph, data, preset="w8a8", **options)
    samples, timestep, _ = data.flat(slice(None))
    expected = data.outputs.flatten(0, 1)

    def errors() -> list[float]:
        found = []
        for width in (None, 4, 3):
            with at_width(quantized, width), torch.no_grad():
                found.append(float((quantized(samples, timestep) - expected).square().mean()))
        return found

    before = errors()
    records = distill(graph, quantized, data, QuantizeConfig.build("w8a8", **{**options, "iterations": 60}), scratch=tmp_path)
    after = errors()
    assert not list(tmp_path.iterdir())
    assert all(record.after <= record.before for record in records)
    assert all(now < 0.95 * then for now, then in zip(after, before, strict=True))
    assert after[0] < after[1] < after[2]


def parameters(quantized: GraphModule) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in quantized.named_parameters()}


def moved(before: GraphModule, after: GraphModule) -> set[str]:
    """Names of the parameters that differ."""
    start = parameters(before)
    return {name for name, p in parameters(after).items() if not torch.equal(p, start[name])}


def test_end_to_end_trains_the_whole_network_at_once(graph: GraphModule, plain_data: Trajectories, tmp_path: Path) -> None:
    records, quantized = distilled(graph, plain_data, tmp_path, distillation="end-to-end")
    (record,) = records
    assert record.block == "whole network"
    assert record.after < 0.9 * record.before
    start, _ = quantized_copy(graph, plain_data, preset="w4a4", initial_range="minmax")
    changed = moved(start, quantized)
    for part in ("layers.down.weight", "layers.last.bias", "layers.qkv.log_scale", "quantizers.down/input.log_scale"):
        assert part in changed
    samples, timestep, _ = plain_data.flat(slice(None))
    _, held_out = split_samples(4, 8)
    samples, timestep = samples[held_out], timestep[held_out]
    with torch.no_grad():
        expected = graph(samples, timestep)
        weight = expected.unflatten(0, (4, -1)).pow(2).flatten(1).mean(1)
        error = (quantized(samples, timestep) - expected).pow(2).flatten(1).mean(1)
    # One held-out seed of eight: the record's weights come from all eight seeds, so only the size agrees.
    assert float((error / weight).mean()) == pytest.approx(record.after, rel=0.2)


@pytest.mark.parametrize("kind", ["block", "end-to-end"])
def test_only_what_matches_is_trained(kind: str, graph: GraphModule, plain_data: Trajectories, tmp_path: Path) -> None:
    options = {"iterations": 30, "lr_scale": 0.01, "distillation": kind, "train": ["d[ow]*", "matmul"], "lr_weight": 0.01}
    records, quantized = distilled(graph, plain_data, tmp_path, **options)
    assert [r.block for r in records] == (["down", "matmul"] if kind == "block" else ["whole network"])
    changed = moved(quantized_copy(graph, plain_data, preset="w4a4", initial_range="minmax")[0], quantized)
    assert changed
    assert all(name.split(".")[1].startswith(("down", "matmul")) for name in changed)
    assert "quantizers.matmul/lhs.log_scale" in changed


def test_a_pattern_that_matches_no_layer_is_named(graph: GraphModule, plain_data: Trajectories, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'nowhere\*' of train.*\n.*embed\.0"):
        distilled(graph, plain_data, tmp_path, train=["embed*", "nowhere*"])
    with pytest.raises(UsageError, match=r"'first' of train"):  # it is there, and in float
        distilled(graph, plain_data, tmp_path, train=["first"])


def test_patience_ends_a_block_that_no_longer_improves(graph: GraphModule, plain_data: Trajectories, tmp_path: Path) -> None:
    options = {"iterations": 200, "train": ["last"], "lr_weight": 2}  # too long a step, and at its end the cosine makes it good
    (record,), _ = distilled(graph, plain_data, tmp_path, patience=1, **options)
    assert (record.iterations, record.note) == (50, "stopped at iteration 50: no better held-out loss in 1 evaluation(s)")
    assert record.after == record.before
    (through,), _ = distilled(graph, plain_data, tmp_path, **options)
    assert (through.iterations, through.note) == (200, "")
    assert through.after < record.after


def test_bf16_trains_nearly_as_well(graph: GraphModule, plain_data: Trajectories, tmp_path: Path) -> None:
    options = {"iterations": 50, "train": ["down", "qkv", "last"]}
    exact, _ = distilled(graph, plain_data, tmp_path, **options)
    rough, quantized = distilled(graph, plain_data, tmp_path, precision="bf16", **options)
    assert [r.block for r in rough] == ["down", "qkv", "last"]
    assert rough != exact
    assert all(p.dtype == torch.float32 for p in quantized.parameters())
    gain = [sum(r.after / r.before for r in records) / len(records) for records in (exact, rough)]
    assert gain[1] < 0.5 * (1 + gain[0])


def test_nan_while_training_keeps_the_best_state_and_says_when(graph: GraphModule, plain_data: Trajectories, tmp_path: Path) -> None:
    records, quantized = distilled(graph, plain_data, tmp_path, iterations=5, lr_scale=1e30)
    assert any(r.note == "the loss was nan at iteration 2; kept the best state" and r.iterations == 2 for r in records)
    assert all(r.after <= r.before for r in records)
    assert all(torch.isfinite(p).all() for p in quantized.parameters())
    assert not moved(quantized_copy(graph, plain_data, preset="w4a4", initial_range="minmax")[0], quantized)


def test_nan_in_the_float_chain_names_block_value_and_timestep(graph: GraphModule, plain_data: Trajectories, tmp_path: Path) -> None:
    quantized, _ = quantized_copy(graph, plain_data)
    graph.get_buffer("down.weight").fill_(torch.nan)
    config = QuantizeConfig.build("w4a4", **{**FAST, "iterations": 2})
    with pytest.raises(ArtifactError, match=r"the float model's value 'conv2d_1' in block down has NaN or Inf at timestep 0"):
        distill(graph, quantized, plain_data, config, scratch=tmp_path)
    assert not list(tmp_path.iterdir())


def test_nan_in_the_quantized_chain_names_the_block(graph: GraphModule, plain_data: Trajectories, tmp_path: Path) -> None:
    quantized, _ = quantized_copy(graph, plain_data)
    dict(quantized.named_parameters())["layers.qkv.weight"].data.fill_(torch.nan)
    with pytest.raises(ArtifactError, match="block qkv: the loss is nan before any training"):
        distill(graph, quantized, plain_data, QuantizeConfig.build("w4a4", **{**FAST, "iterations": 2}), scratch=tmp_path)


def test_tables_of_one_row_are_trained(graph: GraphModule, plain_data: Trajectories, tmp_path: Path) -> None:
    quantized, _ = quantized_copy(graph, plain_data, preset="w4a4")
    for name, quantizer in list(named_quantizers(quantized)):
        if isinstance(quantizer, TableQuantizer) and not quantizer.fixed:
            options = {"symmetric": quantizer.symmetric, "axis": quantizer.axis, "channels": len(quantizer.dilation)}
            one = TableQuantizer(torch.tensor([500.0]), quantizer.format, **options)
            one.set_tables(quantizer.scale_table().amax(dim=0, keepdim=True), quantizer.zero_point_table()[:1].float())
            one.dilation.copy_(quantizer.dilation)
            quantized.set_submodule(f"quantizers.{name.replace('.', '/')}", one)
    start = deepcopy(quantized)
    records = distill(graph, quantized, plain_data, QuantizeConfig.build("w4a4", **{**FAST, "iterations": 50}), scratch=tmp_path)
    assert sum(r.after < r.before for r in records) >= 0.7 * len(records)
    assert {"quantizers.down/input.log_scale", "quantizers.down/input.zero_point"} <= moved(start, quantized)


def test_a_block_that_is_exact_is_left_alone(graph: GraphModule, plain_data: Trajectories, tmp_path: Path) -> None:
    for name in ("last.weight", "last.bias"):
        graph.get_buffer(name).zero_()
    records, _ = distilled(graph, plain_data, tmp_path, iterations=5, train=["last"])
    assert [(r.before, r.after, r.iterations, r.note) for r in records] == [(0, 0, 0, "")]


def test_the_two_halves_of_a_guided_seed_are_held_out_together() -> None:
    train, held_out = split_samples(2, 6, per_seed=2)
    assert (train.tolist(), held_out.tolist()) == ([0, 1, 2, 3, 6, 7, 8, 9], [4, 5, 10, 11])
