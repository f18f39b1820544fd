"""Scales that are computed for each token: the quantizer, and its way through calibration, training and storage."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.fx import GraphModule

from dq_deploy.errors import ArtifactError, UsageError
from dq_deploy.formats import Activations, NumberFormat, ScaleSource, of_bits
from dq_deploy.quantization.bits.sensitivity import few_trajectories, sensitivities_on
from dq_deploy.quantization.calibration.source import Request
from dq_deploy.quantization.calibration.trajectories import Trajectories
from dq_deploy.quantization.checkpoint import Checkpoint, load_checkpoint
from dq_deploy.quantization.config import QuantizeConfig
from dq_deploy.quantization.distillation.distill import distill
from dq_deploy.quantization.prepare import prepare
from dq_deploy.quantization.quantizers import Quantized, TableQuantizer, TokenQuantizer
from dq_deploy.quantization.quantizers.token import LEAST_LARGEST
from dq_deploy.quantization.weights import QuantizedLinear
from tests.command_line import Cli
from tests.exporters.lower.written import random
from tests.tiny import FAST, SHAPE, PlainUNet, change_tensors, make_checkpoint, planned, quantized_copy, scheduler

TIMESTEPS = torch.tensor([0.0, 100.0, 500.0])


def quantizer(ratios: list[float] | None = None, bits: int = 8, channels: int = 16) -> TokenQuantizer:
    made = TokenQuantizer(TIMESTEPS, of_bits(bits), symmetric=True, axis=-1, channels=channels)
    if ratios:
        with torch.no_grad():
            made.log_ratio.copy_(torch.tensor(ratios).log()[:, None])
    return made


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return make_checkpoint(PlainUNet(), tmp_path_factory.mktemp("tokens") / "checkpoint", activations="per-token", iterations=6)


@pytest.mark.parametrize("shape", [(4, 16), (4, 5, 16), (4, 2, 3, 16)])
def test_a_tokens_largest_value_has_the_last_code_and_all_are_half_a_step_away(shape: tuple[int, ...]) -> None:
    x = random(*shape) * random(*shape[:-1], 1, seed=1).exp()
    codes, scale = quantizer()(x, torch.tensor([0.0, 100.0, 500.0, 0.0]))
    assert scale.shape == (*shape[:-1], 1)
    assert bool((codes.abs().amax(dim=-1) == 127).all())
    assert bool(((codes * scale - x).abs() <= scale * 0.5001).all())


def test_the_timesteps_clipping_ratio_is_taken_sample_by_sample() -> None:
    x, ratios = random(3, 5, 16), [1.0, 0.5, 0.25]
    codes, scale = quantizer(ratios)(x, torch.tensor([0.0, 120.0, 900.0]))
    largest = x.abs().amax(dim=-1, keepdim=True)
    torch.testing.assert_close(scale, largest * torch.tensor(ratios)[:, None, None] / 127)
    assert [bool((part == -128).any() or (part == 127).sum() > 5) for part in codes] == [False, True, True]


def test_a_token_of_zeros_has_codes_of_zero() -> None:
    x = random(2, 3, 16)
    x[0, 1] = 0
    codes, scale = quantizer()(x, torch.zeros(2))
    assert scale[0, 1].item() == pytest.approx(LEAST_LARGEST / 127)
    assert not codes[0, 1].any()
    assert bool(torch.isfinite(codes).all())


def test_clipping_ratios_shrink_with_the_bits() -> None:
    """Calibration takes the least error of normal values: all of 8 bits' range, and less of a token's largest at 2 bits."""
    x, found = random(3 * 8, 64, 256), []
    for bits in (8, 2):
        made = quantizer(bits=bits, channels=256)
        made.calibrate(made.observation().after(x), QuantizeConfig())
        found.append(made.table())
        typical = x.unflatten(0, (3, 8)).abs().amax(dim=-1).square().flatten(1).mean(dim=1).sqrt()
        torch.testing.assert_close(made.scale_table(), made.table() * typical / made.format.largest)
    assert bool((found[0] > 0.9).all())
    assert bool((found[1] < 0.9).all())


@pytest.mark.parametrize(("fmt", "axis", "symmetric"), [(of_bits(8), 1, True), (of_bits(8, "fp8"), -1, False)])
def test_a_token_is_the_last_axis_and_floats_have_no_zero_points(fmt: NumberFormat, axis: int, symmetric: bool) -> None:
    with pytest.raises(ValueError, match="a token is the last axis, and"):
        TokenQuantizer(TIMESTEPS, fmt, channels=4, axis=axis, symmetric=symmetric)


@pytest.mark.parametrize(("allowed", "lean", "shifted"), [(True, 0.0, False), (True, 1.5, True), (True, -1.5, True), (False, 1.5, False)])
def test_values_that_lean_to_one_side_get_zero_points_where_they_may(allowed: bool, lean: float, shifted: bool) -> None:
    made = TokenQuantizer(TIMESTEPS, of_bits(8), symmetric=not allowed, axis=-1, channels=16)
    x = torch.cat([random(6, 5, 8), -random(6, 5, 8)], dim=-1) + lean
    made.calibrate(made.observation().after(x), QuantizeConfig())
    assert made.symmetric is not shifted
    codes, scale = made(x, torch.tensor([0.0, 0.0, 100.0, 100.0, 500.0, 500.0]))
    assert bool(((codes * scale - x).abs() <= scale * 1.001).all())  # where x and the zero-point are rounded, two halves of a step
    steps = (x.amax(-1).clamp(min=0) - x.amin(-1).clamp(max=0)) / scale[..., 0]
    assert bool((steps > 253).all()) is (shifted or not lean)


def test_a_zero_point_is_0s_code_and_a_clipping_ratio_moves_both_ends_to_it() -> None:
    made, x = quantizer([0.5, 1.0, 1.0]), random(2, 3, 16).abs()
    made.shifted.fill_(True)
    x[..., 0] = 0
    scale, zero_point = made.scales(x, torch.tensor([0.0, 100.0]))
    assert bool((zero_point == -127).all())
    torch.testing.assert_close(scale, x.amax(-1, keepdim=True) / 254 * torch.tensor([0.5, 1.0])[:, None, None])
    codes = made(x, torch.tensor([0.0, 100.0])).codes.detach()
    assert not codes[..., 0].any()
    assert float(codes.max()) == 254  # of 256 there are two that no value has


def test_a_clipping_ratio_has_the_gradient_of_the_rounding_it_makes() -> None:
    """STE: with codes q and a scale s = α·m/127, ∂(q·s)/∂α is (q − x/s)·m/127, where a value is clipped q·m/127."""
    x, made = random(1, 4, 16), quantizer([0.5, 0.5, 0.5])
    codes, scale = made(x, torch.zeros(1))
    (codes * scale).sum().backward()
    inside = (x / scale).round().abs() <= 127
    per_ratio = torch.where(inside, codes - x / scale, codes).detach() * (x.abs().amax(dim=-1, keepdim=True) / 127)
    assert made.log_ratio.grad is not None
    torch.testing.assert_close(made.log_ratio.grad[0, 0], per_ratio.sum() * 0.5, rtol=1e-3, atol=1e-3)
    assert not made.log_ratio.grad[1:].any()


def test_linear_layers_have_a_scale_for_each_token_and_other_products_tables(plain_graph: GraphModule) -> None:
    plan = planned(plain_graph, activations="per-token")
    kinds = {layer.name: plan.reading(layer, layer.node.args[0]).kind for layer in plan.quantized}
    assert {name for name, kind in kinds.items() if kind == "per-token"} == {x.name for x in plan.quantized if x.op == "linear"}
    bare = planned(plain_graph, activations="per-token", zero_points=False)
    for made, symmetric in ((plan, False), (bare, True)):
        assert all(made.reading(x, x.node.args[0]).symmetric is symmetric for x in made.quantized if x.op == "linear")


def test_a_checkpoint_keeps_the_ratios_and_tells_that_scales_are_computed(tokens: Checkpoint) -> None:
    stored = load_file(tokens.artifact.path / "model.safetensors")
    computed = {entry.name for entry in tokens.details.quantizers if entry.source is ScaleSource.COMPUTED}
    assert computed == {"embed.0.input", "embed.2.input", "qkv.input", "out.input"}
    for name in computed:
        made = tokens.quantizers[name]
        assert isinstance(made, TokenQuantizer)
        assert f"{name}.scale" not in stored
        rows = torch.isin(tokens.table_timesteps, tokens.timesteps)
        assert torch.equal(made.table()[rows], stored[f"{name}.clipping_ratio"])
    assert isinstance(tokens.quantizers["down.input"], TableQuantizer)
    assert min(tokens.details.snr_db["after_distillation"]) > 25


def test_inspect_counts_tables_of_scales_apart_from_those_of_clipping_ratios(tokens: Checkpoint, cli: Cli) -> None:
    computed = [quantizer.source is ScaleSource.COMPUTED for quantizer in tokens.quantizers.values()]
    shown = " ".join(cli("inspect", tokens.artifact.path).out.split())
    assert f"scale tables │ {computed.count(False)}, see --layer" in shown
    assert f"tables of clipping ratios │ {computed.count(True)}, see --layer" in shown


def test_distillation_trains_the_ratios_of_the_rows_that_a_batch_has(plain_graph: GraphModule, plain_data: Trajectories) -> None:
    options = {"activations": "per-token", "activation_bits": 3, "iterations": 4, "batch_size": 4}
    quantized, _ = quantized_copy(plain_graph, plain_data, **options)
    before = {name: module.log_ratio.detach().clone() for name, module in quantized.named_modules() if isinstance(module, TokenQuantizer)}
    distill(plain_graph, quantized, plain_data, QuantizeConfig(**options))
    moved = {name for name, module in quantized.named_modules() if name in before and not torch.equal(module.log_ratio, before[name])}
    assert moved  # a block that training makes worse keeps what it began with


def test_tokens_of_one_product_share_the_scale_row(tokens: Checkpoint) -> None:
    """Codes are multiplied first and scaled then: what a linear layer gives is that of the dequantized numbers."""
    made, layer = tokens.quantizers["qkv.input"], tokens.layers["qkv"]
    assert isinstance(layer, QuantizedLinear)
    assert layer.frozen is not None
    codes, scale = made(random(2, 5, 16), torch.tensor([0.0, 750.0]))
    expected = (codes * scale) @ (layer.frozen[0] * layer.frozen[1][:, None]).T
    expected = expected if layer.bias is None else expected + layer.bias
    torch.testing.assert_close(layer(Quantized(codes, scale)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("change", "words"), [
    (lambda t: t.pop("qkv.input.clipping_ratio"), "qkv.input.clipping_ratio"),
    (lambda t: t["qkv.input.clipping_ratio"].fill_(0), "zero, negative or subnormal"),
    (lambda t: t.update({"qkv.input.clipping_ratio": torch.ones(2)}), "there are 4 calibrated timesteps"),
    (lambda t: t["qkv.input.clipping_ratio"].fill_(torch.nan), "NaN or Inf"),
])  # fmt: skip
def test_bad_ratios_are_refused(tokens: Checkpoint, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], Any], words: str) -> None:
    folder = Path(shutil.copytree(tokens.artifact.path, tmp_path / "checkpoint"))
    change_tensors(folder, change)
    with pytest.raises(ArtifactError, match=words):
        load_checkpoint(folder)


def test_temporal_is_the_former_name_of_activations() -> None:
    assert QuantizeConfig.build(temporal=False).activations is Activations.STATIC
    assert QuantizeConfig.build(temporal=True).activations is Activations.PER_TIMESTEP
    assert QuantizeConfig.build(method="quest", temporal=False).activations is Activations.STATIC
    with pytest.raises(UsageError, match="former name of activations"):
        QuantizeConfig.build(temporal=False, activations="per-token")
    with pytest.raises(UsageError, match="got 'no'"):
        QuantizeConfig.build(temporal="no")
    with pytest.raises(UsageError, match="activations would be ignored"):
        QuantizeConfig.build("w4a16", activations="per-token")


class OddTokens(nn.Module):
    """Pixels as tokens: of one layer's input a token is a hundred times the others, of the other's all are alike and positive."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.odd, self.even, self.last = nn.Linear(16, 16), nn.Linear(16, 16), nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        tokens = x.reshape(-1, 4, 16)
        size = torch.tensor([100.0, 1.0, 1.0, 1.0])[:, None] * (1 + timestep[:, None, None] / 1000)
        odd = self.odd(tokens * size) / size
        return self.last((odd + self.even(tokens.abs().clamp(max=1))).reshape(-1, 1, 8, 8))


