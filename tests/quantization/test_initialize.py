"""Initial tables in several passes, and what a large model's initialization must not copy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

from dq_deploy.accuracy import check
from dq_deploy.errors import ArtifactError
from dq_deploy.exporters import export
from dq_deploy.formats import of_bits
from dq_deploy.quantization.calibration.trajectories import Trajectories
from dq_deploy.quantization.choices import Dilation
from dq_deploy.quantization.config import QuantizeConfig
from dq_deploy.quantization.graph.modules import named_layers, named_quantizers
from dq_deploy.quantization.initial import initialize as initializing
from dq_deploy.quantization.initial import tables
from dq_deploy.quantization.initial.initialize import AUTO_RULES, best_rule, initialize, quantizer_groups, undilated_weights
from dq_deploy.quantization.quantizers import ProbabilityQuantizer
from dq_deploy.quantization.quantizers.observation import Observation
from dq_deploy.quantization.weights import QuantizedWeight
from tests.tiny import FAST, WHOLE, captured, make_checkpoint, quantized_copy, trajectories


@pytest.mark.parametrize("rule", [Dilation.NONE, Dilation.SYMMETRIC])
@pytest.mark.parametrize("activations", ["per-timestep", "static"])
def test_tables_see_every_sample_and_do_not_depend_on_how_many_memory_has_room_for(
    monkeypatch: pytest.MonkeyPatch, plain_graph: GraphModule, plain_data: Trajectories, rule: Dilation, activations: str
) -> None:
    options = {"initial_range": "minmax", "activations": activations}
    whole = dict(named_quantizers(quantized_copy(plain_graph, plain_data, rule=rule, **options)[0]))
    runs: list[int] = []
    observe = tables.Observer.observe
    monkeypatch.setattr(tables.Observer, "observe", lambda *a: (runs.append(1), observe(*a))[1])
    monkeypatch.setattr(tables, "_PASS_BYTES", 2 * tables.live_bytes(list(plain_graph.graph.nodes)))
    found = dict(named_quantizers(quantized_copy(plain_graph, plain_data, rule=rule, **options)[0]))
    assert len(runs) == len(plain_data.timesteps) * plain_data.samples.shape[1] / 2
    assert found.keys() == whole.keys()
    for name, quantizer in found.items():
        # Products of other batch sizes differ in the last bits.
        torch.testing.assert_close(quantizer.scale_table(), whole[name].scale_table(), rtol=1e-4, atol=0)
        assert int((quantizer.zero_point_table() - whole[name].zero_point_table()).abs().max()) <= 1
        assert quantizer.fixed or len(set(quantizer.scale_table().tolist())) == (
            quantizer.table_rows if activations == "per-timestep" else 1
        )


def test_the_last_sample_widens_a_range_as_the_first_one_does(plain_graph: GraphModule, plain_data: Trajectories) -> None:
    found = []
    for sample in (0, -1):  # dilations are fitted to the first
        samples = torch.zeros_like(plain_data.samples)
        samples[:, sample] = plain_data.samples[:, 0]
        data = replace(plain_data, samples=samples)
        found.append(dict(named_quantizers(quantized_copy(plain_graph, data, rule=Dilation.NONE, initial_range="minmax")[0])))
    for name, quantizer in found[0].items():
        torch.testing.assert_close(quantizer.scale_table(), found[1][name].scale_table(), rtol=1e-4, atol=0)


def test_nan_in_an_activation_names_it_the_timestep_and_the_seed(plain_graph: GraphModule, plain_data: Trajectories) -> None:
    samples = plain_data.samples.clone()
    samples[2, 1] = torch.nan
    with pytest.raises(ArtifactError, match=r"activation '\w+' has NaN or Inf at timestep 500, seed 1"):
        quantized_copy(plain_graph, replace(plain_data, samples=samples), rule=Dilation.NONE)


def test_a_quantized_copy_shares_no_memory_with_the_float_graph(plain_graph: GraphModule, plain_data: Trajectories) -> None:
    quantized, _ = quantized_copy(plain_graph, plain_data, rule=Dilation.NONE)
    own = {tensor.data_ptr() for tensor in quantized.state_dict().values() if tensor.numel()}
    assert not own & {tensor.data_ptr() for tensor in plain_graph.buffers()}


def test_undilated_weights_are_those_of_the_float_model(plain_graph: GraphModule, plain_data: Trajectories) -> None:
    quantized, _ = quantized_copy(plain_graph, plain_data, rule=Dilation.SYMMETRIC)
    state, same = quantized.state_dict(), undilated_weights(quantized)
    weights = {f"layers.{name.replace('.', '/')}.weight" for name, layer in named_layers(quantized) if isinstance(layer, QuantizedWeight)}
    assert set() < same < weights
    floats = dict(plain_graph.named_buffers())
    for call in (n for n in quantized.graph.nodes if "weight" in n.meta):
        weight = f"{call.target}.weight"
        assert torch.equal(state[weight], floats[call.meta["weight"]]) == (weight in same)


@pytest.mark.parametrize(
    ("lead", "chosen"),
    [(-1.0, Dilation.LAYERWISE), (0.7, Dilation.LAYERWISE), (0.8, Dilation.SMOOTHQUANT)],
)
def test_smoothquants_factors_need_a_clear_lead(lead: float, chosen: Dilation) -> None:
    dilations = {Dilation.NONE: 30.0, Dilation.SYMMETRIC: 29.0, Dilation.LAYERWISE: 30.5}
    assert best_rule(dilations) is Dilation.LAYERWISE
    assert best_rule({**dilations, Dilation.SMOOTHQUANT: 30.5 + lead}) is chosen


@pytest.mark.parametrize("lead", [-1e3, 1e3])
def test_auto_leaves_the_network_as_the_rule_it_takes_does(
    monkeypatch: pytest.MonkeyPatch, plain_graph: GraphModule, plain_data: Trajectories, lead: float
) -> None:
    monkeypatch.setattr(initializing, "SMOOTHQUANT_LEAD_DB", lead)
    config = QuantizeConfig.build("w4a4", **{**FAST, "dilation": "auto"})
    found, _ = quantized_copy(plain_graph, plain_data, rule=Dilation.NONE)
    result = initialize(plain_graph, found, plain_data, config)
    assert list(result.tried) == [rule.value for rule in AUTO_RULES]
    dilations = {rule: snr for rule, snr in result.tried.items() if rule != Dilation.SMOOTHQUANT}
    assert result.rule == (max(dilations, key=lambda rule: dilations[rule]) if lead > 0 else Dilation.SMOOTHQUANT)
    alone, _ = quantized_copy(plain_graph, plain_data, rule=Dilation.NONE)
    initialize(plain_graph, alone, plain_data, config.model_copy(update={"dilation": Dilation(result.rule)}))
    expected = alone.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in found.state_dict().items())


def test_half_of_the_weights_error_is_judged_where_gptq_follows(plain_graph: GraphModule, plain_data: Trajectories) -> None:
    """At 2 bits it is the weights that make the error: 6 dB less of it, but for what their activations add."""
    judged = {}
    for rounding in ("nearest", "gptq"):
        options: dict[str, Any] = {**FAST, "dilation": "auto", "weight_bits": 2, "rounding": rounding}
        quantized, _ = quantized_copy(plain_graph, plain_data, rule=Dilation.NONE, weight_bits=2, rounding=rounding)
        judged[rounding] = initialize(plain_graph, quantized, plain_data, QuantizeConfig.build(**options)).tried["none"]
        layers = [layer for _, layer in named_layers(quantized) if isinstance(layer, QuantizedWeight)]
        assert all(bool((codes == codes.round()).all()) for codes, _ in (layer.integer_weight() for layer in layers))
    assert judged["nearest"] + 4 < judged["gptq"] < judged["nearest"] + 9


class Grouped(nn.Module):
    """What a ConvNeXt block or a UNet of EDM does: a norm's output read by convolutions in C, in 4 and in no groups."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.norm = nn.Conv2d(1, 16, 3, padding=1), nn.GroupNorm(4, 16)
        self.depthwise, self.grouped = nn.Conv2d(16, 16, 7, padding=3, groups=16), nn.Conv2d(16, 8, 3, padding=1, groups=4)
        self.mix, self.out = nn.Conv2d(16, 16, 1), nn.Conv2d(8, 16, 1)
        self.residual, self.last = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 1, 3, padding=1)
        for layer in (self.residual, self.grouped, self.mix):  # input channels of very different norms, which dilation lives off
            layer.weight.data *= torch.logspace(0, -1.5, layer.weight.shape[1])[:, None, None]

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        h = self.norm(self.first(x) + t[:, None, None, None] / 1000)
        h = self.mix(self.depthwise(h)) + self.residual(h) + self.out(torch.relu(self.grouped(h)))
        return self.last(h)


