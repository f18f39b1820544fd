"""Rounding a network's weights by GPTQ: what a layer's rows see, what H is made of, and what comes out."""

from __future__ import annotations

import re
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from torch.fx import GraphModule

from dq_deploy.accuracy import check
from dq_deploy.cli import run
from dq_deploy.errors import ArtifactError
from dq_deploy.exporters import export
from dq_deploy.formats import ScaleSource, of_bits
from dq_deploy.quantization.calibration.trajectories import Trajectories
from dq_deploy.quantization.checkpoint import Checkpoint
from dq_deploy.quantization.choices import Rounding
from dq_deploy.quantization.config import QuantizeConfig
from dq_deploy.quantization.graph.insertion import decode
from dq_deploy.quantization.quantizers import Quantized
from dq_deploy.quantization.rounding import groups, layerwise
from dq_deploy.quantization.rounding.columns import Rounder
from dq_deploy.quantization.rounding.groups import Group, groups_of
from dq_deploy.quantization.rounding.layerwise import round_weights, some_seeds
from dq_deploy.quantization.rounding.moments import Moments, some_positions
from dq_deploy.quantization.weights import QuantizedConv2d, QuantizedWeight, WeightOnlyLinear
from tests.tiny import FAST, WHOLE, make_checkpoint, quantized_copy

INT4 = of_bits(4)


def config(**options: Any) -> QuantizeConfig:
    return QuantizeConfig.build(**{**FAST, "preset": "w4a8", "rounding": "gptq", **options})


def layers_of(quantized: GraphModule) -> dict[str, QuantizedWeight]:
    return {decode(name): module for name, module in quantized.named_modules() if isinstance(module, QuantizedWeight)}


def group_of(layer: QuantizedWeight) -> Group:
    return Group("x", None, None, {"layer": layer})  # type: ignore[arg-type]