def test_auto_takes_tokens_where_they_serve_a_layer(tmp_path: Path) -> None:
    options = {"activations": "auto", "dilation": "none", "max_float_share": 1.0, "keep": {"@first": 8}}
    made = make_checkpoint(OddTokens(), tmp_path / "checkpoint", **options)
    assert {name: type(quantizer) for name, quantizer in made.quantizers.items() if "last" not in name} == {
        "odd.input": TokenQuantizer, "even.input": TableQuantizer,
    }  # fmt: skip
    found = {choice.layers[0]: choice for choice in made.details.scale_choices}
    assert found["odd"].snr_db["per-token"] > found["odd"].snr_db["per-timestep"] + 6
    assert found["even"].chosen == "per-timestep"
    assert made.details.per_token == "1 of 3 quantizers"


def test_what_a_layers_bits_cost_is_measured_with_its_own_kind_of_scale() -> None:
    noise = {}
    for activations in ("per-token", "per-timestep"):
        config = QuantizeConfig.build(activations=activations, **FAST, keep={"@first": 8})
        prepared = prepare(OddTokens(), config, Request(scheduler(), SHAPE))
        found = sensitivities_on(prepared, few_trajectories(prepared), prepared.plan.quantized, lambda _: [(8, 4)])
        noise[activations] = float(next(x for x in found if x.layer == "odd").noise[8, 4].mean())
    assert noise["per-token"] < noise["per-timestep"] / 4