@pytest.mark.parametrize("rule", [rule for rule in AUTO_RULES if rule is not Dilation.NONE])
def test_dilation_of_what_grouped_and_ordinary_convolutions_read_leaves_the_float_network_as_it_is(rule: Dilation) -> None:
    graph = captured(Grouped())
    data = trajectories(graph)
    quantized, plan = quantized_copy(graph, data, rule=rule, preset="w4a8")
    assert plan.quantized
    groups = quantizer_groups(quantized, graph)
    shared = [g for part in groups.values() for g in part if len({layer.groups for layer in g.layers.values()}) == 3]  # type: ignore[union-attr]
    assert len(shared) == 1
    dilated = 0
    for group in (g for part in groups.values() for g in part):
        s, weights = group.quantizer.dilation, group.weights
        dilated += bool((s != 1).any())
        x = torch.randn(2, len(s), 8, 8)
        for name, layer in group.layers.items():
            plain, other = layer.float_product(x, weights[name]), layer.float_product(x / s.reshape(1, -1, 1, 1), layer.weight)
            torch.testing.assert_close(other, plain, rtol=1e-4, atol=1e-5)
            if rule is not Dilation.SMOOTHQUANT:
                assert bool((layer.weight.abs().flatten(1).amax(1) <= weights[name].abs().flatten(1).amax(1) * (1 + 1e-6)).all())
    assert dilated


