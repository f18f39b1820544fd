"""NVFP4: the grid of FP4, blocks and their scales, gradients, GPTQ, and networks from plan to loaded checkpoint."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch.fx import GraphModule

from dq_deploy.artifacts.layer_bits import bits_label
from dq_deploy.errors import ArtifactError, UsageError
from dq_deploy.formats import FP4, FP8, of_bits
from dq_deploy.formats.presets import preset_of
from dq_deploy.quantization import blocks, grid, numerics
from dq_deploy.quantization.bits.format_choice import LOSES, MOST_WEIGHTS, choose
from dq_deploy.quantization.bits.sensitivity import Sensitivity
from dq_deploy.quantization.calibration.trajectories import Trajectories
from dq_deploy.quantization.checkpoint import Checkpoint, load_checkpoint
from dq_deploy.quantization.choices import Dilation
from dq_deploy.quantization.config import QuantizeConfig
from dq_deploy.quantization.distillation.distill import distill
from dq_deploy.quantization.graph.modules import named_layers
from dq_deploy.quantization.quantizers import BlockQuantizer
from dq_deploy.quantization.refit import refit
from dq_deploy.quantization.rounding.layerwise import round_weights
from dq_deploy.quantization.weights import Fp4Linear
from tests.shared import made_once
from tests.tiny import FAST, change_tensors, make_checkpoint, planned, quantized_copy
from tests.tiny_pipelines import tiny_dit

NUMBERS = torch.arange(-7, 8).double().sign() * torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])[torch.arange(-7, 8).abs()].double()
OPTIONS = {"preset": "nvfp4", "dilation": "none"}
CLASSES = {"conditions": {"class_labels": torch.arange(5)}, "max_float_share": 0.6}


def test_the_format_is_e2m1_in_blocks_of_16_with_scales_in_a_byte() -> None:
    assert (FP4.largest, FP4.integer, FP4.packed, FP4.last_step, FP4.unclipped_range()) == (6.0, False, True, 2.0, (-7.0, 7.0))
    assert (of_bits(4, "nvfp4"), of_bits(8, "nvfp4"), of_bits(4, "fp4"), of_bits(4).name) == (FP4, FP8, FP4, "INT4")
    assert FP4.storage_bytes([64, 32]) == 64 * 32 // 2 + 64 * 2
    assert preset_of(QuantizeConfig.build("nvfp4").model_dump()) == "nvfp4"


def test_rounding_is_half_to_even_and_saturates_as_hardware_types_do() -> None:
    ties = (NUMBERS[1:] + NUMBERS[:-1]) / 2
    x = torch.cat([NUMBERS, ties, torch.linspace(-9, 9, 40_001, dtype=torch.float64)])
    for dtype in (torch.float32, torch.float64):
        expected = x.to(dtype).float().numpy().astype(ml_dtypes.float4_e2m1fn).astype(np.float64)
        assert np.array_equal(grid.nearest(x.to(dtype), FP4).double().numpy(), expected)
    assert grid.positions(NUMBERS, FP4).tolist() == list(range(-7, 8))
    gaps = NUMBERS.diff()
    assert torch.equal(grid.spacing(NUMBERS, FP4), torch.minimum(torch.cat([gaps[:1], gaps]), torch.cat([gaps, gaps[-1:]])))
    assert bool(grid.nearest(torch.tensor([math.nan]), FP4).isnan())
    assert grid.nearest(torch.tensor([math.inf, -1e30]), FP4).tolist() == [6.0, -6.0]


def quantizer_of(largest: float, channels: int = 32) -> BlockQuantizer:
    made = BlockQuantizer(torch.tensor([0.0, 500.0]), FP4, symmetric=True, axis=-1, channels=channels)
    made.calibrate(made.observation().after(torch.full((2, 4, channels), largest)), QuantizeConfig())
    return made


def test_each_block_has_a_scale_of_e4m3_that_covers_its_largest() -> None:
    x = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 1, 64)
    quantizer = quantizer_of(float(x.abs().max()), 64)
    codes, scale = quantizer(x, torch.zeros(3))
    g = float(quantizer.global_scale)
    assert math.log2(g) % 1 == 0
    steps = (scale / g).unflatten(-1, (-1, 16))
    assert bool((steps == steps[..., :1]).all())
    assert torch.equal(steps, steps.to(torch.float8_e4m3fn).float())
    largest = x.unflatten(-1, (-1, 16)).abs().amax(dim=-1)
    torch.testing.assert_close(6 * scale.unflatten(-1, (-1, 16))[..., 0], largest, rtol=1 / 16, atol=0)
    assert torch.equal(codes, grid.nearest(x * (1 / scale), FP4))
    assert float((codes * scale - x).square().sum() / x.square().sum()) < 0.012  # 19 dB


def test_what_is_dequantized_is_exact_in_any_order() -> None:
    x = torch.randn(2, 8, 32, generator=torch.Generator().manual_seed(1))
    quantizer = quantizer_of(float(x.abs().max()))
    codes, scale = quantizer(x, torch.zeros(2))
    s = (scale / quantizer.global_scale).double()
    assert torch.equal((codes * scale).double(), codes.double() * s * quantizer.global_scale.double())


def test_zeros_tiny_and_large_blocks() -> None:
    quantizer = quantizer_of(1.0)
    for value, expected in ((0.0, 0.0), (1e-12, 0.0), (1.9, 1.9)):  # the last is more than calibration saw
        codes, scale = quantizer(torch.full((1, 2, 32), value), torch.zeros(1))
        assert float((codes * scale).amax()) == pytest.approx(expected, rel=0.07)
        assert bool(torch.isfinite(codes * scale).all())
    codes, scale = quantizer(torch.full((1, 2, 32), 1e6), torch.zeros(1))
    assert set(codes.flatten().tolist()) == {6.0}
    assert float(scale.max()) == 448 * float(quantizer.global_scale)
    assert float(quantizer_of(0.0).global_scale) == 1.0


def test_gradients_pass_to_the_activation_where_nothing_saturates() -> None:
    x = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(2), requires_grad=True)
    codes, scale = quantizer_of(4.0)(x, torch.zeros(2))
    (codes * scale).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.ones_like(x))


@pytest.mark.parametrize("options", [{"fmt": FP8}, {"channels": 24}, {"axis": 1}, {"symmetric": False}])
def test_a_quantizer_that_cannot_be_is_refused(options: dict[str, Any]) -> None:
    given: dict[str, Any] = {"fmt": FP4, "symmetric": True, "axis": -1, "channels": 32, **options}
    with pytest.raises(ValueError, match="blocks are of 16 FP4 codes along the last axis"):
        BlockQuantizer(torch.zeros(1), given.pop("fmt"), **given)


def layer_of(weight: torch.Tensor) -> Fp4Linear:
    made = Fp4Linear(weight, None, FP4)
    made.set_weight(weight, clip=True)
    return made


def test_a_weight_is_on_the_grid_and_nearer_with_scales_of_least_error() -> None:
    weight = torch.randn(24, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 1, 24)[:, None]
    errors = []
    for clip in (False, True):
        layer = Fp4Linear(weight, None, FP4)
        layer.set_weight(weight, clip=clip)
        layer.freeze()
        assert layer.frozen is not None
        codes, scale = layer.frozen
        assert torch.equal(codes.float(), grid.nearest(codes.float(), FP4))
        assert torch.equal(layer.block_scale().float() * layer.global_scale, scale)
        errors.append(float((layer.unpacked() - weight).square().sum()))
    assert errors[1] < 0.93 * errors[0]
    assert errors[1] < 0.01 * float(weight.square().sum())


def test_scales_and_weights_are_trained_through_their_rounding() -> None:
    layer = layer_of(torch.randn(4, 32, generator=torch.Generator().manual_seed(0)))
    x = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(1))
    layer.float_product(x, layer.unpacked()).square().sum().backward()
    assert layer.weight.grad is not None
    assert layer.log_scale.grad is not None
    assert bool((layer.log_scale.grad != 0).all())
    with torch.no_grad():
        without = layer.unpacked()
    assert torch.equal(layer.unpacked().detach(), without)


def test_codes_that_were_chosen_stay() -> None:
    layer = layer_of(torch.randn(4, 32, generator=torch.Generator().manual_seed(0)))
    scale = layer.settled(layer.steps() * 1.1)
    codes = grid.nearest(layer.weight.detach() / scale[:, None] * 1.04, FP4)
    layer.set_codes(codes, scale)
    layer.freeze()
    assert layer.frozen is not None
    assert torch.equal(layer.frozen[0].float(), codes.reshape(4, 32))
    torch.testing.assert_close(layer.frozen[1].flatten(), scale, rtol=1e-6, atol=0)


def test_linear_layers_of_whole_blocks_are_fp4_and_the_rest_is_fp8(plain_graph: GraphModule) -> None:
    plan = planned(plain_graph, **OPTIONS)
    formats = {layer.name: (layer.activation_format.name, layer.kind) for layer in plan.quantized}
    assert formats["qkv"] == formats["out"] == ("FP4", "fp4-linear")
    assert formats["embed.0"] == ("FP8", "linear")  # 8 channels are half a block
    assert formats["down"] == ("FP8", "conv2d")
    assert {layer.op for layer in plan.left_float if "attention stays one float kernel" in (layer.float_reason or "")} == {"matmul"}
    kept = planned(plain_graph, **OPTIONS, keep={"qkv": 8, "out": "float"})
    formats = {layer.name: (layer.activation_format.name, layer.kind) for layer in kept.quantized}
    assert formats["qkv"] == ("FP8", "linear")
    assert "out" not in formats
    with pytest.raises(UsageError, match=r"keep down=4: down cannot be multiplied in FP4\n.*multiple of 16 channels"):
        planned(plain_graph, **OPTIONS, keep={"down": 4})


def sensitivity(name: str, noise: float, weights: int) -> Sensitivity:
    return Sensitivity(name, weights, 1, {(4, 4): torch.tensor([noise])})


def test_layers_that_lose_most_for_their_size_become_fp8_within_the_budget() -> None:
    measured = [sensitivity("large", 10, 500), sensitivity("even", 1, 100), *(sensitivity(f"small{i}", 5 - i, 20) for i in range(4)),
                sensitivity("rest", 1, 320)]  # fmt: skip
    choices = {choice.layers[0]: choice for choice in choose([[one] for one in measured])}
    assert [name for name, choice in choices.items() if choice.chosen == "fp8"] == ["small0", "small1", "small2"]
    assert sum(choice.weight_share for choice in choices.values() if choice.chosen == "fp8") <= MOST_WEIGHTS
    assert choices["large"].error_share < LOSES * choices["large"].weight_share
    assert choose([]) == []
    assert {choice.chosen for choice in choose([[sensitivity("a", 0, 1)], [sensitivity("b", 0, 1)]])} == {"fp4"}
    q, k = sensitivity("q", 9, 20), sensitivity("k", 1, 20)
    together = choose([[q, k], [sensitivity("rest", 2, 960)]])[0]
    assert (together.layers, together.chosen, together.error_share) == (["q", "k"], "fp8", pytest.approx(10 / 12, abs=1e-4))


@pytest.fixture(scope="module")
def dit(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    def make(path: Path) -> None:
        make_checkpoint(tiny_dit(out_channels=1, num_layers=1), path, **OPTIONS, **CLASSES)

    return load_checkpoint(made_once(tmp_path_factory, "nvfp4-dit", make))


def test_a_checkpoint_says_what_it_multiplies_and_stores_half_bytes(dit: Checkpoint) -> None:
    from safetensors.torch import load_file

    stored = load_file(dit.artifact.path / "model.safetensors")
    fp4 = {name: layer for name, layer in dit.layers.items() if isinstance(layer, Fp4Linear)}
    assert len(fp4) > 5
    assert {entry.name for entry in dit.details.layers if entry.format == "fp4"} == set(fp4)
    assert {name for choice in dit.details.format_choices if choice.chosen == "fp4" for name in choice.layers} == set(fp4)
    assert bits_label(dit.artifact) == "W4A4-FP4"
    for name, layer in fp4.items():
        assert layer.frozen is not None
        codes, scale = layer.frozen
        assert stored[f"{name}.weight.packed_codes"].numel() == codes.numel() // 2
        assert stored[f"{name}.weight.block_scale"].dtype == torch.float8_e4m3fn
        assert torch.equal(stored[f"{name}.weight.block_scale"].float() * stored[f"{name}.weight.global_scale"], scale)
        assert torch.equal(codes.float(), grid.nearest(codes.float(), FP4))
    assert {entry.block for entry in dit.details.quantizers} == {0, 16} or {entry.block for entry in dit.details.quantizers} == {16}
    assert min(dit.details.snr_db["after_distillation"]) > 5


def test_a_refit_is_refused(dit: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has FP4 layers, which a measurement chose .*\n.*--lora"):
        refit(dit.artifact, tmp_path / "refitted", lora=tmp_path / "lora.safetensors")


def test_gptq_gains_in_blocks(plain_graph: GraphModule, plain_data: Trajectories) -> None:
    options = {**FAST, **OPTIONS, "rounding": "gptq"}
    quantized, _ = quantized_copy(plain_graph, plain_data, rule=Dilation.NONE, **options)
    records = round_weights(quantized, plain_data, QuantizeConfig.build(**options))
    blocked = {name for name, layer in named_layers(quantized) if isinstance(layer, Fp4Linear)}
    ratios = [record.error_ratio for record in records if record.layer in blocked]
    assert len(ratios) == len(blocked) >= 2
    assert max(ratios) <= 1
    assert float(np.median(ratios)) < 0.95


def test_distillation_trains_blocks(plain_graph: GraphModule, plain_data: Trajectories) -> None:
    options = {**FAST, **OPTIONS, "iterations": 20, "lr_weight": 0.1}
    quantized, _ = quantized_copy(plain_graph, plain_data, rule=Dilation.NONE, **options)
    before = {name: tensor.clone() for name, tensor in quantized.state_dict().items()}
    records = distill(plain_graph, quantized, plain_data, QuantizeConfig.build(**options))
    assert sum(record.after < record.before for record in records) >= len(records) / 2
    blocked = {name for name, layer in quantized.named_modules() if isinstance(layer, Fp4Linear)}
    for part in ("weight", "log_scale"):
        assert any(not torch.equal(quantized.state_dict()[f"{name}.{part}"], before[f"{name}.{part}"]) for name in blocked)


@pytest.mark.parametrize(("options", "words"), [
    ({"weight_bits": 6}, r"weight_bits is 6, and layers have 4 bits .NVFP4. or 8 .FP8."),
    ({"weight_bits": 8}, "weight_bits is 8: take the preset fp8"),
    ({"activation_bits": 8}, "activation_bits is 8, and NVFP4 has 4"),
    ({"keep": {"mid*": 3}}, r"keep mid\* is 3"),
    ({"dilation": "symmetric"}, "dilation is symmetric, and a block's own scale leaves it nothing to gain"),
    ({"softmax_bits": 4}, "softmax_bits would be ignored"),
    ({"matryoshka": [8, 4]}, "matryoshka slices integers"),
])  # fmt: skip
def test_options_that_nvfp4_cannot_have_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        QuantizeConfig.build("nvfp4", **options)


def _set(part: str, value: Any) -> Any:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        name = next(name for name in sorted(tensors) if name.endswith(part))
        tensors[name] = value(tensors[name])

    return change


@pytest.mark.parametrize(("words", "change"), [
    ("has codes from nan to nan", _set("packed_codes", lambda t: torch.full_like(t, 0x88))),
    ("a global scale is one power of two", _set("weight.global_scale", lambda t: t * 3)),
    ("a global scale is one power of two", _set("input.global_scale", lambda t: t * 0)),
    ("has a scale that is not above 0", _set("block_scale", torch.zeros_like)),
    ("NaN or Inf in", _set("block_scale", lambda t: torch.full_like(t, math.nan))),
    ("blocks of 16 take float8_e4m3fn", _set("block_scale", lambda t: t[:, :1].repeat(1, 3).contiguous())),
])  # fmt: skip
def test_tampered_tensors_are_refused(dit: Checkpoint, tmp_path: Path, words: str, change: Any) -> None:
    shutil.copytree(dit.artifact.path, tmp_path / "changed")
    with pytest.raises(ArtifactError, match=words):
        load_checkpoint(change_tensors(tmp_path / "changed", change))


def test_the_range_of_scales_serves_tensors_of_any_size() -> None:
    for largest in (1e-20, 1e-3, 1.0, 1e4, 1e20):
        g = blocks.global_scale(largest)
        assert 2 <= 6 * 448 * g / largest < 4.01
    assert blocks.global_scale(0.0) == blocks.global_scale(1e-45) == 1.0
    assert numerics.weight_scale(torch.zeros(1, 16), FP4).tolist() == [1.0]