@pytest.mark.parametrize("geometry", [
    ([1, 1], [1, 1], [1, 1], 1), ([2, 2], [1, 1], [1, 1], 1), ([1, 1], [2, 2], [2, 2], 2), ([1, 2], [0, 1], [1, 1], 4),
    ([1, 1], [1, 1], [1, 1], 8),
])  # fmt: skip
@pytest.mark.parametrize("most", [16_384, 20])
def test_a_convolution_is_its_unfolded_linear_layer(geometry: Any, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "MOST_INPUTS", most)
    layer = QuantizedConv2d(torch.randn(16, 8 // geometry[3], 3, 3), None, INT4, *geometry)
    group, x = group_of(layer), torch.randn(2, 8, 9, 9)
    columns, rows = group.columns(x), group.stacked(QuantizedWeight.matrix)
    assert rows.shape == group.shape
    assert rows.shape[2] <= most
    product = torch.einsum("gnpk,grk->gnrp", columns, rows)  # of every part
    product = product.unflatten(0, (geometry[3], -1)).sum(dim=1).transpose(0, 1).flatten(1, 2)  # [N, O, P]
    expected = layer.float_product(x, layer.weight)
    torch.testing.assert_close(product, expected.flatten(2), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(group.unstacked(rows)["layer"].reshape(layer.weight.shape), layer.weight)


def test_a_linear_layer_of_blocks_is_one_of_tokens() -> None:
    layer = WeightOnlyLinear(torch.randn(6, 128), None, INT4, block=32)
    group, x = group_of(layer), torch.randn(3, 5, 128)
    assert group.shape == (1, 6, 128)
    product = torch.einsum("gnpk,grk->npr", group.columns(x), group.stacked(QuantizedWeight.matrix))
    torch.testing.assert_close(product, layer.float_product(x, layer.matrix()), rtol=1e-4, atol=1e-4)
    steps = group.stacked(QuantizedWeight.steps_by_weight)[0]
    torch.testing.assert_close(steps[2, 32:64], layer.steps().reshape(6, 4)[2, 1].expand(32))


def test_moments_are_the_weighted_mean_of_products() -> None:
    columns, weight = torch.randn(2, 5, 7, 3), torch.rand(5)
    moments = Moments(2, 3)
    for part in torch.arange(5).split(2):
        moments.add(columns[:, part], weight[part])
    expected = torch.einsum("gnpi,gnpj,n->gij", columns.double(), columns.double(), weight.double()) / 35
    torch.testing.assert_close(moments.mean(), expected, rtol=1e-5, atol=1e-6)


def test_moments_of_many_inputs_are_computed_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    columns, weight = torch.randn(1, 3, 20, 11), torch.ones(3)
    found = []
    for block in (1024, 4):
        monkeypatch.setattr("dq_deploy.quantization.rounding.moments.BLOCK", block)
        moments = Moments(1, 11)
        moments.add(columns, weight)
        found.append(moments.mean())
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)
    assert torch.equal(found[1], found[1].transpose(1, 2))


def test_positions_are_drawn_without_repeats() -> None:
    columns = torch.arange(10.0).reshape(1, 1, 10, 1).expand(1, 2, 10, 1)
    drawn = some_positions(columns, 4, torch.Generator().manual_seed(0))
    assert drawn.shape == (1, 2, 4, 1)
    assert len(drawn[0, 0].unique()) == 4
    assert some_positions(columns, 10, torch.Generator()) is columns


def test_layers_that_read_one_value_alike_are_rounded_together(unet_graph: GraphModule, plain_data: Trajectories) -> None:
    quantized, _ = quantized_copy(unet_graph, plain_data, preset="w4a8", dilation="none")
    found = {tuple(sorted(name.rpartition(".")[2] for name in group.layers)) for group in groups_of(quantized, config())}
    assert ("to_k", "to_q", "to_v") in found
    assert ("time_emb_proj",) * 8 in found
    assert sum(len(group.layers) for group in groups_of(quantized, config())) == len(layers_of(quantized))


def reference_codes(quantized: GraphModule, data: Trajectories, name: str) -> torch.Tensor:
    """Codes of a layer from the inputs that it has in the whole network, H in fp64 of all of them."""
    layer = layers_of(quantized)[name]
    samples, timestep, _ = data.flat(slice(None))
    seen: list[torch.Tensor] = []

    def watch(module: Any, args: tuple[Quantized]) -> None:
        codes, scale = args[0]
        seen.append(codes * scale.reshape(-1, *[1] * (codes.dim() - 1)))

    hook = layer.register_forward_pre_hook(watch)
    with torch.no_grad():
        quantized(samples, timestep)
    hook.remove()
    (x,) = seen
    group = group_of(layer)
    rows = len(data.timesteps)
    power = layer.float_product(x, layer.matrix()).detach().double().reshape(rows, -1).pow(2).mean(dim=1)
    weight = (1 / power / (1 / power).mean()).repeat_interleave(len(x) // rows)
    columns = group.columns(x).double() * weight.sqrt()[:, None, None]
    moments = torch.einsum("gnpi,gnpj->gij", columns, columns) / (columns.shape[1] * columns.shape[2])
    w, s = (group.stacked(of).detach().double() for of in (QuantizedWeight.matrix, QuantizedWeight.steps_by_weight))
    limit = torch.full((w.shape[1],), float(layer.format.code_range(narrow=True)[1]), dtype=torch.float64)
    found = [Rounder(h).candidates(part, scale[None], limit) for part, scale, h in zip(w, s, moments, strict=True)]
    return torch.cat([codes[errors.argmin(dim=0), torch.arange(len(limit))] for codes, errors in found])


@pytest.mark.parametrize("name", ["embed.2", "down", "depthwise", "grouped", "qkv", "out"])
def test_a_layer_is_rounded_against_what_the_quantized_chain_gives_it(
    name: str, plain_graph: GraphModule, plain_data: Trajectories, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layerwise, "positions_needed", lambda inputs: 10**9)  # noqa: ARG005  every position
    monkeypatch.setattr(layerwise, "SCALES", (1.0,))
    data = some_seeds(plain_data)
    quantized, _ = quantized_copy(plain_graph, plain_data, preset="w4a8")
    before = {n: layer.weight.detach().clone() for n, layer in layers_of(quantized).items()}
    round_weights(quantized, plain_data, config())
    layers = layers_of(quantized)
    got = (layers[name].weight / layers[name].steps_by_weight()).round().flatten(1)
    order = list(before)
    for later in order[order.index(name) :]:  # those before it stay rounded
        layers[later].weight.data.copy_(before[later])
    expected = reference_codes(quantized, data, name)
    different = (got != expected).double().mean()
    assert float(different) < 0.01  # sums of H in fp32, and codes near a tie


def test_no_layer_is_worse_than_by_nearest_codes_and_most_are_better(plain_graph: GraphModule, plain_data: Trajectories) -> None:
    quantized, _ = quantized_copy(plain_graph, plain_data, preset="w4a8")
    records = round_weights(quantized, plain_data, config())
    assert {record.layer for record in records} == set(layers_of(quantized))
    assert all(record.error_ratio <= 1 for record in records)
    assert sum(record.error_ratio < 0.9 for record in records) > len(records) / 2


def test_the_same_seed_gives_the_same_codes_and_another_draws_others(unet_graph: GraphModule, plain_data: Trajectories,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr(layerwise, "positions_needed", lambda inputs: inputs)
    found = []
    for seed in (0, 0, 1):
        quantized, _ = quantized_copy(unet_graph, plain_data, preset="w4a8", dilation="none")
        round_weights(quantized, plain_data, config(seed=seed))
        found.append({name: layer.weight for name, layer in layers_of(quantized).items()})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert any(not torch.equal(found[0][name], found[2][name]) for name in found[0])


def test_layers_of_every_number_of_bits_are_rounded(plain_graph: GraphModule, plain_data: Trajectories) -> None:
    options: dict[str, Any] = {"preset": "w4a8", "rounding": "auto", "keep": {"qkv": 8, "out": 6}}
    quantized, _ = quantized_copy(plain_graph, plain_data, **options)
    names = {record.layer for record in round_weights(quantized, plain_data, config(**options))}
    assert set(layers_of(quantized)) == names
    assert round_weights(quantized, plain_data, config(rounding="nearest")) == []
    assert QuantizeConfig.build("w8a8").rounding is Rounding.AUTO


@pytest.mark.parametrize(("preset", "iterations", "expected"), [
    ("w4a8", 0, True), ("w4a8", 60, True), ("w4a16", 60, True), ("w4a4", 0, True), ("w6a6", 0, True),
    ("w8a8", 0, True), ("w8a8", 60, True), ("w4a4", 60, False), ("w6a6", 60, False),
])  # fmt: skip
def test_auto_does_not_train_from_gptq_where_activations_have_few_bits(preset: str, iterations: int, expected: bool) -> None:
    chosen = QuantizeConfig.build(preset, iterations=iterations)
    assert chosen.rounds_by_gptq is expected


def test_weights_alone_are_rounded_with_the_scales_that_they_ship_with(plain_graph: GraphModule, plain_data: Trajectories) -> None:
    options: dict[str, Any] = {"preset": "w4a16", "weight_block": 32, "keep": {"@first": 4}, "dilation": "none"}
    quantized, _ = quantized_copy(plain_graph, plain_data, **options)
    records = round_weights(quantized, plain_data, config(**options))
    assert all(record.error_ratio <= 1 for record in records)
    for layer in layers_of(quantized).values():
        codes = layer.integer_weight()[0].clone()
        layer.freeze()
        assert torch.equal(layer.integer_weight()[0], codes)


def test_a_wide_layer_is_rounded_in_parts_and_says_so(plain_graph: GraphModule, plain_data: Trajectories,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr(groups, "MOST_INPUTS", 40)
    quantized, _ = quantized_copy(plain_graph, plain_data, preset="w4a8")
    weight = {name: layer.weight.detach().clone() for name, layer in layers_of(quantized).items()}
    records = {record.layer: record for record in round_weights(quantized, plain_data, config())}
    assert records["down"].parts == 2  # 8 channels of 3 × 3
    layer = layers_of(quantized)["down"]
    codes, scale = layer.integer_weight()
    error = (codes * scale[:, None, None, None] - weight["down"]).abs()
    assert bool((error < 3 * scale[:, None, None, None]).all())  # both parts have the scale that the layer has
    assert records["qkv"].parts == 1
    assert records["down"].error_ratio < 1


def test_nothing_is_left_behind(
    plain_graph: GraphModule, plain_data: Trajectories, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    quantized, _ = quantized_copy(plain_graph, plain_data, preset="w4a8")
    round_weights(quantized, plain_data, config())
    assert list(tmp_path.iterdir()) == []


def test_a_chain_that_is_not_finite_is_named(plain_graph: GraphModule, plain_data: Trajectories) -> None:
    quantized, _ = quantized_copy(plain_graph, plain_data, preset="w4a8")
    layers = layers_of(quantized)
    assert layers["grouped"].bias is not None
    layers["grouped"].bias.data[3] = torch.nan
    with pytest.raises(ArtifactError, match="layer grouped: what it reads or gives on the calibration samples has NaN or Inf"):
        round_weights(quantized, plain_data, config())


@pytest.fixture(scope="session")
def rounded_checkpoint(tmp_path_factory: pytest.TempPathFactory, attention_pipeline: Path) -> Checkpoint:
    """W4A8 of ``attention_pipeline``, rounded and not distilled."""
    return make_checkpoint(
        attention_pipeline, tmp_path_factory.mktemp("rounded") / "checkpoint", preset="w4a8", rounding="auto", dilation="none"
    )


def test_a_checkpoint_says_what_was_rounded_and_is_better_for_it(
    rounded_checkpoint: Checkpoint, attention_pipeline: Path, tmp_path: Path
) -> None:
    nearest = make_checkpoint(attention_pipeline, tmp_path / "nearest", preset="w4a8", dilation="none", rounding="nearest")
    details = rounded_checkpoint.details
    weighted = {layer.name for layer in details.layers if layer.weight_bits}
    assert {layer.layer for layer in details.rounding or ()} == weighted != set()
    assert re.fullmatch(
        rf"{len(weighted)} of \d+ layers; a layer's error is 0\.\d\d of that of nearest codes \(median\)", details.rounding_summary
    )
    assert nearest.details.rounding == []
    assert nearest.details.rounding_summary == "none"
    assert median(details.snr_db["after_distillation"]) > median(nearest.details.snr_db["after_distillation"]) + 0.5
    tables = [
        {name: q.scale_table() for name, q in checkpoint.quantizers.items() if q.source is ScaleSource.TABLE}
        for checkpoint in (rounded_checkpoint, nearest)
    ]
    assert all(torch.equal(tables[0][name], tables[1][name]) for name in tables[0])  # activations are as they were


@pytest.mark.parametrize("target", ["qdq", "onnxruntime"])
def test_its_graphs_give_what_it_gives(rounded_checkpoint: Checkpoint, target: Any, tmp_path: Path) -> None:
    bundle = export(rounded_checkpoint.artifact, tmp_path / "bundle", target=target, dtype="fp32", **WHOLE[target])
    assert check(bundle, rounded_checkpoint.artifact).failures == []


def test_training_starts_from_the_rounded_weights(plain_graph: GraphModule, plain_data: Trajectories) -> None:
    quantized, _ = quantized_copy(plain_graph, plain_data, preset="w4a8", dilation="none")
    before = {name: layer.weight.detach().clone() for name, layer in layers_of(quantized).items()}
    round_weights(quantized, plain_data, config())
    for name, layer in layers_of(quantized).items():
        position = layer.weight / layer.steps_by_weight()
        assert bool(((position - position.round()).abs() <= 0.3001).all())
        near = ((before[name] / layer.steps_by_weight()) - position.round()).abs() < 0.29
        torch.testing.assert_close(layer.weight[near], before[name][near])  # those stay where they were


def test_the_command_names_layers_that_are_too_wide(
    flow_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(groups, "MOST_INPUTS", 40)
    flags = [
        "--steps",
        "2",
        "--calibration-samples",
        "2",
        "--iterations",
        "0",
        "--dilation",
        "none",
        "--weight-bits",
        "3",
        "--rounding",
        "gptq",
    ]
    assert run(["quantize", str(flow_pipeline), "-o", str(tmp_path / "out"), *flags]) == 0
    said = capfd.readouterr()
    assert "too many inputs to be rounded as one, and rounded in parts: " in said.err
    assert "weights rounded by GPTQ" in said.out
    assert run(["inspect", str(tmp_path / "out")]) == 0
    assert "a layer's error is 0." in capfd.readouterr().out.replace("\n", " ")