def test_a_network_of_grouped_convolutions_goes_the_whole_way(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(Grouped(), tmp_path / "checkpoint", dilation="symmetric")
    assert min(checkpoint.details.snr_db["after_distillation"]) > 25
    bundle = export(tmp_path / "checkpoint", tmp_path / "bundle", target="qdq", dtype="fp32")
    assert check(bundle, tmp_path / "checkpoint")


class Spread(nn.Module):
    """Attention over 1,024 tokens, between which it hardly chooses; ``sharp`` lets it."""

    def __init__(self, sharp: float) -> None:
        super().__init__()
        self.conv, self.sharp = nn.Conv2d(1, 8, 3, padding=1), sharp
        self.qkv, self.out, self.last = nn.Linear(8, 24), nn.Linear(8, 8), nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        hidden = self.conv(sample) + timestep[:, None, None, None] / 1000
        query, key, value = self.qkv(hidden.flatten(2).transpose(1, 2)).chunk(3, dim=-1)
        attended = torch.softmax(self.sharp * query @ key.transpose(1, 2), dim=-1) @ value
        return self.last(self.out(attended).transpose(1, 2).unflatten(2, sample.shape[2:]))


@pytest.mark.parametrize(("sharp", "halvings", "least_snr"), [(0.3, 6, 35), pytest.param(30.0, 0, 5, marks=pytest.mark.nightly)])
def test_probabilities_that_are_spread_over_many_tokens_keep_their_codes(
    tmp_path: Path, sharp: float, halvings: int, least_snr: float
) -> None:
    torch.manual_seed(0)
    made = make_checkpoint(Spread(sharp), tmp_path / "spread", shape=(1, 32, 32), dilation="none", iterations=0)
    (quantizer,) = [q for _, q in named_quantizers(made.model) if q.fixed]
    assert quantizer.scale_table().tolist() == pytest.approx([2.0**-halvings / 255] * quantizer.table_rows)
    assert set(quantizer.zero_point_table().tolist()) == {-128}
    assert min(made.details.snr_db["after_distillation"]) > least_snr  # over [0, 1] the first one has 7 dB
    for target in ("qdq", "onnxruntime"):
        bundle = export(tmp_path / "spread", tmp_path / target, target=target, dtype="fp32", **WHOLE[target])
        assert check(bundle, tmp_path / "spread")


def test_a_run_that_goes_on_has_the_range_of_probabilities_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = make_checkpoint(Spread(0.3), tmp_path / "spread", shape=(1, 32, 32), dilation="none", iterations=0)
    (quantizer,) = [q for _, q in named_quantizers(made.model) if q.fixed]
    assert isinstance(quantizer, ProbabilityQuantizer)
    fresh = ProbabilityQuantizer(made.table_timesteps, of_bits(8), symmetric=False, axis=0, channels=1)
    fresh.log_scale.data.copy_(quantizer.log_scale)  # as the stages of a work folder are loaded
    assert torch.equal(fresh.scale_table(), quantizer.scale_table())
    assert fresh.scale_table()[0] == torch.tensor(2.0**-6 / 255)


def test_the_range_of_probabilities_holds_what_was_seen_and_more() -> None:
    for peak in (1e-9, 1e-4, 0.01, 0.04, 0.12, 0.125, 0.5, 1.0):
        quantizer = ProbabilityQuantizer(torch.tensor([1.0, 2.0]), of_bits(8), symmetric=False, axis=0, channels=1)
        quantizer.calibrate(Observation.of(torch.tensor([[0.0, peak]] * 2), 2, counted=False), QuantizeConfig())
        (scale,) = set(quantizer.scale_table().tolist())
        assert 255 * scale >= min(1.5 * peak, 1) * (1 - 1e-6)
        assert 255 * scale <= (max(3 * peak, 2.0**-20) if peak < 1 / 8 else 1) * (1 + 1e-6)
