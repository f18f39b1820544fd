from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.fx import GraphModule

from dq_deploy.errors import ArtifactError
from dq_deploy.quantization.calibration import Trajectories
from dq_deploy.quantization.checkpoint import named_quantizers
from dq_deploy.quantization.config import QuantizeConfig
from dq_deploy.quantization.distillation import BlockRecord, distill, split_samples
from tests.tiny import FAST, quantized_copy


def distilled(graph: GraphModule, data: Trajectories, scratch: Path, **options: Any) -> tuple[list[BlockRecord], GraphModule]:
    config = QuantizeConfig.build("w4a4", **{**FAST, "iterations": 60, "batch_size": 16, **options})
    quantized, _ = quantized_copy(graph, data, preset="w4a4")
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
    assert all(q.scale_table().tolist() == pytest.approx([1 / 15] * 4) for q in fixed)


def test_a_float_model_with_nan_is_refused(graph: GraphModule, plain_data: Trajectories, tmp_path: Path) -> None:
    config = QuantizeConfig.build("w4a4", **{**FAST, "iterations": 2})
    quantized, _ = quantized_copy(graph, plain_data)
    graph.get_buffer("embed.0.weight").fill_(torch.nan)
    with pytest.raises(ArtifactError, match="NaN"):
        distill(graph, quantized, plain_data, config, scratch=tmp_path)


def test_held_out_seeds_are_never_trained_on() -> None:
    train, held_out = split_samples(3, 8)
    assert held_out.tolist() == [7, 15, 23]
    assert sorted([*train.tolist(), *held_out.tolist()]) == list(range(24))
    train, held_out = split_samples(2, 2)
    assert (train.tolist(), held_out.tolist()) == ([0, 2], [1, 3])
